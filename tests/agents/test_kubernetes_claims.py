"""Claims on devices (DRA), from a kubelet and an API server to allocations and their energy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.kubernetes import FILE, Pods, open_pods
from agents.pod_api import Denied
from agents.pod_devices import Name, Published
from agents.pod_resources import Held, Kubelet
from agents.pod_slices import EVERY_S, Known, ResourceSlices
from agents.sampler import Snapshot
from agents.source import Reading
from pipeline.clock import ManualClock
from pipeline.errors import Unavailable
from pipeline.ledger.check import check
from pipeline.records import Allocation, Event, Gpu, Inventory
from pipeline.rows import by_table
from pipeline.settings import Site
from tests.agents.fake_kubelet import FakeKubelet, FakePod
from tests.agents.pod_api_server import GROUP, ApiServer, a_slice, attributes, serving
from tests.agents.test_kubernetes import RESOURCES, UUIDS, Desktop, snapshot
from tests.pipeline.test_ledger import LATER, SITE, T0, Desk, who

NV = "gpu.nvidia.com"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    (tmp_path / "account").mkdir()
    with serving(tmp_path / "account") as server:
        yield server


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(tmp_path / "s").running() as fake:
        yield fake


class Watched:
    """An agent's pods by a kubelet's socket and an API server, and a clock that stands still."""

    def __init__(self, folder: Path, kubelet: FakeKubelet, api: ApiServer) -> None:
        self.clock = ManualClock(T0)
        known = Known(ResourceSlices("n1", api.client()), self.clock)
        self.pods = Pods(
            SITE, "n1", Kubelet(kubelet.path), RESOURCES, folder / FILE, self.clock, slices=known
        )
        self.pods.on_reading(snapshot())

    def poll(self) -> tuple[list[tuple[str, tuple[int, ...], int, bool]], list[str]]:
        """Allocations by workload, GPUs, share, and whether they ended; what events say."""
        self.clock.advance(10)
        assert self.pods.poll()
        told = self.pods.read(0)
        return [
            (r.workload, r.gpus, r.share_ppm, r.until_ms is not None)
            for r in told
            if isinstance(r, Allocation)
        ], [r.detail for r in told if isinstance(r, Event)]


# ---- with a kubelet and an API server


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_a_claim_on_a_device_of_any_name_is_an_allocation(tmp_path, kubelet, api, version) -> None:
    """In a pool of any name; other drivers' claims are not looked at."""
    api.serves(version, [
        a_slice({"fast-blue": attributes(type="gpu", uuid=UUIDS[2], minor=0),
                 "part-1": attributes(type="mig", uuid="MIG-9", parentUUID=UUIDS[1],
                                      profile="3g.71gb")},
                version=version, pool="rack-7/left", count=2),
        a_slice(None, version=version, pool="rack-7/left", count=2),
    ])  # fmt: skip
    kubelet.pods = [
        FakePod("lab-a", "train", claims=[(NV, "rack-7/left", "fast-blue"), ("dra.net", "n1", "x")]),
        FakePod("lab-b", "web", claims=[(NV, "rack-7/left", "part-1")]),
    ]  # fmt: skip
    watched = Watched(tmp_path, kubelet, api)
    assert watched.poll() == (
        [("lab-a/train", (2,), 0, False), ("lab-b/web", (1,), 428_571, False)], [],
    )  # fmt: skip
    for _ in range(3):
        watched.clock.advance(2 * EVERY_S)
        assert watched.poll() == ([], [])
    assert [one.path.split("/")[3] for one in api.asked].count(version) == 1
    kubelet.pods = [FakePod("kube-system", "dns")]
    watched.poll()
    assert watched.poll()[0] == [
        ("lab-a/train", (2,), 0, True), ("lab-b/web", (1,), 428_571, True),
    ]  # fmt: skip


def test_the_driver_is_believed_where_its_names_count_otherwise(tmp_path, kubelet, api) -> None:
    """NVIDIA's number minors, ours are NVML's indices: the two may run in opposite directions."""
    api.serves("v1", [a_slice({f"gpu-{3 - i}": attributes(uuid=UUIDS[i]) for i in range(4)})])
    kubelet.pods = [FakePod("ns", f"p{i}", claims=[(NV, "n1", f"gpu-{i}")]) for i in range(4)]
    assert [one[:2] for one in Watched(tmp_path, kubelet, api).poll()[0]] == [
        (f"ns/p{i}", (3 - i,)) for i in range(4)
    ]


