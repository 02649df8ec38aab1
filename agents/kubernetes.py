"""Which pods hold the node's GPUs, asked of its kubelet beside sampling: allocations by themselves.

A thread of its own asks every 10 s, halfway between ticks, and tells what began and what ended.
A kubelet that does not answer ends nothing. Records reach the spool in the sampler's thread, so
that the spool has one writer; until it took them they are in the file that outlives the agent.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from agents.mig_names import MigNames
from agents.pod_devices import (
    Claim,
    Instance,
    Name,
    Node,
    claimed,
    is_unknown_instance,
    place,
    replica_of,
    replicas_of,
    wanted,
)
from agents.pod_intervals import SOURCE, Interval, Key, State, ended, follow, load, save
from agents.pod_labels import PodLabels
from agents.pod_resources import Held, Kubelet, NoAnswer
from agents.pod_slices import Known, open_slices
from agents.pod_turns import Seldom
from agents.sampler import Snapshot
from pipeline.clock import Clock
from pipeline.errors import Refuse, Unavailable
from pipeline.records import Allocation, Event, Gpu, Inventory, Record, id64
from pipeline.settings import Site

log = logging.getLogger(__name__)

PERIOD_MS: Final = 10_000
LEAVE_S: Final = 0.5
"""How long `close` waits for a question that is under way."""
INSTANCES_EVERY_S: Final = 300.0
"""The driver is asked about a MIG instance that it does not know at most so often."""
FILE: Final = "kubernetes.json"
_MAX_TOLD: Final = 1024


class Asked(Protocol):
    """What is needed of a kubelet."""

    def held(self) -> list[Held]:
        """Every device of every pod. Raises NoAnswer."""
        ...

    def allocatable(self) -> list[tuple[str, str]]:
        """Resource and name of every device. Raises NoAnswer."""
        ...


class Labels(Protocol):
    """What is needed of the API server."""

    def value(self, namespace: str, pod: str) -> str:
        """The tenant's label, empty if there is none. Raises Unavailable."""
        ...

    def keep(self, pods: Collection[tuple[str, str]]) -> None:
        """Forget the others."""
        ...


