"""What a kubelet says about devices: read as it is meant, refused where it is not."""

import contextlib
import dataclasses
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents import pod_resources
from agents.mig_names import MigNames, parse
from agents.pod_devices import (
    WHOLE_PPM,
    Claim,
    Instance,
    Node,
    Published,
    place,
    replica_of,
    replicas_of,
    wanted,
)
from agents.pod_resources import (
    MAX_DEVICES,
    MAX_TEXT,
    Held,
    Kubelet,
    NoAnswer,
    parse_allocatable,
    parse_list,
)
from pipeline.errors import Refuse, Reject, Unavailable
from pipeline.records import Gpu
from tests.agents.fake_kubelet import (
    FakeKubelet,
    FakePod,
    allocatable_response,
    list_response,
    put,
)
from tests.agents.fake_kubelet import (
    pod_resources as encoded,
)

GPUS = {f"GPU-{i:08x}-aa": Gpu(i, f"GPU-{i:08x}-aa", "NVIDIA H100 80GB HBM3") for i in range(8)}
UUIDS = list(GPUS)
DEFAULT = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-*", "gpu.nvidia.com")


def node(**more) -> Node:
    return Node("n1", GPUS, **more)


def one(device: str, resource: str = "nvidia.com/gpu", pod: str = "p", pool: str = "") -> Held:
    return Held("ns", pod, resource, device, pool)


def share(
    device: str, resource: str = "nvidia.com/gpu", pool: str = "", **more
) -> tuple[object, int]:
    """GPUs and share of the one claim that a device makes."""
    placed = place([one(device, resource, pool=pool)], node(**more))
    assert not placed.unplaced
    (claim,) = placed.claims
    return claim.gpus, claim.share_ppm


def reason(device: str, resource: str = "nvidia.com/gpu", pool: str = "") -> str:
    placed = place([one(device, resource, pool=pool)], node())
    assert not placed.claims
    (why,) = placed.unplaced.values()
    return why


# ---- messages


names = st.text(st.characters(categories=["L", "N"], include_characters="-./:"), min_size=1,
                max_size=40)  # fmt: skip
pods = st.builds(
    FakePod, names, names, st.dictionaries(names, st.lists(names, max_size=4), max_size=3),
    st.lists(st.tuples(names, names, names), max_size=3),
)  # fmt: skip


@given(st.lists(pods, max_size=5))
def test_what_was_written_is_read(given: list[FakePod]) -> None:
    """Every device of every pod, and nothing of the fields around them."""
    want = [
        Held(pod.namespace, pod.name, *device)
        for pod in given
        for device in [
            *((resource, name, "") for resource, ids in pod.devices.items() for name in ids),
            *((driver, device, pool) for driver, pool, device in pod.claims),
        ]
    ]
    assert sorted(parse_list(list_response(given))) == sorted(want)


@given(st.binary(max_size=300))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x0b" * 1000)  # groups, nested
def test_noise_is_read_or_rejected_and_never_anything_else(data: bytes) -> None:
    for parse_ in (parse_list, parse_allocatable):
        try:
            assert isinstance(parse_(data), list)
        except Reject as error:
            assert str(error).startswith("pod-resources: ")


@given(st.lists(pods, min_size=1, max_size=3), st.data())
def test_a_damaged_answer_is_read_or_rejected(given: list[FakePod], data: st.DataObject) -> None:
    """Cut anywhere, or with any byte changed."""
    whole = bytearray(list_response(given))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at] = data.draw(st.integers(0, 255))
    else:
        del whole[at:]
    with contextlib.suppress(Reject):
        assert len(parse_list(bytes(whole))) <= len(whole)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x0a", "cut off within a number"),
        (b"\x0a\x05abc", "cut off within a field"),
        (b"\x0d\x00\x00", "cut off within a field"),
        (put(1, put(3, put(2, put(2, b"\xff\xfe")))), "device_ids is not UTF-8"),
        (put(1, put(1, "a\nb")), "control characters"),
        (put(1, put(1, "a" * (MAX_TEXT + 1))), f"longer than {MAX_TEXT}"),
        (put(1, 7), "pod_resources is a number"),
        (put(1, put(1, 7)), "name is a number"),
        (put(1, put(3, 7)), "containers is a number"),
        (put(1, put(3, put(2, 7))), "devices is a number"),
        (put(1, put(3, put(5, put(4, 7)))), "claim_resources is a number"),
        (b"\x0b\x0c", "no type of a field's value"),
        (b"\x0e", "no type of a field's value"),
        (b"\x00\x01", "no field's number"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x08" + b"\x80" * 11, "more than 64 bits"),
        (put(1, put(2, "ns") + put(3, put(2, put(1, "r") + put(2, "d")))), "without a name"),
    ],
)
def test_what_does_not_fit_is_rejected_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(Reject, match=why):
        parse_list(data)


