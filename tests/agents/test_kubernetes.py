"""Pods come and go, kubelets and agents restart: what is told of who held which GPU when."""

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.kubernetes import FILE, INSTANCES_EVERY_S, Pods, describe, open_pods
from agents.pod_devices import Instance
from agents.pod_resources import Held, Kubelet, NoAnswer
from agents.sampler import Sampler, Snapshot
from agents.source import Reading
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Refuse, Unavailable
from pipeline.ledger.check import check
from pipeline.outbox import Outbox
from pipeline.records import Allocation, Event, Gpu, Inventory, Record, id64
from pipeline.rows import by_table
from pipeline.settings import Settings, Site
from pipeline.spool import Spool
from pipeline.topics import ALLOCATIONS, decode_record, encode_record
from tests.agents.fake_kubelet import FakeKubelet, FakePod
from tests.agents.tiny_source import TinySource
from tests.pipeline.test_ledger import LATER, SITE, T0, Desk, who

RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-*", "gpu.nvidia.com")
UUIDS = [f"GPU-{i}" for i in range(4)]


def snapshot(node: str = "n1", uuids=UUIDS) -> Snapshot:
    gpus = tuple(Gpu(i, uuid, "NVIDIA H200") for i, uuid in enumerate(uuids))
    inventory = Inventory(site=SITE, node=node, from_ms=0, gpus=gpus)
    return Snapshot(T0, (inventory,), Reading((), ()))


class Stub:
    """A kubelet without a socket."""

    def __init__(self) -> None:
        self.now: list[Held] | NoAnswer = []
        self.all: list[tuple[str, str]] | NoAnswer = []

    def held(self) -> list[Held]:
        if isinstance(self.now, NoAnswer):
            raise self.now
        return self.now

    def allocatable(self) -> list[tuple[str, str]]:
        if isinstance(self.all, NoAnswer):
            raise self.all
        return self.all