@pytest.mark.parametrize("why", ["403", "401", "404", "token"])
def test_without_slices_nvidias_names_do_until_they_may_be_read(
    tmp_path, kubelet, api, why
) -> None:
    if why == "token":
        token = (api.folder / "token").read_text()
        (api.folder / "token").unlink()
    elif why != "404":
        api.answers[f"{GROUP}/v1/resourceslices"] = int(why), b"{}"
    kubelet.pods = [FakePod("ns", "a", claims=[(NV, "n1", "gpu-1")])]
    watched = Watched(tmp_path, kubelet, api)
    assert watched.poll() == ([("ns/a", (1,), 0, False)], [])
    assert watched.pods.errors == {"slices": 1}
    if why == "token":
        (api.folder / "token").write_text(token)
    api.serves("v1", [a_slice({"gpu-1": attributes(uuid=UUIDS[1])})])
    asked = len(api.asked)
    for _ in range(2):
        watched.clock.advance((EVERY_S - 30) / 2)
        assert watched.poll() == ([], [])
    assert len(api.asked) == asked
    assert watched.poll() == ([], [])  # the same GPU: the same interval
    assert len(api.asked) == asked + 1


def test_while_the_api_server_does_not_answer_nothing_is_guessed_and_nothing_ends(
    tmp_path, kubelet, api
) -> None:
    api.serves("v1", [a_slice({"gpu-1": attributes(uuid=UUIDS[2])})])
    kubelet.pods = [FakePod("ns", "a", claims=[(NV, "n1", "gpu-1")])]
    Watched(tmp_path, kubelet, api).poll()
    api.answers[f"{GROUP}/v1/resourceslices"] = 503, b"{}"
    again = Watched(tmp_path, kubelet, api)
    again.pods.read(0)
    kubelet.pods.append(FakePod("ns", "b", claims=[(NV, "n1", "gpu-3")]))
    told, events = again.poll()
    assert told == []
    assert len(events) == 2
    assert "ns/b gpu.nvidia.com gpu-3: no complete pool" in events[1]
    assert again.poll() == ([], [])
    kubelet.pods = kubelet.pods[1:]
    again.poll()
    assert again.poll()[0] == [("ns/a", (2,), 0, True)]


def test_a_pool_that_is_being_changed_is_waited_for(tmp_path, kubelet, api) -> None:
    new = a_slice({"gpu-1": attributes(uuid=UUIDS[1])}, generation=2, count=2)
    api.serves("v1", [a_slice({"gpu-1": attributes(uuid=UUIDS[3])}), new])
    kubelet.pods = [FakePod("ns", "a", claims=[(NV, "n1", "gpu-1")])]
    watched = Watched(tmp_path, kubelet, api)
    assert watched.poll()[0] == []
    api.serves("v1", [new, a_slice(None, generation=2, count=2)])
    watched.clock.advance(EVERY_S)
    assert watched.poll()[0] == [("ns/a", (1,), 0, False)]


def test_it_opens_with_the_clusters_api_server(tmp_path, kubelet, api, monkeypatch) -> None:
    monkeypatch.setattr("agents.pod_api.in_cluster.__defaults__", (api.folder, api.env))
    api.serves("v1", [a_slice({"x": attributes(uuid=UUIDS[3])}, pool="p")])
    kubelet.pods = [FakePod("ns", "a", claims=[(NV, "p", "x")])]
    site = Site(name=SITE, node="n1")
    pods = open_pods(site, str(kubelet.path), RESOURCES, "", tmp_path, ManualClock(T0))
    pods.on_reading(snapshot())
    assert pods.poll()
    (record,) = pods.read(0)
    assert isinstance(record, Allocation)
    assert record.gpus == (3,)


# ---- by hand


class Source:
    """Slices that a test changes."""

    def __init__(self) -> None:
        self.now: dict[Name, Published] | Unavailable = {}

    def __call__(self) -> dict[Name, Published]:
        if isinstance(self.now, Unavailable):
            raise self.now
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def desk(tmp_path: Path, source: Source) -> Desktop:
    (tmp_path / "pods").mkdir()
    made = Desktop(tmp_path / "pods")
    begin(made, source)
    return made


def begin(desk: Desktop, source: Source) -> None:
    desk.pods = Pods(
        SITE, "n1", desk.kubelet, RESOURCES, desk.folder / FILE, desk.clock,
        slices=Known(source, desk.clock),
    )  # fmt: skip
    desk.pods.on_reading(snapshot())


def claims(**devices: str) -> list[Held]:
    return [Held(f"lab-{pod}", pod, NV, device, "n1") for pod, device in devices.items()]


