"""Labels of pods, from a server that speaks TLS: believed if it is the right one and makes sense."""

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agents.pod_labels import MAX_ASKED, MAX_BYTES, PodLabels
from pipeline.errors import Refuse, Unavailable


@dataclass
class ApiServer:
    """What an API server says of pods."""

    folder: Path
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0

    def labels(self) -> PodLabels:
        env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}
        return PodLabels("example.com/tenant", self.folder, env)

    def says(self, pod_name: str, status: int, answer: object) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.answers[f"/api/v1/namespaces/ns/pods/{pod_name}"] = status, body


def certify(folder: Path, name: str = "127.0.0.1") -> None:
    """A key, and a certificate of it by itself, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    (folder / "token").write_text("first\n")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    certify(tmp_path)
    server = ApiServer(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token, accept = self.headers["Authorization"], self.headers["Accept"]
            server.asked.append((self.path, token, accept))
            status, body = server.answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_args: object) -> None:
            """A client that hung up is the client's business."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key")
    with Quiet(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield server
        http.shutdown()
        thread.join()


def labelled(value: object) -> dict[str, object]:
    return {"kind": "PartialObjectMetadata", "metadata": {"labels": {"example.com/tenant": value}}}


def test_a_label_is_asked_for_once_with_the_present_token(api: ApiServer) -> None:
    api.says("a", 200, labelled("acme"))
    labels = api.labels()
    assert [labels.value("ns", "a") for _ in range(3)] == ["acme"] * 3
    (api.folder / "token").write_text("second")
    labels.keep(set())
    assert labels.value("ns", "a") == "acme"
    assert [token for _, token, _ in api.asked] == ["Bearer first", "Bearer second"]
    assert all("PartialObjectMetadata" in accept for _, _, accept in api.asked)


@pytest.mark.parametrize(
    "answer",
    [{"metadata": {}}, {"metadata": {"labels": None}}, {"metadata": {"labels": {"x": "y"}}},
     labelled(""), labelled("a b"), labelled("a" * 64), labelled("../x")],
)  # fmt: skip
def test_no_label_or_one_that_kubernetes_would_not_have_is_empty(api, answer) -> None:
    api.says("a", 200, answer)
    assert api.labels().value("ns", "a") == ""


def test_a_pod_that_is_gone_has_no_label(api: ApiServer) -> None:
    assert api.labels().value("ns", "gone") == ""


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [(403, {}, "403: may not get pods"), (401, {}, "401: may not"), (500, {}, "500"),
     (302, {}, "302"), (200, b"{", "truncated"), (200, {"metadata": 3}, "Expected"),
     (200, labelled(7), "Expected"), (200, b"x" * (MAX_BYTES + 1), "more than")],
)  # fmt: skip
def test_another_answer_is_none(api: ApiServer, status: int, answer: object, why: str) -> None:
    api.says("a", status, answer)
    labels = api.labels()
    with pytest.raises(Unavailable, match=why):
        labels.value("ns", "a")
    api.says("a", 200, labelled("acme"))
    assert labels.value("ns", "a") == "acme"


def test_names_cannot_lead_elsewhere(api: ApiServer) -> None:
    assert api.labels().value("../../x", "a?b/c#d") == ""
    assert api.asked[0][0] == "/api/v1/namespaces/..%2F..%2Fx/pods/a%3Fb%2Fc%23d"


def test_a_server_that_another_authority_signed_is_not_believed(api: ApiServer) -> None:
    api.says("a", 200, labelled("evil"))
    labels = api.labels()
    certify(api.folder)
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        labels.value("ns", "a")
    assert api.asked == []


def test_no_token_no_server_and_no_cluster(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match="token"):
        api.labels().value("ns", "a")
    (tmp_path / "token").write_text("t")
    api.port = 9
    with pytest.raises(Unavailable, match="API server"):
        api.labels().value("ns", "a")
    with pytest.raises(Refuse, match="not in a pod"):
        PodLabels("l", tmp_path, {})


def test_a_poll_asks_about_so_many_pods_only(api: ApiServer) -> None:
    labels = api.labels()
    for number in range(MAX_ASKED):
        labels.value("ns", f"p{number}")
    with pytest.raises(Unavailable, match="later"):
        labels.value("ns", "one-more")
    labels.keep(set())
    assert labels.value("ns", "one-more") == ""
