"""An API server of a cluster, over TLS, as far as the agent speaks with one."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agents.pod_api import ApiServer as Client

GROUP = "/apis/resource.k8s.io"


class Asked(NamedTuple):
    """A request: its path, and of the query the first value of each name."""

    path: str
    query: dict[str, str]
    token: str
    accept: str


@dataclass
class ApiServer:
    """Answers by path, a list of ResourceSlices as real servers do, else that it is not there.

    page: slices in an answer at most; 0: the request's limit is not heeded, as with a cache's list.
    """

    folder: Path
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    page: int = 0

    @property
    def env(self) -> dict[str, str]:
        """What the kubelet puts into a container's environment."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def client(self) -> Client:
        """Of the product."""
        return Client("127.0.0.1", self.port, self.folder)

    def serves(self, version: str, slices: list[dict[str, Any]]) -> None:
        """A cluster with these slices; no other version of the API is served."""
        self.answers = {f"{GROUP}/{version}/resourceslices": (200, json.dumps(slices).encode())}

    def answer(self, asked: Asked) -> tuple[int, bytes]:
        """Status and body."""
        status, body = self.answers.get(asked.path, (404, b'{"kind":"Status","code":404}'))
        if not asked.path.startswith(GROUP) or not body.startswith(b"["):
            return status, body
        return self._list(json.loads(body), asked.query)

    def _list(self, slices: list[dict[str, Any]], query: dict[str, str]) -> tuple[int, bytes]:
        name, _, value = query.get("fieldSelector", "").partition("=")
        if name != "spec.nodeName" or ("continue" in query and "resourceVersion" in query):
            return 400, b'{"kind":"Status","code":400}'
        mine = [one for one in slices if one["spec"].get("nodeName") == value]
        start = int(query.get("continue", "0"))
        stop = start + (min(self.page, int(query["limit"])) or len(mine))
        metadata = {"continue": str(stop)} if stop < len(mine) else {"resourceVersion": "7"}
        found = {"kind": "ResourceSliceList", "metadata": metadata, "items": mine[start:stop]}
        return 200, json.dumps(found).encode()


def attributes(**given: str | int | bool) -> dict[str, dict[str, str | int | bool]]:
    """As they are written; `__` stands for the slash after a domain, `_` in it for a dot."""
    kinds: dict[type, str] = {str: "string", int: "int", bool: "bool"}
    found = {}
    for name, value in given.items():
        domain, slash, last = name.rpartition("__")
        found[domain.replace("_", ".") + ("/" if slash else "") + last] = {
            kinds[type(value)]: value
        }
    return found


def a_slice(
    devices: dict[str, dict[str, Any]] | None,
    *,
    version: str = "v1",
    node: str = "n1",
    driver: str = "gpu.nvidia.com",
    pool: str = "n1",
    generation: int = 1,
    count: int = 1,
) -> dict[str, Any]:
    """A ResourceSlice in a version's form; `devices` are attributes by name, None: counters only."""  # fmt: skip
    spec: dict[str, Any] = {
        "driver": driver, "nodeName": node,
        "pool": {"name": pool, "generation": generation, "resourceSliceCount": count},
    }  # fmt: skip
    if devices is None:
        spec["sharedCounters"] = [{"name": "gpu-0", "counters": {"memory": {"value": "80Gi"}}}]
    else:
        bodies = {
            name: {"attributes": given, "capacity": {"memory": {"value": "80Gi"}}}
            for name, given in devices.items()
        }
        spec["devices"] = [
            {"name": name, **({"basic": body} if version == "v1beta1" else body)}
            for name, body in bodies.items()
        ]
    return {"metadata": {"name": "x", "uid": "y"}, "spec": spec}


def certify(folder: Path, name: str = "127.0.0.1") -> None:
    """A token, a key, and a certificate of it by itself, as files."""
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


@contextmanager
def serving(folder: Path) -> Iterator[ApiServer]:
    """One that listens, with its token and certificate in a folder."""
    certify(folder)
    server = ApiServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = urlsplit(self.path)[2:4]
            first = {name: values[0] for name, values in parse_qs(query).items()}
            asked = Asked(path, first, self.headers["Authorization"], self.headers["Accept"])
            server.asked.append(asked)
            status, body = server.answer(asked)
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
    context.load_cert_chain(folder / "ca.crt", folder / "key")
    with Quiet(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