def test_unknown_fields_of_every_type_are_passed_over() -> None:
    strange = (
        put(90, 1 << 63) + b"\xd1\x05" + b"12345678" + b"\xd5\x05" + b"1234" + put(92, b"\xff")
    )
    pod = FakePod("ns", "p", {"nvidia.com/gpu": [UUIDS[0]]})
    data = strange + put(1, strange + encoded(pod) + strange) + strange
    assert parse_list(data) == [one(UUIDS[0])]


def test_depth_costs_nothing() -> None:
    """What is nested where nothing is nested is never opened."""
    data = b""
    for _ in range(5000):
        data = put(9, data)
    assert parse_list(data) == []


def test_more_devices_than_a_node_can_have_are_rejected() -> None:
    many = put(1, put(1, "p") + put(2, "n") + put(3, put(2, put(2, "d") * (MAX_DEVICES + 1))))
    with pytest.raises(Reject, match=f"more than {MAX_DEVICES} devices"):
        parse_list(many)
    with pytest.raises(Reject, match=f"more than {MAX_DEVICES} devices"):
        parse_allocatable(put(1, put(2, "d") * (MAX_DEVICES + 1)))


def test_a_pod_without_devices_needs_no_name() -> None:
    assert parse_list(put(1, b"")) == []


# ---- names of devices


def test_a_whole_gpu_is_an_equal_part_for_all_that_hold_it() -> None:
    assert share(UUIDS[3]) == ((3,), 0)


def test_replicas_add_up_to_the_gpu_whatever_their_number() -> None:
    for count in (1, 2, 3, 4, 7, 10, 48):
        names_ = [f"{UUIDS[2]}::{i}" for i in range(count)]
        known = replicas_of(names_)
        assert known == {UUIDS[2]: count}
        shares = [share(name, replicas=known)[1] for name in names_]
        assert sum(shares) == WHOLE_PPM
        assert max(shares) - min(shares) <= 1


def test_replicas_of_unknown_number_are_equal_parts() -> None:
    assert share(f"{UUIDS[2]}::3") == ((2,), 0)


def test_a_pod_of_three_replicas_of_four_holds_three_quarters() -> None:
    held = [one(f"{UUIDS[0]}::{i}") for i in (0, 1, 3)]
    placed = place(held, node(replicas={UUIDS[0]: 4}))
    assert placed.claims == [Claim("ns", "p", (0,), 750_000)]


