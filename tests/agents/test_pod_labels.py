"""Labels of pods, from a server that speaks TLS: believed if it is the right one and makes sense."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.pod_labels import MAX_ASKED, MAX_BYTES, PodLabels
from pipeline.errors import Refuse, Unavailable
from tests.agents.pod_api_server import ApiServer, certify, serving


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with serving(tmp_path) as server:
        yield server


def labels_of(api: ApiServer) -> PodLabels:
    return PodLabels("example.com/tenant", api.folder, api.env)


def says(api: ApiServer, pod_name: str, status: int, answer: object) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    api.answers[f"/api/v1/namespaces/ns/pods/{pod_name}"] = status, body


def labelled(value: object) -> dict[str, object]:
    return {"kind": "PartialObjectMetadata", "metadata": {"labels": {"example.com/tenant": value}}}


def test_a_label_is_asked_for_once_with_the_present_token(api: ApiServer) -> None:
    says(api, "a", 200, labelled("acme"))
    labels = labels_of(api)
    assert [labels.value("ns", "a") for _ in range(3)] == ["acme"] * 3
    (api.folder / "token").write_text("second")
    labels.keep(set())
    assert labels.value("ns", "a") == "acme"
    assert [one.token for one in api.asked] == ["Bearer first", "Bearer second"]
    assert all("PartialObjectMetadata" in one.accept for one in api.asked)


@pytest.mark.parametrize(
    "answer",
    [{"metadata": {}}, {"metadata": {"labels": None}}, {"metadata": {"labels": {"x": "y"}}},
     labelled(""), labelled("a b"), labelled("a" * 64), labelled("../x")],
)  # fmt: skip
def test_no_label_or_one_that_kubernetes_would_not_have_is_empty(api, answer) -> None:
    says(api, "a", 200, answer)
    assert labels_of(api).value("ns", "a") == ""


def test_a_pod_that_is_gone_has_no_label(api: ApiServer) -> None:
    assert labels_of(api).value("ns", "gone") == ""


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [(403, {}, "403: may not get pods"), (401, {}, "401: may not"), (500, {}, "500"),
     (302, {}, "302"), (200, b"{", "truncated"), (200, {"metadata": 3}, "Expected"),
     (200, labelled(7), "Expected"), (200, b"x" * (MAX_BYTES + 1), "more than")],
)  # fmt: skip
def test_another_answer_is_none(api: ApiServer, status: int, answer: object, why: str) -> None:
    says(api, "a", status, answer)
    labels = labels_of(api)
    with pytest.raises(Unavailable, match=why):
        labels.value("ns", "a")
    says(api, "a", 200, labelled("acme"))
    assert labels.value("ns", "a") == "acme"


def test_names_cannot_lead_elsewhere(api: ApiServer) -> None:
    assert labels_of(api).value("../../x", "a?b/c#d") == ""
    assert api.asked[0].path == "/api/v1/namespaces/..%2F..%2Fx/pods/a%3Fb%2Fc%23d"


def test_a_server_that_another_authority_signed_is_not_believed(api: ApiServer) -> None:
    says(api, "a", 200, labelled("evil"))
    labels = labels_of(api)
    certify(api.folder)
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        labels.value("ns", "a")
    assert api.asked == []


def test_no_token_no_server_and_no_cluster(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match="token"):
        labels_of(api).value("ns", "a")
    (tmp_path / "token").write_text("t")
    api.port = 9
    with pytest.raises(Unavailable, match="API server"):
        labels_of(api).value("ns", "a")
    with pytest.raises(Refuse, match="not in a pod"):
        PodLabels("l", tmp_path, {})


def test_a_poll_asks_about_so_many_pods_only(api: ApiServer) -> None:
    labels = labels_of(api)
    for number in range(MAX_ASKED):
        labels.value("ns", f"p{number}")
    with pytest.raises(Unavailable, match="later"):
        labels.value("ns", "one-more")
    labels.keep(set())
    assert labels.value("ns", "one-more") == ""