class Labels:
    """An API server without one."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.away = False
        self.kept: set[tuple[str, str]] = set()

    def value(self, _namespace: str, pod: str) -> str:
        if self.away:
            raise Unavailable("away")
        return self.of.get(pod, "")

    def keep(self, pods: Collection[tuple[str, str]]) -> None:
        self.kept = set(pods)


def pod(name: str, *devices: str, namespace: str = "ns", resource: str = "nvidia.com/gpu"):
    return [Held(namespace, name, resource, device) for device in devices]


@dataclass
class Desktop:
    """A node whose pods a test moves by hand, and the agents that watch it, one after another."""

    folder: Path
    clock: ManualClock = field(default_factory=lambda: ManualClock(T0))
    kubelet: Stub = field(default_factory=Stub)
    labels: Labels | None = None
    instances: dict[str, Instance] = field(default_factory=dict)
    asked_instances: int = 0
    told: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self, node: str = "n1") -> None:
        """An agent starts."""
        self.pods = Pods(
            SITE, node, self.kubelet, RESOURCES, self.folder / FILE, self.clock, self.labels,
            self._instances,
        )  # fmt: skip
        self.pods.on_reading(snapshot(node))

    def _instances(self) -> dict[str, Instance]:
        self.asked_instances += 1
        return self.instances

    def at(self, second: float, *held: list[Held], times: int = 2) -> list[Record]:
        """Two answers, from a second from T0 on, and what they made known."""
        told: list[Record] = []
        self.kubelet.now = [one for group in held for one in group]
        for turn in range(times):
            self.clock.ms = T0 + round(second * 1000) + turn
            assert self.pods.poll()
            told += self.heard()
        return told

    def heard(self) -> list[Record]:
        """What the sampler takes next."""
        found = self.pods.read(self.clock.now_ms())
        self.told += found
        return found

    def spans(self) -> dict[tuple[str, tuple[int, ...], int], tuple[int, int | None]]:
        """What a store makes of all that was told: the newest assertion of each claim, seconds."""
        newest: dict[object, Allocation] = {}
        for record in self.told:
            if isinstance(record, Allocation):
                key = (record.source, record.tenant, record.workload, record.gpus, record.from_ms)
                known = newest.get(key)
                if known is None or known.asserted_at_ms <= record.asserted_at_ms:
                    newest[key] = record
        return {
            (a.workload, a.gpus, (a.from_ms - T0) // 1000): (
                a.share_ppm, None if a.until_ms is None else (a.until_ms - T0) // 1000)
            for a in newest.values()
        }  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Desktop:
    return Desktop(tmp_path)


# ---- intervals


def test_a_pod_comes_and_goes(desk: Desktop) -> None:
    (record,) = desk.at(10, pod("train", *UUIDS[:2], namespace="lab-a"))
    assert record == Allocation(
        site=SITE, source="kubernetes", tenant="lab-a", node="n1", from_ms=T0 + 10_000,
        workload="lab-a/train", account="lab-a", gpus=(0, 1), asserted_at_ms=T0 + 10_000,
    )  # fmt: skip
    assert decode_record(ALLOCATIONS, encode_record(record)) == record
    assert desk.at(20, pod("train", *UUIDS[:2], namespace="lab-a")) == []
    (end,) = desk.at(30)
    assert end == msgspec.structs.replace(record, until_ms=T0 + 30_000, asserted_at_ms=T0 + 30_001)
    assert desk.at(40) == []


def test_one_pod_goes_and_another_comes_within_a_poll(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]), pod("b", UUIDS[1]))
    desk.at(10, pod("c", UUIDS[0]), pod("b", UUIDS[1]))
    assert desk.spans() == {
        ("ns/a", (0,), 0): (0, 10), ("ns/c", (0,), 10): (0, None), ("ns/b", (1,), 0): (0, None),
    }  # fmt: skip


def test_a_pod_with_other_gpus_is_another_interval(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    desk.at(10, pod("a", UUIDS[0], UUIDS[2]))
    assert desk.spans() == {("ns/a", (0,), 0): (0, 10), ("ns/a", (0, 2), 10): (0, None)}


def test_a_kubelet_that_does_not_answer_ends_nothing(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    for reason in ("not there", "no answer", "malformed"):
        desk.kubelet.now = NoAnswer("gone", reason)
        desk.clock.advance(10)
        assert not desk.pods.poll()
        assert desk.pods.errors[reason] == 1
        assert desk.heard() == []
    assert desk.at(60, pod("a", UUIDS[0])) == []
    desk.at(70)
    assert desk.spans() == {("ns/a", (0,), 0): (0, 70)}


def test_before_the_inventory_is_known_nothing_begins_or_ends(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    desk.begin()
    desk.pods.on_reading(Snapshot(T0, (), Reading((), ())))
    desk.kubelet.now = []
    assert not desk.pods.poll()
    assert desk.pods.errors == {"no inventory": 1}
    desk.heard()
    assert desk.spans() == {("ns/a", (0,), 0): (0, None)}


def test_a_gpu_that_falls_off_the_bus_is_still_held(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[3]))
    desk.pods.on_reading(snapshot(uuids=UUIDS[:3]))
    assert desk.at(10, pod("a", UUIDS[3])) == []


def test_other_nodes_of_the_inventory_are_not_this_one(desk: Desktop) -> None:
    desk.pods = Pods(SITE, "n1", desk.kubelet, RESOURCES, desk.folder / "f", desk.clock)
    desk.pods.on_reading(snapshot("n2"))
    assert not desk.pods.poll()


def test_what_is_held_but_not_known_is_said_once_and_never_the_whole_node(desk: Desktop) -> None:
    """An allocation without GPUs would be all of them."""
    (event,) = desk.at(0, pod("a", "GPU-other"))
    assert isinstance(event, Event)
    assert event.kind == "pod_device_unknown"
    assert "ns/a nvidia.com/gpu GPU-other: no GPU of this node" in event.detail
    assert desk.at(10, pod("a", "GPU-other")) == []
    assert list(desk.pods.unplaced.values()) == ["no GPU of this node has this UUID"]
    assert desk.at(20) == []
    assert desk.pods.unplaced == {}
    assert len(desk.at(30, pod("a", "GPU-other"))) == 1


def test_of_a_pod_with_a_device_that_is_not_known_nothing_ends(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0], UUIDS[1]))
    desk.at(10, pod("a", UUIDS[0], "GPU-other"))
    assert desk.spans() == {("ns/a", (0, 1), 0): (0, None)}
    desk.at(20)
    assert desk.spans() == {("ns/a", (0, 1), 0): (0, 20)}


def test_a_clock_that_goes_back_ends_nothing_before_it_began(desk: Desktop) -> None:
    desk.at(100, pod("a", UUIDS[0]))
    desk.at(50, pod("a", UUIDS[0]))
    desk.at(60)
    assert desk.spans() == {("ns/a", (0,), 100): (0, 100)}


# ---- sharing


def replicas(*numbers: int, gpu: str = UUIDS[0]) -> list[str]:
    return [f"{gpu}::{number}" for number in numbers]


def test_replicas_are_stated_parts_where_their_number_is_known(desk: Desktop) -> None:
    desk.kubelet.all = [("nvidia.com/gpu", name) for name in replicas(0, 1, 2, 3)]
    desk.at(0, pod("a", *replicas(0)), pod("b", *replicas(1, 3)))
    assert desk.spans() == {
        ("ns/a", (0,), 0): (250_000, None), ("ns/b", (0,), 0): (500_000, None),
    }  # fmt: skip


def test_replicas_are_equal_parts_where_their_number_is_not(desk: Desktop) -> None:
    desk.kubelet.all = NoAnswer("old", "not served")
    desk.at(0, pod("a", *replicas(0)), pod("b", *replicas(1)))
    assert desk.spans() == {("ns/a", (0,), 0): (0, None), ("ns/b", (0,), 0): (0, None)}


def test_a_question_about_replicas_that_fails_changes_no_share(desk: Desktop) -> None:
    desk.kubelet.all = [("nvidia.com/gpu", name) for name in replicas(0, 1)]
    desk.at(0, pod("a", *replicas(0)))
    desk.begin()
    desk.kubelet.all = NoAnswer("busy", "no answer")
    assert not desk.pods.poll()
    assert desk.pods.errors == {"no answer": 1}
    desk.kubelet.all = [("nvidia.com/gpu", name) for name in replicas(0, 1)]
    desk.at(20, pod("a", *replicas(0)))
    desk.kubelet.all = []  # the GPU is unhealthy
    desk.at(30, pod("a", *replicas(0)))
    assert desk.spans() == {("ns/a", (0,), 0): (500_000, None)}


def test_a_pod_that_one_answer_is_without_goes_on(desk: Desktop) -> None:
    """A kubelet that has just begun may know some of its pods only."""
    desk.at(0, pod("a", UUIDS[0]), pod("b", UUIDS[1]))
    assert desk.at(10, pod("b", UUIDS[1]), times=1) == []
    assert desk.at(20, pod("a", UUIDS[0]), pod("b", UUIDS[1]), times=1) == []
    assert desk.at(30, pod("b", UUIDS[1]), times=1) == []
    desk.begin()
    desk.kubelet.now = NoAnswer("gone", "no answer")
    assert not desk.pods.poll()
    desk.at(50, pod("a", UUIDS[0]), pod("b", UUIDS[1]), times=1)
    desk.at(60, pod("b", UUIDS[1]), times=1)
    desk.at(70, pod("b", UUIDS[1]), times=1)
    assert desk.spans() == {("ns/a", (0,), 0): (0, 60), ("ns/b", (1,), 0): (0, None)}


def test_another_division_is_another_interval(desk: Desktop) -> None:
    desk.kubelet.all = [("nvidia.com/gpu", name) for name in replicas(0, 1)]
    desk.at(0, pod("a", *replicas(0)))
    desk.kubelet.all = [("nvidia.com/gpu", name) for name in replicas(0, 1, 2, 3)]
    desk.at(10, pod("a", *replicas(0)))
    assert desk.spans() == {("ns/a", (0,), 0): (500_000, 10), ("ns/a", (0,), 10): (250_000, None)}


def test_mig_instances_are_named_by_the_driver_and_seldom_asked_for(desk: Desktop) -> None:
    held = pod("a", "MIG-1", resource="nvidia.com/mig-3g.71gb")
    assert isinstance(desk.at(0, held)[0], Event)
    for second in range(10, 310, 10):
        desk.at(second, held)
    assert desk.asked_instances == 1 + 300 // int(INSTANCES_EVERY_S)
    desk.instances = {"MIG-1": Instance(UUIDS[2], "3g.71gb")}
    desk.at(700, held)
    assert desk.spans() == {("ns/a", (2,), 700): (428_571, None)}
    desk.at(1400, held)
    assert desk.asked_instances == 3


def test_a_driver_that_does_not_name_instances_ends_nothing(desk: Desktop) -> None:
    held = pod("a", "MIG-1", resource="nvidia.com/mig-3g.71gb")
    desk.instances = {"MIG-1": Instance(UUIDS[2], "3g.71gb")}
    desk.at(0, held)
    desk.instances = {}
    desk.begin()
    desk.at(10, held)
    assert desk.spans() == {("ns/a", (2,), 0): (428_571, None)}


# ---- restarts of the agent


def test_an_agent_that_comes_back_goes_on(desk: Desktop) -> None:
    """And tells again what a crash may have kept from the spool: the same claims."""
    desk.at(0, pod("a", UUIDS[0]))
    desk.told.clear()
    desk.begin()
    desk.at(100, pod("a", UUIDS[0]))
    assert desk.spans() == {("ns/a", (0,), 0): (0, None)}
    desk.at(110)
    assert desk.spans() == {("ns/a", (0,), 0): (0, 110)}


def test_what_went_while_no_agent_looked_ends_when_it_was_last_seen(
    desk: Desktop, caplog: pytest.LogCaptureFixture
) -> None:
    desk.at(0, pod("a", UUIDS[0]), pod("b", UUIDS[1]))
    desk.at(50, pod("a", UUIDS[0]), pod("b", UUIDS[1]))
    desk.begin()
    desk.at(5000, pod("b", UUIDS[1]))
    assert desk.spans() == {("ns/a", (0,), 0): (0, 50), ("ns/b", (1,), 0): (0, None)}
    assert "ns/a went unseen: it ends when it was last seen" in caplog.text
    desk.at(5010)
    assert desk.spans()["ns/b", (1,), 0] == (0, 5010)


@pytest.mark.parametrize("taken", [0, 1])
def test_an_end_that_the_spool_may_not_have_is_told_again(desk: Desktop, taken: int) -> None:
    """Crashed before the sampler took it, or after: it did not ask again, so nobody knows."""
    desk.at(0, pod("a", UUIDS[0]))
    desk.clock.ms = T0 + 10_000
    desk.kubelet.now = []
    desk.pods.poll()
    desk.pods.poll()
    for _ in range(taken):
        desk.pods.read(T0)
    desk.begin()
    (end,) = desk.heard()
    assert isinstance(end, Allocation)
    assert end.until_ms == T0 + 10_000


def test_an_end_that_is_in_the_spool_is_forgotten(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    desk.at(10)
    desk.at(20)
    desk.at(30)
    desk.begin()
    assert desk.heard() == []


def test_a_node_with_another_name_ends_what_the_old_one_held(desk: Desktop) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    desk.at(10, pod("a", UUIDS[0]))
    desk.begin("n9")
    desk.at(20, pod("a", UUIDS[0]))
    ended, begun = desk.told[-2:]
    assert isinstance(ended, Allocation)
    assert isinstance(begun, Allocation)
    assert (ended.node, ended.until_ms) == ("n1", T0 + 10_001)
    assert (begun.node, begun.from_ms) == ("n9", T0 + 20_000)


@pytest.mark.parametrize("content", [b"", b"{", b'{"open":[{}]}', b"\xff", b"[]", b"0" * 99])
def test_a_damaged_file_is_said_and_does_not_stop_the_agent(
    desk: Desktop, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    desk.at(0, pod("a", UUIDS[0]))
    (desk.folder / FILE).write_bytes(content)
    desk.begin()
    assert desk.pods.errors == {"file": 1}
    assert "never ended" in caplog.text
    desk.at(10, pod("a", UUIDS[0]))
    desk.begin()
    assert desk.pods.errors == {}


def test_a_disk_that_takes_nothing_costs_the_restart_only(desk: Desktop) -> None:
    desk.at(0)
    (desk.folder / FILE).unlink()
    (desk.folder / FILE).mkdir()
    (desk.folder / FILE / "x").touch()
    desk.at(10, pod("a", UUIDS[0]))
    desk.at(20)
    assert desk.pods.errors == {"file": 4}
    assert desk.spans() == {("ns/a", (0,), 10): (0, 20)}


polls = st.lists(
    st.tuples(
        st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=5),
        st.sampled_from(["", "", "", "restart", "silent", "blink"]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(polls)
def test_what_is_told_is_what_was_seen(tmp_path_factory, steps) -> None:
    """At any time the open intervals are what the last answer said, whatever happened between."""
    desk = Desktop(tmp_path_factory.mktemp("pods"))
    second = 0
    for held, happens in steps:
        second += 10
        if happens == "restart":
            desk.begin()
        if happens == "silent":
            desk.kubelet.now = NoAnswer("gone", "no answer")
            assert not desk.pods.poll()
            continue
        if happens == "blink":
            desk.at(second - 5, times=1)
        desk.at(second, *(pod(f"p{name}", UUIDS[gpu]) for name, gpu in held))
        now = {(w, g) for (w, g, _), (_, until) in desk.spans().items() if until is None}
        want: dict[str, list[int]] = {}
        for name, gpu in sorted(held):
            want.setdefault(f"ns/p{name}", []).append(gpu)
        assert now == {(name, tuple(gpus)) for name, gpus in want.items()}
    for (_, _, since), (_, until) in desk.spans().items():
        assert until is None or until >= since


# ---- tenants by label


def test_a_label_is_the_tenant_and_its_absence_the_namespace(tmp_path: Path) -> None:
    labels = Labels()
    labels.of["a"] = "acme"
    desk = Desktop(tmp_path, labels=labels)
    desk.at(0, pod("a", UUIDS[0]), pod("b", UUIDS[1]))
    assert [(r.tenant, r.account) for r in desk.told if isinstance(r, Allocation)] == [
        ("acme", "ns"), ("ns", "ns"),
    ]  # fmt: skip
    assert labels.kept == {("ns", "a"), ("ns", "b")}


def test_while_the_label_is_not_known_nothing_is_told_and_nothing_lost(tmp_path: Path) -> None:
    labels = Labels()
    labels.of["a"] = "acme"
    labels.away = True
    desk = Desktop(tmp_path, labels=labels)
    assert desk.at(0, pod("a", UUIDS[0]), pod("b", UUIDS[1])) == []
    desk.begin()
    assert desk.at(10, pod("a", UUIDS[0]), pod("b", UUIDS[1])) == []
    (gone,) = desk.at(20, pod("a", UUIDS[0]))
    labels.away = False
    (known,) = desk.at(30, pod("a", UUIDS[0]))
    assert isinstance(gone, Allocation)
    assert isinstance(known, Allocation)
    assert (gone.tenant, gone.from_ms, gone.until_ms) == ("ns", T0, T0 + 20_000)
    assert (known.tenant, known.from_ms, known.until_ms) == ("acme", T0, None)
    assert desk.pods.errors["label"] == 6


# ---- with a kubelet


def until(ready: Callable[[], object]) -> None:
    end_s = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.005)


def heard(pods: Pods, told: list[Record], count: int) -> bool:
    """Whether so many records were told by now."""
    told += pods.read(0)
    return len(told) >= count


def test_a_thread_asks_a_kubelet_that_restarts(tmp_path: Path) -> None:
    """The socket is made anew, as at a restart; in between nothing ends."""
    fake = FakeKubelet(tmp_path / "s")
    told: list[Record] = []
    with fake.running():
        fake.pods = [FakePod("lab-a", "train", {"nvidia.com/gpu": UUIDS[:2], "rdma/hca": ["x"]})]
        pods = Pods(SITE, "n1", Kubelet(fake.path), RESOURCES, tmp_path / FILE, SystemClock())
        pods.on_reading(snapshot())
        pods.start(10, 30)
        try:
            until(lambda: heard(pods, told, 1))
            fake.stop()
            until(lambda: pods.errors)
            fake.pods.append(FakePod("b", "web", claims=[("gpu.nvidia.com", "n1", "gpu-3")]))
            fake.start()
            until(lambda: heard(pods, told, 2))
        finally:
            pods.close()
        pods.close()
    assert [(r.workload, r.gpus, r.until_ms) for r in told if isinstance(r, Allocation)] == [
        ("lab-a/train", (0, 1), None), ("b/web", (3,), None),
    ]  # fmt: skip
    assert (pods.holders, pods.seen_ms > 0) == (2, True)


def test_it_opens_as_it_is_configured(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("grpc")
    site = Site(name=SITE, node="n1")
    pods = open_pods(site, str(tmp_path / "s"), RESOURCES, "", tmp_path, ManualClock(T0))
    pods.on_reading(snapshot())
    assert not pods.poll()
    assert pods.errors == {"not there": 1}
    pods.close()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Refuse, match="pod_label"):
        open_pods(site, str(tmp_path / "s"), RESOURCES, "l", tmp_path, ManualClock(T0))


def test_closing_waits_for_no_kubelet(tmp_path: Path) -> None:
    with FakeKubelet(tmp_path / "s").running() as fake:
        fake.raw = b"hang"
        pods = Pods(SITE, "n1", Kubelet(fake.path, 3.0), RESOURCES, tmp_path / FILE, SystemClock())
        pods.on_reading(snapshot())
        pods.start(10, 30)
        until(lambda: fake.asked)
        begun_s = time.monotonic()
        assert pods.read(0) == []
        pods.close()
        assert time.monotonic() - begun_s < 2
        fake.hang.set()
        until(lambda: not pods._thread or not pods._thread.is_alive())


def test_the_doctor_says_what_it_found(tmp_path: Path) -> None:
    with FakeKubelet(tmp_path / "s").running() as fake:
        fake.pods = [
            FakePod("a", "p", {"nvidia.com/gpu": UUIDS[:2]}), FakePod("b", "q", {"rdma/hca": ["x"]}),
        ]  # fmt: skip
        assert describe(fake.path, RESOURCES) == [
            f"{fake.path} answers: 1 pods hold 2 GPUs or parts of them",
            "not counted, not in [kubernetes] resources: rdma/hca",
        ]
        fake.raw = b"\x0a"
        assert "ask who answers there" in describe(fake.path, RESOURCES)[0]
    (missing,) = describe(tmp_path / "none", RESOURCES)
    assert "no such file" in missing
    assert "mount the kubelet's pod-resources folder" in missing


def test_the_sampler_keeps_what_pods_tell_beside_samples(tmp_path: Path) -> None:
    """Under the topic of allocations, keyed by the node, in the transaction of the tick."""
    source = TinySource()
    clock = ManualClock(T0)
    kubelet = Stub()
    kubelet.now = pod("a", "GPU-0-1")
    pods = Pods("test", "node-0", kubelet, RESOURCES, tmp_path / FILE, clock)
    settings_ = Settings(site=Site(name="test", node="node-0"))
    with contextlib.closing(Spool(tmp_path / "spool", 1 << 24, clock)) as spool:
        sampler = Sampler(source, spool, settings_, clock, [pods], pods.read)
        clock.ms = sampler.step()
        assert not pods.poll()
        sampler.step()
        assert pods.poll()
        clock.ms = sampler.step()
        sampler.step()
        outbox = Outbox(spool)
        stored = [outbox.fetch(i) for i in outbox.records(100)]
        outbox.close()
    (found,) = [one for one in stored if one and one.topic == ALLOCATIONS]
    record = decode_record(ALLOCATIONS, found.payload)
    assert isinstance(record, Allocation)
    assert (found.key, record.workload, record.gpus) == ("node-0", "ns/a", (1,))


# ---- through the ledger


@pytest.mark.parametrize("known", [True, False])
def test_four_pods_on_one_gpu_divide_its_energy_to_the_millijoule(store, tmp_path, known) -> None:
    """Time slicing, one pod leaves, one comes later: holders and nobody are the device."""
    (tmp_path / "pods").mkdir()
    node = Desktop(tmp_path / "pods")
    if known:
        node.kubelet.all = [("nvidia.com/gpu.shared", name) for name in replicas(0, 1, 2, 3)]
    else:
        node.kubelet.all = NoAnswer("old", "not served")

    def some(*numbers: int) -> list[list[Held]]:
        return [pod(f"p{n}", *replicas(n), namespace=f"lab-{n}", resource="nvidia.com/gpu.shared")
                for n in numbers]  # fmt: skip

    node.at(100, *some(0, 1, 2))
    node.at(303.337, *some(0, 1, 2, 3))
    node.at(611.111, *some(0, 2, 3))
    node.at(700)
    for table, columns in by_table(node.told, LATER).items():
        store.insert(table, columns, f"pods-{table}")
    books = Desk(store, tmp_path, ManualClock(LATER))
    books.samples(range(900), watts=333.3)
    assert {outcome.state for outcome in books.close()} == {"closed"}
    found = store.query(
        "SELECT tenant, workload, toInt64(sum(energy_j) * 1000), sum(allocated_ms)"
        " FROM ledger GROUP BY tenant, workload"
    ).rows
    energy_mj = {(tenant, workload): int(energy) for tenant, workload, energy, _ in found}
    device_mj = 899 * 333_300
    assert sum(energy_mj.values()) == device_mj
    assert check(store, SITE, T0, LATER).broken == []
    mine = {n: energy_mj[who(f"lab-{n}", f"lab-{n}/p{n}")] for n in range(4)}
    # Readings inside each stretch between changes; a third or a quarter where 3 or 4 hold.
    three, four, again = 199 + 4 + 0, 307, 88
    assert mine[0] == pytest.approx(mine[2], abs=device_mj // 1_000_000)
    if known:
        assert mine[0] == pytest.approx((three + four + again) * 333_300 / 4, rel=0.02)
        assert mine[3] == pytest.approx((four + again) * 333_300 / 4, rel=0.02)
    else:
        assert mine[0] == pytest.approx((three / 3 + four / 4 + again / 3) * 333_300, rel=0.02)
        assert energy_mj[0, 0] == pytest.approx((100 + 200) * 333_300, rel=0.02)
    assert id64("", "ns") not in {tenant for tenant, _ in energy_mj}
