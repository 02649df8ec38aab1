"""What drivers publish of their devices: every version, whole pools of the newest generation only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.pod_api import Denied, Missing, in_cluster
from agents.pod_devices import Name, Published
from agents.pod_slices import (
    BY_NAME,
    EVERY_S,
    MAX_BYTES,
    MAX_DEVICES,
    MAX_PAGES,
    PAGE,
    RULE,
    VERSIONS,
    Found,
    Known,
    ResourceSlices,
    describe,
    gather,
    parse,
)
from pipeline.clock import ManualClock
from pipeline.errors import Unavailable
from tests.agents.pod_api_server import GROUP, ApiServer, a_slice, attributes, certify, serving

NV = "gpu.nvidia.com"
GPU = attributes(type="gpu", uuid="GPU-1", productName="NVIDIA H100", minor=1, migCapable=True)
MIG = attributes(type="mig", uuid="MIG-7", parentUUID="GPU-1", profile="1g.10gb", index=3)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with serving(tmp_path) as server:
        yield server


def read(api: ApiServer, node: str = "n1") -> Found:
    return ResourceSlices(node, api.client()).read()


def gathered(*slices: dict[str, Any]) -> Found:
    """As a whole answer says it."""
    body = json.dumps({"metadata": {}, "items": slices}).encode()
    return gather(one.spec for one in parse(body).items or ())


# ---- asked of a server


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_says_the_same(api: ApiServer, version: str) -> None:
    """Also where older ones are tried first in vain; the one that is served is remembered."""
    api.serves(version, [
        a_slice({"gpu-0": GPU, "gpu-0-mig-1g10gb-19-0": MIG}, version=version),
        a_slice({"gpu-9": GPU}, version=version, node="n2", pool="n2"),
    ])  # fmt: skip
    slices = ResourceSlices("n1", api.client())
    want = {
        (NV, "n1", "gpu-0"): Published("GPU-1"),
        (NV, "n1", "gpu-0-mig-1g10gb-19-0"): Published("GPU-1", "", "1g.10gb"),
    }
    assert slices() == want
    assert slices() == want
    tried = [one.path.split("/")[3] for one in api.asked]
    assert tried == [*VERSIONS[: VERSIONS.index(version) + 1], version]
    assert {one.token for one in api.asked} == {"Bearer first"}


def test_only_this_nodes_are_asked_for_and_from_memory(api: ApiServer) -> None:
    api.serves("v1", [])
    assert read(api, "a&b=c#d/..") == Found({}, [], "v1")
    assert [one.query for one in api.asked] == [
        {"fieldSelector": "spec.nodeName=a&b=c#d/..", "limit": str(PAGE), "resourceVersion": "0"}
    ]


def test_slices_of_other_nodes_are_left_out_where_the_server_sends_them(api: ApiServer) -> None:
    items = [a_slice({"gpu-0": GPU}), a_slice({"gpu-1": GPU}, node="n2", pool="n2")]
    body = json.dumps({"metadata": {}, "items": items}).encode()
    api.answers[f"{GROUP}/v1/resourceslices"] = 200, body
    assert set(read(api).devices) == {(NV, "n1", "gpu-0")}


def test_a_list_in_pieces_is_whole(api: ApiServer) -> None:
    api.serves("v1", [a_slice({f"gpu-{i}": GPU}, count=7) for i in range(7)])
    api.page = 3
    assert len(read(api).devices) == 7
    assert [one.query.get("continue") for one in api.asked] == [None, "3", "6"]


def test_a_list_without_end_is_refused(api: ApiServer) -> None:
    body = json.dumps({"metadata": {"continue": "on"}, "items": []}).encode()
    api.answers[f"{GROUP}/v1/resourceslices"] = 200, body
    with pytest.raises(Unavailable, match=f"more than {MAX_PAGES} pages"):
        read(api)
    assert len(api.asked) == MAX_PAGES


def test_the_bound_on_bytes_is_that_of_all_pages(api: ApiServer) -> None:
    fill = "x" * (MAX_BYTES * 2 // 5)
    body = json.dumps({"metadata": {"continue": "on", "z": fill}, "items": []}).encode()
    api.answers[f"{GROUP}/v1/resourceslices"] = 200, body
    with pytest.raises(Unavailable, match="bytes"):
        read(api)
    assert len(api.asked) == 3


def test_more_devices_than_a_node_has_are_refused(api: ApiServer) -> None:
    count = MAX_DEVICES // 128 + 1
    api.serves("v1", [
        a_slice({f"d-{i}-{j}": {} for j in range(128)}, count=count) for i in range(count)
    ])  # fmt: skip
    with pytest.raises(Unavailable, match=f"more than {MAX_DEVICES} devices"):
        read(api)


def test_a_cluster_without_such_slices_says_so(api: ApiServer) -> None:
    with pytest.raises(Missing, match=r"older than Kubernetes 1\.32"):
        read(api)
    assert len(api.asked) == len(VERSIONS)


@pytest.mark.parametrize("status", [401, 403])
def test_no_right_is_not_taken_for_an_older_cluster(api: ApiServer, status: int) -> None:
    api.answers[f"{GROUP}/v1/resourceslices"] = status, b"{}"
    with pytest.raises(Denied, match=str(status)):
        read(api)
    assert len(api.asked) == 1


def test_no_token_is_no_right(api: ApiServer) -> None:
    (api.folder / "token").unlink()
    with pytest.raises(Denied, match="no token is mounted"):
        read(api)
    assert api.asked == []


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [(500, b"{}", "500"), (302, b"{}", "302"), (410, b"{}", "410"), (429, b"{}", "429"),
     (200, b"", "truncated"), (200, b"{}", "missing required field"), (200, b"\xff", "invalid"),
     (200, b'{"items":null,"metadata":{"continue":"\xff"}}', "utf-8"),
     (200, b"[" * 100_000, "."), (200, b'{"metadata":{},"x":' + b"[" * 100_000, "."),
     (200, b'{"items":[{"spec":{"pool":{"name":"p"}}}],"metadata":{}}', "driver"),
     (200, b" " * (MAX_BYTES + 1), "more than")],
)  # fmt: skip
def test_another_answer_is_neither_no_right_nor_no_slices(api, status, body, why) -> None:
    api.answers[f"{GROUP}/v1/resourceslices"] = status, body
    with pytest.raises(Unavailable, match=why) as caught:
        read(api)
    assert not isinstance(caught.value, Denied | Missing)


@pytest.mark.parametrize("token", [b"a\nb", b"\xff\xfe", "é".encode(), b"\x00"])
def test_a_token_that_no_header_can_carry_is_said(api: ApiServer, token: bytes) -> None:
    (api.folder / "token").write_bytes(token)
    api.serves("v1", [])
    try:
        read(api)
    except Unavailable as error:
        assert "API server 127.0.0.1" in str(error)
    else:
        assert api.asked[0].token  # Latin-1, as headers may be


def test_a_server_that_another_authority_signed_is_not_believed(api: ApiServer) -> None:
    api.serves("v1", [a_slice({"gpu-0": GPU})])
    certify(api.folder)
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        read(api)
    assert api.asked == []


@pytest.mark.parametrize(
    "env",
    [{}, {"KUBERNETES_SERVICE_HOST": ""},
     {"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "tcp://1"}],
)  # fmt: skip
def test_outside_a_cluster_there_is_nobody_to_ask(tmp_path: Path, env: dict[str, str]) -> None:
    assert in_cluster(tmp_path, env) is None


# ---- pools


def test_of_an_older_generation_nothing_counts() -> None:
    """Even if it is complete and the newer one is not: its devices may be others now."""
    old = a_slice({"gpu-0": GPU, "gpu-5": GPU}, generation=3)
    new = attributes(uuid="GPU-2")
    assert gathered(old, a_slice({"gpu-0": new}, generation=4)).devices == {
        (NV, "n1", "gpu-0"): Published("GPU-2")
    }
    found = gathered(old, a_slice({"gpu-0": new}, generation=4, count=2))
    assert (found.devices, found.incomplete) == ({}, [(NV, "n1")])


def test_a_pool_counts_once_every_slice_is_there() -> None:
    """Counters are a slice as well; other pools do not wait for this one."""
    parts = [a_slice({"gpu-0": GPU}, count=3), a_slice(None, count=3), a_slice({}, count=3)]
    other = a_slice({"nic-0": {}}, driver="dra.net", pool="n1")
    assert set(gathered(*parts, other).devices) == {(NV, "n1", "gpu-0"), ("dra.net", "n1", "nic-0")}
    found = gathered(*parts[:2], other)
    assert set(found.devices) == {("dra.net", "n1", "nic-0")}
    assert found.incomplete == [(NV, "n1")]


@pytest.mark.parametrize("counts", [(0, 0), (1, 1), (2, 3), (3, 2), (-1, 2)])
def test_slices_that_do_not_agree_on_their_number_are_no_pool(counts: tuple[int, int]) -> None:
    found = gathered(*(a_slice({f"gpu-{n}": GPU}, count=count) for n, count in enumerate(counts)))
    assert (found.devices, found.incomplete) == ({}, [(NV, "n1")])


def test_a_device_that_is_in_two_slices_is_in_none() -> None:
    found = gathered(*(a_slice({"gpu-0": GPU}, count=2) for _ in range(2)))
    assert (found.devices, found.incomplete) == ({}, [(NV, "n1")])


def test_pools_of_one_name_are_told_apart_by_their_drivers() -> None:
    found = gathered(
        a_slice({"gpu-0": GPU}, generation=9),
        a_slice({"gpu-0": attributes(uuid="GPU-3")}, driver="gpu.other.com", generation=1),
    )
    assert found.devices["gpu.other.com", "n1", "gpu-0"] == Published("GPU-3")
    assert found.devices[NV, "n1", "gpu-0"] == Published("GPU-1")


# ---- attributes


@pytest.mark.parametrize(
    ("given_", "want"),
    [
        ({}, Published()),
        (None, Published()),
        (attributes(gpu_nvidia_com__uuid="GPU-4"), Published("GPU-4")),
        (attributes(other_com__uuid="GPU-4"), Published()),
        (attributes(uuid=4, profile=True), Published()),
        ({"uuid": {}, "profile": {"string": None}}, Published()),
        ({"uuid": {"strings": ["GPU-4"]}, "x": {"version": "1.2.3"}}, Published()),
        (attributes(resource_kubernetes_io__pciBusID="0000:3b:00.0"),
         Published("", "0000:3b:00.0")),
        # A dynamic partition has no UUID before it is made.
        (attributes(type="mig", parentUUID="GPU-1", profile="1g.10gb+me"),
         Published("GPU-1", "", "1g.10gb+me")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", VERSIONS)
def test_what_names_a_gpu_is_taken_and_nothing_else(given_, want, version) -> None:
    found = gathered(a_slice({"d": given_}, version=version))
    assert found.devices == {(NV, "n1", "d"): want}


# ---- hostile answers


@given(st.binary(max_size=200))
@example(b'{"items":null,"metadata":{}}')
@example(b'{"items":[],"metadata":{"continue":null}}')
def test_noise_is_read_or_refused(body: bytes) -> None:
    try:
        found = parse(body)
    except Unavailable as error:
        assert str(error).startswith("resource slices: ")
    else:
        gather(one.spec for one in found.items or ())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.data())
def test_one_wrong_thing_anywhere_is_refused_or_passed_over(data: st.DataObject) -> None:
    """Any value replaced by any other, or left out: read without another error, or refused."""
    whole = {"metadata": {"continue": ""}, "items": [
        a_slice({"gpu-0": GPU, "m": MIG}, version=data.draw(st.sampled_from(VERSIONS))),
        a_slice(None),
    ]}  # fmt: skip
    at: object = whole
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))  # type: ignore[arg-type]
        key = data.draw(st.sampled_from(keys))
        inner = at[key]  # type: ignore[index]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            at = inner
            continue
        if data.draw(st.booleans()):
            at[key] = data.draw(anything)  # type: ignore[index]
        else:
            del at[key]  # type: ignore[attr-defined]
        break
    try:
        found = parse(msgspec.json.encode(whole))
    except Unavailable:
        return
    for name, published in gather(one.spec for one in found.items or ()).devices.items():
        assert all(isinstance(text, str) for text in (*name, *published))


slices_of_pools = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]), st.integers(1, 3), st.integers(1, 3),
        st.sets(st.sampled_from("xyz"), max_size=2),
    ),
    max_size=8,
)  # fmt: skip


@given(slices_of_pools)
def test_whatever_comes_a_device_is_of_a_whole_newest_pool(given_) -> None:
    found = gathered(
        *(a_slice({name: attributes(uuid=f"{pool}{generation}{name}") for name in names}, pool=pool,
                  generation=generation, count=count)
          for pool, generation, count, names in given_)
    )  # fmt: skip
    for pool in "ab":
        mine = [one for one in given_ if one[0] == pool]
        newest = [one for one in mine if one[1] == max(o[1] for o in mine)]
        names = [name for one in newest for name in one[3]]
        whole = {one[2] for one in newest} == {len(newest)} and len(names) == len(set(names))
        assert ((NV, pool) in found.incomplete) == bool(mine and not whole)
        assert {name: one.uuid for (_, of, name), one in found.devices.items() if of == pool} == (
            {name: f"{pool}{newest[0][1]}{name}" for name in names} if whole else {}
        )


# ---- what is known


class Source:
    """Slices that a test changes, counted."""

    def __init__(self) -> None:
        self.now: dict[Name, Published] | Unavailable = {}
        self.asked = 0

    def __call__(self) -> dict[Name, Published]:
        self.asked += 1
        if isinstance(self.now, Unavailable):
            raise self.now
        return self.now


A, B = (NV, "p", "a"), (NV, "p", "b")


def test_a_known_device_is_never_asked_for_again() -> None:
    clock, source = ManualClock(), Source()
    source.now = {A: Published("GPU-1")}
    known = Known(source, clock)
    known.learn(set())
    assert source.asked == 0
    for _ in range(1000):
        known.learn({A})
        clock.advance(10)
    assert (source.asked, known.by_name, dict(known.devices)) == (1, False, source.now)


def test_an_unknown_device_is_asked_for_at_most_so_often() -> None:
    clock, source = ManualClock(), Source()
    known = Known(source, clock)
    for _ in range(301):
        known.learn({B})
        clock.advance(10)
    assert source.asked == 1 + 3000 // int(EVERY_S)


def test_a_device_that_is_withdrawn_stays_known_while_it_is_held() -> None:
    clock, source = ManualClock(), Source()
    source.now = {A: Published("GPU-1")}
    known = Known(source, clock)
    known.learn({A})
    source.now = {B: Published("GPU-2")}
    clock.advance(EVERY_S)
    known.learn({A, B})
    assert known.devices == {A: Published("GPU-1"), B: Published("GPU-2")}
    source.now = {A: Published("GPU-3"), B: Published("GPU-2")}
    clock.advance(EVERY_S)
    known.learn({A, (NV, "p", "c")})
    assert known.devices == source.now
    source.now = {}
    clock.advance(EVERY_S)
    known.learn({B, (NV, "p", "c")})
    assert known.devices == {B: Published("GPU-2")}


def test_a_server_that_is_away_changes_nothing() -> None:
    clock, source = ManualClock(), Source()
    source.now = Unavailable("away")
    known = Known(source, clock)
    with pytest.raises(Unavailable, match="away"):
        known.learn({A})
    assert (known.by_name, known.devices) == (False, {})
    source.now = Denied("403")
    clock.advance(EVERY_S)
    with pytest.raises(Unavailable, match=f"403: {BY_NAME}"):
        known.learn({A})
    assert known.by_name
    source.now = Unavailable("away")
    clock.advance(EVERY_S)
    with pytest.raises(Unavailable):
        known.learn({A})
    assert known.by_name
    source.now = {A: Published("GPU-1")}
    clock.advance(EVERY_S)
    known.learn({A})
    assert (known.by_name, known.devices) == (False, source.now)


def test_what_is_forgotten_is_asked_for_again_in_its_time() -> None:
    clock, source = ManualClock(), Source()
    source.now = {A: Published("GPU-1")}
    known = Known(source, clock)
    known.learn({A})
    known.forget()
    known.learn({A})
    assert (source.asked, known.devices) == (1, {})
    clock.advance(EVERY_S)
    known.learn({A})
    assert (source.asked, known.devices) == (2, source.now)


# ---- for people


def said(api: ApiServer) -> list[str]:
    return describe("n1", api.folder, api.env)


def test_the_doctor_says_whether_slices_may_be_read(api: ApiServer) -> None:
    api.serves("v1beta1", [
        a_slice({"gpu-0": GPU, "gpu-1": GPU}, version="v1beta1"),
        a_slice({"n": {}}, version="v1beta1", driver="dra.net", pool="nics", count=2),
    ])  # fmt: skip
    assert said(api) == [
        f"resource.k8s.io/v1beta1: 2 devices of n1, 1 pools of {NV}",
        "pool 'nics' of dra.net is not complete: claims on it wait",
    ]
    api.serves("v1", [])
    assert said(api) == ["resource.k8s.io/v1: 0 devices of n1, 0 pools of nobody"]


@pytest.mark.parametrize("status", [401, 403])
def test_the_doctor_names_the_rule_that_is_missing(api: ApiServer, status: int) -> None:
    api.answers[f"{GROUP}/v1/resourceslices"] = status, b"{}"
    (line,) = said(api)
    assert line.startswith(f"API server 127.0.0.1 answers {status}: {BY_NAME}; to read them grant")
    assert RULE in line
    assert "resources: [resourceslices], verbs: [list]" in line


def test_the_doctor_tells_no_pod_no_token_old_and_away_apart(api: ApiServer) -> None:
    assert describe("n1", api.folder, {}) == [f"not in a pod: {BY_NAME}"]
    assert "older than Kubernetes 1.32" in said(api)[0]
    api.answers[f"{GROUP}/v1/resourceslices"] = 503, b"{}"
    assert "answers 503: a claim on a device that is not known yet waits" in said(api)[0]
    (api.folder / "token").unlink()
    assert "no token is mounted" in said(api)[0]
    assert "agent-resource-slices.yaml" in said(api)[0]


@settings(max_examples=20)
@given(st.text(max_size=20))
def test_any_nodes_name_is_one_selector(node: str) -> None:
    """Whatever a node is called, no other parameter comes of it."""
    slices = ResourceSlices(node, Recorder())  # type: ignore[arg-type]
    slices.read()


class Recorder:
    """A server that looks at the path only."""

    def get(self, path: str, _accept: str, _max_bytes: int) -> bytes:
        assert path.isascii()
        assert path.count("&") == 2
        assert path.count("?") == 1
        return b'{"metadata":{},"items":null}'