class Pods:
    """The pods of one node. One thread calls `poll` (or `start` once), another the rest.

    errors: polls without an answer, and other trouble, by reason. unplaced: devices that are held
    by pods but are not known to be of this node, with the reason. seen_ms: the last answer.
    """

    def __init__(
        self,
        site: str,
        node: str,
        kubelet: Asked,
        resources: Sequence[str],
        file: Path,
        clock: Clock,
        labels: Labels | None = None,
        instances: Callable[[], Mapping[str, Instance]] = dict,
        slices: Known | None = None,
    ) -> None:
        self.errors: Final[Counter[str]] = Counter()
        self.unplaced: Mapping[Held, str] = {}
        self.holders = 0
        self.seen_ms = 0
        self._site, self._node = site, node
        self._kubelet = kubelet
        self._resources = tuple(resources)
        self._file = file
        self._clock = clock
        self._labels = labels
        self._ask_instances = instances
        self._instances_turn = Seldom(clock, INSTANCES_EVERY_S)
        self._instances: dict[str, Instance] = {}
        self._slices = slices or Known(None, clock)
        self._replicas: dict[str, int] = {}
        self._inventories: tuple[Inventory, ...] = ()
        self._gpus: dict[str, Gpu] = {}
        self._told: set[Held] = set()
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ready: list[Record] = []
        self._given: list[Record] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._open: dict[Key, Interval] = {}
        self._restore()
        self._away = frozenset(self._open)

    def start(self, tick_ms: int, period_ms: int = PERIOD_MS) -> None:
        """Poll in a thread, between ticks of `tick_ms`; nodes of a site at different ones."""
        ticks = max(1, period_ms // tick_ms)
        phase_ms = id64(self._site, self._node) % ticks * tick_ms + tick_ms // 2

        def run() -> None:
            while not self._stop.is_set():
                self.poll()
                ahead_ms = (phase_ms - self._clock.now_ms()) % period_ms or period_ms
                self._clock.wait(self._stop, ahead_ms / 1000)

        self._thread = threading.Thread(target=run, name="pods", daemon=True)
        self._thread.start()

    def on_reading(self, snapshot: Snapshot) -> None:
        """The sampler's word on which GPUs there are; nothing is asked before it came."""
        self._inventories = snapshot.inventories

    def on_record(self, record: Record) -> None:
        """The source's records say nothing about pods."""

    def read(self, _now_ms: int) -> list[Record]:
        """What is to be told since the last call, which by now is in the spool. Never waits."""
        with self._lock:
            self._given, self._ready = self._ready, []
            return self._given

    def close(self) -> None:
        """Stop asking; a question under way is left behind. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LEAVE_S)

    def poll(self) -> bool:
        """Ask once; False if that told nothing new about who holds what."""
        node = self._learn()
        if not node.gpus:
            self.errors["no inventory"] += 1
            return False
        try:
            held = wanted(self._kubelet.held(), self._resources)
            node = self._complete(held, node)
        except NoAnswer as error:
            self.errors[error.reason] += 1
            self._warn("kubelet", str(error))
            return False
        self._said.pop("kubelet", None)
        self._settle(held, node)
        return True

    def _learn(self) -> Node:
        """GPUs that are lost stay known: a pod goes on holding them."""
        known = len(self._gpus)
        for inventory in self._inventories:
            if inventory.node == self._node:
                self._gpus.update({gpu.uuid: gpu for gpu in inventory.gpus})
        if len(self._gpus) > known:
            # A GPU that came while the agent ran may have the name that another one had.
            self._slices.forget()
        return Node(
            self._node, self._gpus, self._instances, self._replicas,
            self._slices.devices, self._slices.by_name,
        )  # fmt: skip

    def _complete(self, held: Sequence[Held], node: Node) -> Node:
        """Ask for what only some nodes need: counts of replicas, names of MIG instances."""
        devices = [one.device for one in held]
        if any(replica_of(device)[1] is not None for device in devices):
            try:
                names = {device for _, device in self._kubelet.allocatable()}
            except NoAnswer as error:
                # Another failure leaves shares unknown that were stated before: no answer at all.
                if error.reason != "not served":
                    raise
                names = set()
            # A GPU that is unhealthy just now is not listed: what was known of it stays.
            self._replicas.update(replicas_of(names))
        if any(is_unknown_instance(device, node) for device in devices):
            self._name_instances()
        self._learn_claims(claimed(held))
        return self._learn()

    def _name_instances(self) -> None:
        if not self._instances_turn.may():
            return
        try:
            self._instances.update(self._ask_instances())
        except Unavailable as error:
            self.errors["instances"] += 1
            self._warn("instances", f"names of MIG instances: {error}")

    def _learn_claims(self, claims: set[Name]) -> None:
        """A failure is waited out: what is open stays, and no pod is scheduled without the server."""
        try:
            self._slices.learn(claims)
        except Unavailable as error:
            self.errors["slices"] += 1
            self._warn("slices", str(error))

    def _settle(self, held: Sequence[Held], node: Node) -> None:
        now_ms = self._clock.now_ms()
        claims, unplaced = place(held, node)
        kept = frozenset(f"{one.namespace}/{one.pod}" for one in unplaced)
        step = follow(self._open, claims, kept, self._away, self._tenant, self._begin, now_ms)
        for key in self._away - step.open.keys():
            log.warning("pods: %s went unseen: it ends when it was last seen", key[0])
        seen = {(claim.workload, claim.gpus, claim.share_ppm) for claim in claims}
        self._open, self._away = step.open, (self._away & step.open.keys()) - seen
        self._tell([*step.records, *self._strange(unplaced, now_ms)])
        if self._labels is not None:
            self._labels.keep({(one.namespace, one.pod) for one in held})
        self.unplaced = unplaced
        self.holders = len({(one.namespace, one.pod) for one in held})
        self.seen_ms = now_ms

    def _begin(self, claim: Claim) -> Allocation:
        now_ms = self._clock.now_ms()
        return Allocation(
            site=self._site, source=SOURCE, tenant="", node=self._node, from_ms=now_ms,
            workload=claim.workload, account=claim.namespace, gpus=claim.gpus,
            share_ppm=claim.share_ppm, asserted_at_ms=now_ms,
        )  # fmt: skip

    def _tenant(self, claim: Claim) -> str | None:
        """The label's value, else the namespace; None while the API server does not answer."""
        if self._labels is None:
            return claim.namespace
        try:
            return self._labels.value(claim.namespace, claim.pod) or claim.namespace
        except Unavailable as error:
            self.errors["label"] += 1
            self._warn("label", f"tenants are not known yet: {error}")
            return None

    def _strange(self, unplaced: Mapping[Held, str], now_ms: int) -> list[Record]:
        """An event for each device that is held but not known here, once."""
        fresh = [one for one in unplaced if one not in self._told]
        self._told = (self._told & unplaced.keys()) | set(fresh[: _MAX_TOLD - len(self._told)])
        events: list[Record] = []
        for one in fresh:
            if one in self._told:
                detail = f"{one.namespace}/{one.pod} {one.resource} {one.device}: {unplaced[one]}"
                log.warning("pods: %s", detail)
                events.append(
                    Event(site=self._site, node=self._node, ts_ms=now_ms,
                          kind="pod_device_unknown", detail=detail)
                )  # fmt: skip
        return events

    def _warn(self, what: str, text: str) -> None:
        """Once, until it is another sentence."""
        if self._said.get(what) != text:
            self._said[what] = text
            log.warning("pods: %s", text)

    def _tell(self, records: Sequence[Record]) -> None:
        """Into the file, then to whoever reads: what is not in the spool yet is in the file."""
        with self._lock:
            waiting = [*self._given, *self._ready, *records]
        last = [r for r in waiting if isinstance(r, Allocation) and r.until_ms is not None]
        try:
            save(self._file, State(tuple(self._open.values()), tuple(last)))
        except OSError as error:
            self.errors["file"] += 1
            self._warn("file", f"{self._file}: {error.strerror}")
        with self._lock:
            self._ready += records

    def _restore(self) -> None:
        """Tell again what the spool may have missed; the store knows it by source, GPUs, start."""
        try:
            state = load(self._file)
        except Unavailable as error:
            self.errors["file"] += 1
            log.warning("pods: what was open is not known, so it is never ended: %s", error)
            return
        now_ms = self._clock.now_ms()
        self._ready += state.ended
        for interval in state.open:
            record = interval.record
            if (record.site, record.node) != (self._site, self._node):  # it was renamed
                self._ready.append(ended(interval, interval.seen_ms, now_ms))
                continue
            self._open[interval.key] = interval
            if record.tenant:
                self._ready.append(record)


def open_pods(
    site: Site,
    socket: str,
    resources: Sequence[str],
    pod_label: str,
    spool: Path,
    clock: Clock,
) -> Pods:
    """As [kubernetes] says, with a file beside the spool's. Raises Refuse."""
    kubelet = Kubelet(Path(socket))
    labels = PodLabels(pod_label) if pod_label else None
    return Pods(
        site.name, site.hostname, kubelet, resources, spool / FILE, clock, labels, MigNames(),
        open_slices(site.hostname, clock),
    )  # fmt: skip


def describe(path: Path, resources: Sequence[str], wait_s: float = 1.0) -> list[str]:
    """One line about the kubelet's socket: whether it answers, how many pods have GPUs."""
    try:
        held = Kubelet(path, wait_s).held()
    except Refuse as error:
        return [str(error)]
    except NoAnswer as error:
        return [f"{error}: {_HINTS.get(error.reason, 'see the sentence')}"]
    ours = wanted(held, resources)
    pods = {(one.namespace, one.pod) for one in ours}
    others = sorted({one.resource for one in held} - {one.resource for one in ours})
    lines = [f"{path} answers: {len(pods)} pods hold {len(set(ours))} GPUs or parts of them"]
    if others:
        lines.append(f"not counted, not in [kubernetes] resources: {', '.join(others)}")
    return lines


_HINTS: Final = {
    "not there": "mount the kubelet's pod-resources folder, or set [kubernetes] socket",
    "permission": "the socket is root's: run the agent as root",
    "no answer": "see whether the kubelet runs",
    "not served": "this kubelet is older than Kubernetes 1.20",
    "too large": "more pods than a kubelet may have: ask who answers there",
    "malformed": "ask who answers there",
    "no pods": "wait until it has begun",
}