def test_the_kubelets_thread_asks_and_a_tick_never_does(desk: Desktop, source: Source) -> None:
    """What the sampler calls raises nothing, asks nobody, whatever state the API server is in."""

    def asked() -> dict[Name, Published]:
        raise AssertionError("asked in a tick")

    desk.pods = Pods(SITE, "n1", desk.kubelet, RESOURCES, desk.folder / FILE, desk.clock,
                     slices=Known(asked, desk.clock))  # fmt: skip
    desk.kubelet.now = claims(a="gpu-1")
    desk.pods.on_reading(snapshot())
    assert desk.pods.read(T0) == []
    with pytest.raises(AssertionError, match="asked in a tick"):
        desk.pods.poll()


def test_without_claims_nobody_is_asked(tmp_path, kubelet, api) -> None:
    """A device plugin's devices need no slices; nor do other drivers' claims."""
    api.serves("v1", [])
    kubelet.pods = [
        FakePod("ns", "a", {"nvidia.com/gpu": UUIDS[:2]}, claims=[("dra.net", "n1", "nic-0")]),
    ]  # fmt: skip
    assert Watched(tmp_path, kubelet, api).poll() == ([("ns/a", (0, 1), 0, False)], [])
    assert api.asked == []


def test_a_gpu_that_comes_may_take_anothers_name(desk: Desktop, source: Source) -> None:
    """Then what was published before is not believed; who held the old one goes on holding it."""
    source.now = {(NV, "n1", "gpu-1"): Published(UUIDS[1])}
    desk.at(0, claims(a="gpu-1"))
    source.now = {(NV, "n1", "gpu-1"): Published("GPU-new")}
    gpus = tuple(Gpu(i, uuid, "NVIDIA H200") for i, uuid in enumerate([*UUIDS, "GPU-new"]))
    inventory = Inventory(site=SITE, node="n1", from_ms=0, gpus=gpus)
    desk.pods.on_reading(Snapshot(T0, (inventory,), Reading((), ())))
    desk.at(10, claims(a="gpu-1"))
    desk.at(20, claims(b="gpu-1"))
    assert desk.spans() == {("lab-a/a", (1,), 0): (0, 20)}
    desk.at(EVERY_S, claims(b="gpu-1"))
    assert desk.spans()["lab-b/b", (4,), int(EVERY_S)] == (0, None)


def test_a_right_that_is_taken_away_leaves_what_is_known(desk: Desktop, source: Source) -> None:
    source.now = {(NV, "n1", "gpu-1"): Published(UUIDS[3])}
    desk.at(0, claims(a="gpu-1"))
    source.now = Denied("403")
    desk.at(EVERY_S, claims(a="gpu-1", b="gpu-2"))
    assert desk.spans() == {
        ("lab-a/a", (3,), 0): (0, None), ("lab-b/b", (2,), int(EVERY_S)): (0, None),
    }  # fmt: skip


# ---- through the ledger


def test_partitions_divide_a_gpus_energy_to_the_millijoule(store, desk, source, tmp_path) -> None:
    """A MIG instance alone, one that two pods share, one that comes later, and slices of nobody."""
    source.now = {
        (NV, "n1", "big"): Published(UUIDS[0], "", "3g.71gb"),
        (NV, "n1", "mid"): Published(UUIDS[0], "", "2g.35gb"),
        (NV, "n1", "one"): Published(UUIDS[0], "", "1g.18gb"),
    }
    desk.at(100, claims(a="big", b="mid", c="mid"))
    desk.at(303.337, claims(a="big", b="mid", c="mid", d="one"))
    desk.at(611.111, claims(a="big", b="mid", d="one"))
    for table, columns in by_table(desk.told, LATER).items():
        store.insert(table, columns, f"claims-{table}")
    books = Desk(store, tmp_path, ManualClock(LATER))
    books.samples(range(900), watts=333.3)
    assert {outcome.state for outcome in books.close()} == {"closed"}
    found = store.query(
        "SELECT tenant, workload, toInt64(sum(energy_j) * 1000) FROM ledger GROUP BY tenant, workload"
    ).rows
    energy_mj = {(tenant, workload): int(energy) for tenant, workload, energy in found}
    device_mj = 899 * 333_300
    assert sum(energy_mj.values()) == device_mj
    assert check(store, SITE, T0, LATER).broken == []
    mine = {n: energy_mj[who(f"lab-{n}", f"lab-{n}/{n}")] for n in "abcd"}
    assert mine["a"] == pytest.approx(800 * 333_300 * 3 / 7, rel=0.01)
    assert mine["b"] == pytest.approx((511 + 2 * 289) * 333_300 / 7, rel=0.01)
    assert mine["c"] == pytest.approx(511 * 333_300 / 7, rel=0.01)
    assert mine["d"] == pytest.approx(597 * 333_300 / 7, rel=0.01)