def test_a_mig_instance_is_as_many_slices_as_its_profile_says() -> None:
    known = {"MIG-1-2": Instance(UUIDS[5], "3g.40gb"), "MIG-9": Instance(UUIDS[5], "1c.3g.71gb")}
    assert share("MIG-1-2", "nvidia.com/gpu", instances=known) == ((5,), 3 * WHOLE_PPM // 7)
    assert share("MIG-9", "nvidia.com/gpu", instances=known) == ((5,), WHOLE_PPM // 7)
    assert share("MIG-1-2::1", instances=known, replicas={"MIG-1-2": 2}) == ((5,), 214_286)
    assert share("MIG-1-2::1", instances=known) == ((5,), 0)
    assert share(f"MIG-{UUIDS[1]}/7/0", "nvidia.com/mig-2g.20gb") == ((1,), 2 * WHOLE_PPM // 7)


def test_slices_are_counted_by_the_model_of_the_gpu() -> None:
    for model, want in (("NVIDIA A30", 250_000), ("NVIDIA H200", 142_857), ("NVIDIA X", 0)):
        here = Node("n1", {"GPU-1": Gpu(0, "GPU-1", model)}, {"MIG-1": Instance("GPU-1", "1g.6gb")})
        assert place([one("MIG-1")], here).claims == [Claim("ns", "p", (0,), want)]


def test_the_names_of_gke() -> None:
    assert share("nvidia4") == ((4,), 0)
    assert share("nvidia4/vgpu1", replicas={"nvidia4": 2}) == ((4,), 500_000)
    assert share("nvidia4/gi3") == ((4,), 0)
    assert share("nvidia4/gi3/vgpu0") == ((4,), 0)
    assert share("nvidia4/gi3", "nvidia.com/mig-1g.10gb") == ((4,), 142_857)
    assert replica_of("nvidia0/gi1/vgpu2") == ("nvidia0/gi1", 2)


def test_claims_of_nvidias_driver() -> None:
    assert share("gpu-6", "gpu.nvidia.com", "n1") == ((6,), 0)
    assert share("gpu-6-mig-1g10gb-19-0", "gpu.nvidia.com", "n1") == ((6,), 142_857)
    assert share("gpu-6-mig-9-4-4", "gpu.nvidia.com", "n1") == ((6,), 0)


@pytest.mark.parametrize(
    ("device", "resource", "pool", "why"),
    [
        ("GPU-nobody", "nvidia.com/gpu", "", "no GPU of this node has this UUID"),
        ("MIG-nobody", "nvidia.com/gpu", "", "did not name"),
        ("nvidia9", "nvidia.com/gpu", "", "no GPU of this node has this index"),
        ("0000:c5:00.0", "amd.com/gpu", "", "not the name of an NVIDIA device"),
        ("GPU-00000000-aa::x", "nvidia.com/gpu", "", "not the name of an NVIDIA device"),
        ("gpu-0", "gpu.nvidia.com", "n2", "its pool 'n2' is not this node, 'n1'"),
        ("channel-0", "gpu.nvidia.com", "n1", "in a pool"),
        ("", "nvidia.com/gpu", "", "not the name"),
    ],
)
def test_what_is_not_of_this_node_has_a_reason(device, resource, pool, why) -> None:
    assert why in reason(device, resource, pool)


def test_a_claim_that_two_containers_share_is_held_once() -> None:
    held = [one("gpu-1", "gpu.nvidia.com", pool="n1")] * 2
    assert place(held, node()).claims == [Claim("ns", "p", (1,), 0)]


def published(**devices: Published) -> Node:
    """A node whose driver says what these devices are; of no other is anything known."""
    known = {("gpu.nvidia.com", "pool/7", name): one for name, one in devices.items()}
    return Node("n1", GPUS, published=known, by_name=False)


def claim(device: str, pod: str = "p") -> Held:
    return one(device, "gpu.nvidia.com", pod, "pool/7")


def test_a_claim_is_placed_as_its_driver_says_whatever_it_is_called() -> None:
    """Even with the name that NVIDIA's driver would give to another GPU: that counts minors."""
    here = published(
        red=Published(UUIDS[5]), **{"gpu-0": Published(UUIDS[1])},
        m=Published(UUIDS[2], "", "3g.40gb"), c=Published(UUIDS[2], "", "1c.3g.40gb"),
        me=Published(UUIDS[2], "", "1g.10gb+me"), odd=Published(UUIDS[2], "", "SPX_NPS1"),
    )  # fmt: skip
    for device, index, share_ppm in (
        ("red", 5, 0), ("gpu-0", 1, 0), ("m", 2, 3 * WHOLE_PPM // 7), ("c", 2, WHOLE_PPM // 7),
        ("me", 2, WHOLE_PPM // 7), ("odd", 2, 0),
    ):  # fmt: skip
        assert place([claim(device)], here).claims == [Claim("ns", "p", (index,), share_ppm)]


@pytest.mark.parametrize("address", ["0000:3b:00.0", "00000000:3B:00.0", "0:3b:00.0"])
def test_a_gpu_without_a_uuid_is_found_by_its_address(address: str) -> None:
    gpus = {"GPU-1": Gpu(0, "GPU-1"), "GPU-2": Gpu(1, "GPU-2", pci_bus_id="00000000:3B:00.0")}
    known = {
        ("d", "p", "x"): Published("", address),
        ("d", "p", "y"): Published("", "0001:3b:00.0"),
    }
    here = Node("n1", gpus, published=known, by_name=False)
    assert place([one("x", "d", pool="p")], here).claims == [Claim("ns", "p", (1,), 0)]
    (why,) = place([one("y", "d", pool="p")], here).unplaced.values()
    assert "no GPU of this node has the address" in why


def test_what_a_driver_does_not_say_is_not_guessed_from_the_name() -> None:
    """Neither a device that its slices are without, nor one that they say is no GPU of here."""
    here = published(**{"gpu-1": Published("GPU-gone", "0000:01:00.0"), "gpu-2": Published()})
    gpus = {
        uuid: msgspec.structs.replace(gpu, pci_bus_id="0:01:00.0") for uuid, gpu in GPUS.items()
    }
    assert place([claim("gpu-1")], dataclasses.replace(here, gpus=gpus)).unplaced
    placed = place([one(f"gpu-{i}", "gpu.nvidia.com", pool="n1") for i in range(3)], here)
    assert not placed.claims
    placed = place([claim(f"gpu-{i}") for i in range(3)], here)
    assert not placed.claims
    assert [why.split()[-1] for why in placed.unplaced.values()] == ["it", "UUID", "address"]
    by_name = dataclasses.replace(here, by_name=True)
    assert place([claim("gpu-1")], by_name).unplaced
    assert place([one("gpu-3", "gpu.nvidia.com", pool="n1")], by_name).claims


def test_all_partitions_of_a_gpu_are_that_gpu() -> None:
    profiles = ["1g.10gb", "2g.20gb", "4g.40gb"]
    here = published(**{f"m{i}": Published(UUIDS[0], "", p) for i, p in enumerate(profiles)})
    placed = place([claim(f"m{i}", f"p{i}") for i in range(3)], here)
    shares = [c.share_ppm for c in placed.claims]
    assert shares == [WHOLE_PPM * n // 7 for n in (1, 2, 4)]
    assert WHOLE_PPM - 3 < sum(shares) <= WHOLE_PPM


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pods_that_share_a_partition_hold_it_once_together(count: int) -> None:
    """By one claim of theirs or by claims that share it; a whole GPU is for all an equal part."""
    here = published(m=Published(UUIDS[0], "", "2g.20gb"), g=Published(UUIDS[1]))
    held = [claim(device, f"p{i}") for i in range(count) for device in "mg"]
    claims = place([*held, *held], here).claims
    shares = [c.share_ppm for c in claims if c.gpus == (0,)]
    assert shares == [2 * WHOLE_PPM // 7 // count] * count
    assert 2 * WHOLE_PPM // 7 - count < sum(shares) <= 2 * WHOLE_PPM // 7
    assert [c.share_ppm for c in claims if c.gpus == (1,)] == [0] * count


def test_a_plugins_device_is_one_pods_also_while_two_are_listed() -> None:
    """The one that ends and the one that begins: neither is cut in two for a moment."""
    known = {"MIG-1": Instance(UUIDS[0], "2g.20gb")}
    placed = place([one("MIG-1", pod=pod) for pod in "ab"], node(instances=known))
    assert [c.share_ppm for c in placed.claims] == [2 * WHOLE_PPM // 7] * 2


def test_shares_of_a_device_that_one_pod_holds_are_one_device() -> None:
    """A device that may be allocated several times comes with an id of each share."""
    shares = b"".join(
        put(5, put(2, f"claim-{i}") + put(4, put(2, "gpu.nvidia.com") + put(3, "pool/7")
                                          + put(4, "m") + put(5, f"share-{i}")))
        for i in range(3)
    )  # fmt: skip
    held = parse_list(put(1, put(1, "p") + put(2, "ns") + put(3, put(1, "main") + shares)))
    assert held == [claim("m")] * 3
    here = published(m=Published(UUIDS[0], "", "2g.20gb"))
    assert place(held, here).claims == [Claim("ns", "p", (0,), 2 * WHOLE_PPM // 7)]


def test_resources_are_those_configured() -> None:
    held = [one("a", r) for r in ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "rdma/hca", "x/gpu")]
    assert [h.resource for h in wanted(held, DEFAULT)] == [
        "nvidia.com/gpu",
        "nvidia.com/mig-1g.5gb",
    ]
    assert [h.resource for h in wanted(held, ["x/*"])] == ["x/gpu"]
    assert wanted(held, []) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([
    *UUIDS[:2], f"{UUIDS[0]}::1", "MIG-1", "nvidia1/vgpu0", "GPU-x", ""])), max_size=12))  # fmt: skip
def test_every_device_is_placed_or_has_a_reason(given: list[tuple[int, str]]) -> None:
    held = [one(device, pod=f"p{pod}") for pod, device in given]
    placed = place(held, node())
    found = {claim.pod for claim in placed.claims} | {h.pod for h in placed.unplaced}
    assert found == {h.pod for h in held}
    for claim in placed.claims:
        assert 0 <= claim.share_ppm <= WHOLE_PPM
        assert claim.gpus


# ---- captured answers


def captured(captures: Path, name: str) -> list[Held]:
    """A recorded answer, through the wire."""
    said = json.loads((captures / "k8s_podresources" / name).read_text())["pod_resources"]
    data = b""
    for pod in said:
        containers = b"".join(
            put(3, put(1, c["name"]) + b"".join(
                put(2, put(1, d["resource_name"]) + b"".join(put(2, i) for i in d["device_ids"]))
                for d in c.get("devices") or []))
            for c in pod["containers"]
        )  # fmt: skip
        data += put(1, put(1, pod["name"]) + put(2, pod["namespace"]) + containers)
    held = parse_list(data)
    ids = [i for p in said for c in p["containers"] for d in c.get("devices") or []
           for i in d["device_ids"]]  # fmt: skip
    assert [h.device for h in held] == ids
    assert ids
    return held


def test_a_captured_answer_of_nvidia_is_placed_on_its_gpus(captures: Path) -> None:
    """GPUs and replicas by their UUIDs, MIG instances once the driver has named them."""
    held = wanted(captured(captures, "ceems_nvidia-pod-resources.json"), DEFAULT)
    uuids = sorted({replica_of(h.device)[0] for h in held if h.device.startswith("GPU-")})
    migs = sorted({replica_of(h.device)[0] for h in held if h.device.startswith("MIG-")})
    gpus = {uuid: Gpu(i, uuid, "NVIDIA A100-SXM4-40GB") for i, uuid in enumerate(uuids)}
    profiles = {
        replica_of(h.device)[0]: Instance(uuids[0], h.resource.partition("mig-")[2])
        for h in held
        if h.device.startswith("MIG-")
    }
    assert uuids
    assert migs
    placed = place(held, Node("n", gpus))
    assert {replica_of(h.device)[0] for h in placed.unplaced} == set(migs)
    assert not place(held, Node("n", gpus, profiles)).unplaced


def test_a_captured_answer_of_amd_is_refused_with_a_reason(captures: Path) -> None:
    held = captured(captures, "ceems_amd-pod-resources.json")
    assert wanted(held, DEFAULT) == []
    placed = place(wanted(held, ["amd.com/*"]), node())
    assert not placed.claims
    assert set(placed.unplaced.values()) == {"not the name of an NVIDIA device"}
    assert len(placed.unplaced) == len(set(held))


def test_captured_lists_of_mig_instances_are_read(captures: Path) -> None:
    text = next((captures / "nvidia_gpu_exporter_captures").glob("*h100-mig*")).read_text()
    found = parse(text)
    assert sorted(i.profile for i in found.values()) == ["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb"]
    assert all(i.gpu.startswith("GPU-") for i in found.values())


# ---- the driver's names of MIG instances


def program(tmp_path: Path, body: str) -> str:
    path = tmp_path / "smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_instances_are_asked_of_the_driver(tmp_path: Path) -> None:
    said = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)"
    names_ = MigNames(program(tmp_path, f"[ $1 = -L ] && echo '{said}'"))
    assert names_() == {"MIG-2": Instance("GPU-1", "1g.10gb")}


def test_a_driver_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    """And never with a SIGKILL: it shrugs off SIGTERM here, and is left alone."""
    marks = tmp_path / "marks"
    body = f"trap '' TERM; echo >> {marks}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    names_ = MigNames(program(tmp_path, body), wait_s=0.5)
    with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
        names_()
    with pytest.raises(Unavailable, match="hangs"):
        names_()
    (tmp_path / "go").touch()
    assert names_._left is not None
    names_._left.communicate(timeout=10)
    assert marks.read_text() == "\n"


def test_a_driver_that_fails_or_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ended with 9"):
        MigNames(program(tmp_path, "exit 9"))()
    with pytest.raises(Unavailable, match="No such file"):
        MigNames(str(tmp_path / "none"))()


# ---- the socket


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(tmp_path / "kubelet.sock").running() as fake:
        yield fake


def asked(fake: FakeKubelet, wait_s: float = 5.0) -> Kubelet:
    return Kubelet(fake.path, wait_s)


def test_a_kubelet_answers(kubelet: FakeKubelet) -> None:
    kubelet.pods = [FakePod("ns", "p", {"nvidia.com/gpu": UUIDS[:2]}), FakePod("ns", "web")]
    kubelet.allocatable = {"nvidia.com/gpu": UUIDS}
    assert asked(kubelet).held() == [one(UUIDS[0]), one(UUIDS[1])]
    assert asked(kubelet).allocatable() == [("nvidia.com/gpu", uuid) for uuid in UUIDS]


def test_a_large_answer_fits_and_a_huge_one_does_not(kubelet: FakeKubelet) -> None:
    kubelet.pods = [FakePod("ns", "p", {"r": ["d" * 500] * 20_000})]
    assert len(asked(kubelet).held()) == 20_000
    kubelet.raw = put(9, b"x" * (17 << 20))
    with pytest.raises(NoAnswer) as caught:
        asked(kubelet).held()
    assert caught.value.reason == "too large"


def test_a_new_socket_is_found(kubelet: FakeKubelet) -> None:
    client = asked(kubelet)
    kubelet.pods = [FakePod("ns", "web")]
    assert client.held() == []
    kubelet.stop()
    with pytest.raises(NoAnswer):
        client.held()
    kubelet.pods = [FakePod("ns", "p", {"r": ["d"]})]
    kubelet.start()
    assert client.held() == [one("d", "r")]


def test_no_socket_no_permission_no_service_and_no_answer_differ(kubelet: FakeKubelet) -> None:
    kubelet.allocatable = None
    with pytest.raises(NoAnswer) as caught:
        asked(kubelet).allocatable()
    assert caught.value.reason == "not served"
    kubelet.raw = b"hang"
    with pytest.raises(NoAnswer, match="deadline") as caught:
        asked(kubelet, 0.3).held()
    assert caught.value.reason == "no answer"
    kubelet.raw = b""
    with pytest.raises(NoAnswer, match="only begun") as caught:
        asked(kubelet).held()
    assert caught.value.reason == "no pods"
    kubelet.raw = b"\x0a\xff"
    with pytest.raises(NoAnswer, match="cut off") as caught:
        asked(kubelet).held()
    assert caught.value.reason == "malformed"
    kubelet.stop()
    kubelet.path.unlink(missing_ok=True)
    with pytest.raises(NoAnswer, match="no such file") as caught:
        asked(kubelet).held()
    assert caught.value.reason == "not there"
    kubelet.path.touch()
    with pytest.raises(NoAnswer, match="refused") as caught:
        asked(kubelet).held()
    assert caught.value.reason == "no answer"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_socket_that_may_not_be_opened_says_so(kubelet: FakeKubelet) -> None:
    kubelet.path.chmod(0)
    with pytest.raises(NoAnswer) as caught:
        asked(kubelet).held()
    assert caught.value.reason == "permission"


def test_somebody_else_on_the_socket_is_no_answer(tmp_path: Path) -> None:
    """A server that talks anything but gRPC."""
    pytest.importorskip("grpc")
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(16)
        server.settimeout(0.05)

        def serve() -> None:
            while not stop.is_set():
                try:
                    taken, _ = server.accept()
                except TimeoutError:
                    continue
                with taken:
                    try:
                        taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(NoAnswer):
                Kubelet(tmp_path / "s", 2.0).held()
        finally:
            stop.set()
            thread.join()


def test_without_grpcio_it_says_what_to_install(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(Refuse, match=r"pip install 'megawatch\[kubernetes\]'"):
        Kubelet(tmp_path / "s")


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    with pytest.raises(Refuse, match="longer than 107 bytes"):
        Kubelet(tmp_path / ("x" * 120))


@settings(max_examples=20)
@given(st.binary(max_size=50))
def test_whatever_is_sent_is_an_answer_or_none(data: bytes) -> None:
    try:
        pod_resources.parse_or_no_answer(data)
    except NoAnswer as error:
        assert error.reason == "malformed"


def test_allocatable_is_read_as_it_was_written() -> None:
    data = allocatable_response({"a": ["1", "2"], "b": []})
    assert parse_allocatable(data) == [("a", "1"), ("a", "2")]
    with pytest.raises(Reject, match="devices is a number"):
        parse_allocatable(put(1, 1))
