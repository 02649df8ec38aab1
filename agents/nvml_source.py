"""NVML as a source: one node's GPUs, read by a child process that may hang without us."""

import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents import kernel_log, nvml_frame
from agents.nvml_columns import NO_ROW, Rows, reading
from agents.nvml_link import Link
from agents.source import Reading
from pipeline.catalog import FAST, SLICE, SLOW
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Unavailable
from pipeline.records import Event, Gpu, Inventory, Record
from pipeline.settings import Site
from pipeline.wire import LAYOUT

EVENTS_MAX: Final = 10_000

_DEADLINE_OF_PERIOD: Final = 0.8
_LOST_WHY: Final = {8: "power cable", 11: "interrupts", 15: "lost", 16: "reset required"}
_COUNTERS_RESTART: Final = (9, 18)  # driver not loaded, another version: it was loaded anew
_LOSS_LASTS_MS: Final = 10_000  # a GPU that the kernel log calls lost may still answer for a while

Raw = tuple[int, bytes, list[list[int]], list[int]]
"""Tick, status by GPU, fast rows, slice integers."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """What the calls of one NVML symbol have cost in this life of the child."""

    calls: int
    seconds: float
    longest_s: float


class NvmlSource:
    """The GPUs of this node. agents.source.Source; calls may come from several threads.

    Opening the driver may take longer than `open_wait_s`: the inventory is then empty until it is
    open, and the generation grows. A driver that cannot be had is no reason to fail: `read` raises
    Unavailable with a sentence that `problem` repeats, and the driver is tried again. `dropped`
    counts events beyond EVENTS_MAX that nobody fetched.
    """

    name = "nvml"

    def __init__(
        self,
        site: Site,
        hostname: str,
        *,
        period_ms: int = 1000,
        slow_every_s: int = 10,
        deadline_s: float | None = None,
        stop_hung_after_s: float = 60.0,
        open_wait_s: float = 10.0,
        agent_version: str = "",
        kmsg: Path = kernel_log.KMSG,
        clock: Clock | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._site = site
        self._hostname = hostname
        self._clock = clock or SystemClock()
        self._agent_version = agent_version
        self._lock = threading.RLock()
        self._rows = Rows(period_ms)
        self._boot_epoch = kernel_log.boot_epoch()
        self._twins = kernel_log.Twins()
        self._events: list[Event] = []
        self.dropped = 0
        self._forget_node()
        self._kernel_log = self._open_kernel_log(kmsg)
        self._link = Link(
            nvml_frame.Wish(
                [m.name for m in FAST], [m.name for m in SLOW], [m.name for m in SLICE],
                period_ms, slow_every_s * 1000,
            ),
            self._clock,
            deliver=self._deliver,
            born=self._child_was_born,
            tell=self._tell,
            deadline_s=deadline_s or _DEADLINE_OF_PERIOD * period_ms / 1000,
            stop_after_s=stop_hung_after_s,
            environment=environment,
        )  # fmt: skip
        try:
            self._link.wait_until_open(open_wait_s)
        except Unavailable:
            return  # every read says so

    def _forget_node(self) -> None:
        self._generation = 1
        self._from_ms = self._clock.now_ms()
        self._driver = ""
        self._reloads = 0
        self._reloading = False
        self._gpus: tuple[Gpu, ...] = ()
        self._present = 0
        self._instances: tuple[tuple[int, int, int], ...] = ()
        self._raw: Raw | None = None
        self._slow: dict[int, list[int]] = {}
        self._lost: dict[str, int] = {}
        self._costs: dict[str, CallCost] = {}

    # ---- agents.source.Source

    @property
    def generation(self) -> int:
        """Grows with every change of GPUs, instances, driver or its epoch."""
        return self._generation

    @property
    def boot_epoch(self) -> int:
        """From the kernel's boot id."""
        return self._boot_epoch

    @property
    def driver_epoch(self) -> int:
        """From boot, driver version, and the reloads seen in this life of the agent."""
        return zlib.crc32(f"{self._boot_epoch}/{self._driver}/{self._reloads}".encode())

    def inventory(self) -> tuple[Inventory, ...]:
        """This node; a GPU that was lost since the agent started is still of it."""
        with self._lock:
            site = self._site
            return (
                Inventory(
                    site=site.name, node=self._hostname, from_ms=self._from_ms, hall=site.hall,
                    row=site.row, rack=site.rack, pdu=site.pdu, gpus=self._gpus,
                    layout=LAYOUT.describe(), source=self.name, agent_version=self._agent_version,
                    driver_version=self._driver,
                ),
            )  # fmt: skip

    def read(self, tick_ms: int) -> Reading:
        """Values at a tick, within the deadline; Unavailable says what is wrong with the driver."""
        with self._lock:
            self._raw = None
            self._link.ask(tick_ms)
            raw = self._raw
            if raw is None or raw[0] != tick_ms:
                raise Unavailable(f"the NVML child answered another tick than {tick_ms}")
            return self._reading(raw)

    def records(self) -> list[Record]:
        """Events since the last call: of NVML, the kernel log, and the child."""
        with self._lock:
            self._read_kernel_log()
            events: list[Record] = list(self._events)
            self._events.clear()
            return events

    def close(self) -> None:
        """End the child; idempotent."""
        with self._lock:
            self._link.released = True
            self._link.close()
            if self._kernel_log is not None:
                self._kernel_log.close()
                self._kernel_log = None

    # ---- beside the protocol

    @property
    def problem(self) -> str:
        """Why nothing can be read, in a sentence; empty while all is well."""
        return self._link.problem

    def costs(self) -> dict[str, CallCost]:
        """Own cost: NVML's calls by symbol."""
        with self._lock:
            return dict(self._costs)

    def release(self) -> None:
        """Let go of the driver, for its upgrade; `read` is Unavailable until `resume`.

        Raises Unavailable if the child does not end, and the driver stays in use.
        """
        with self._lock:
            ended = self._link.release()
            self._tell("driver_released", "the agent let go of the NVIDIA driver, as asked")
        if not ended:
            raise Unavailable("the NVML child does not end: the driver is hung and stays in use")

    def resume(self) -> None:
        """Read again, with the driver that is loaded now."""
        with self._lock:
            self._link.resume()

    # ---- what the child says

    def _child_was_born(self) -> None:
        self._slow.clear()
        self._costs = {}
        self._rows.break_off()

    def _deliver(self, kind: int, payload: bytes) -> None:
        if kind == nvml_frame.READING:
            self._raw = self._unpack(payload)
        elif kind == nvml_frame.SLOW:
            (position,) = nvml_frame.SLOW_HEAD.unpack_from(payload)
            numbers = memoryview(payload)[nvml_frame.SLOW_HEAD.size :].tobytes()
            self._slow[position] = list(memoryview(numbers).cast("q"))
        elif kind == nvml_frame.IDENTITY:
            self._identify(json.loads(payload))
        elif kind == nvml_frame.XID:
            uuid, code, gi, ci = json.loads(payload)
            where = "" if gi is None else f"MIG instance {gi}/{ci}"
            self._tell_xid("nvml", "xid", uuid, code, where)
        elif kind == nvml_frame.COST:
            costs = json.loads(payload)
            self._costs = {name: CallCost(int(n), s, most) for name, (n, s, most) in costs.items()}
        elif kind == nvml_frame.PROBLEM and self._gpus:
            self._reloading |= json.loads(payload)[0] in _COUNTERS_RESTART

    def _unpack(self, payload: bytes) -> Raw:
        tick_ms, status, fast, slices = nvml_frame.unpack_reading(payload)
        width = len(FAST)
        rows = [list(fast[at : at + width]) for at in range(0, len(fast), width)]
        return tick_ms, status, rows, list(slices)

    def _identify(self, identity: dict[str, object]) -> None:
        before = (self._gpus, self._instances, self.driver_epoch)
        found = tuple(_gpus(identity["gpus"]))
        uuids = {gpu.uuid for gpu in found}
        gone = [gpu for gpu in self._gpus if gpu.uuid not in uuids]
        self._present = len(found)
        self._gpus = found + _with_free_index(gone, found)
        self._instances = tuple((g, i, c) for g, i, c in _triples(identity["instances"]))
        self._driver = str(identity["driver"])
        self._reloads += self._reloading
        for gpu in gone:
            self._lose(gpu.uuid, "NVML lists it no more")
        if not gone and identity["missing"]:
            self._tell("gpu_lost", f"NVML cannot open {identity['missing']} (index: error)")
        if before != (self._gpus, self._instances, self.driver_epoch):
            self._renew(reloaded=self._reloading)
        self._reloading = False

    def _renew(self, *, reloaded: bool) -> None:
        self._generation += 1
        self._from_ms = self._clock.now_ms()
        if reloaded:
            self._tell("driver_reloaded", f"the driver's counters began anew ({self._driver})")

    def _reading(self, raw: Raw) -> Reading:
        tick_ms, status, fast, slices = raw
        uuids = [gpu.uuid for gpu in self._gpus]
        if self._rows.is_reset(uuids[: self._present], fast):
            self._reloads += 1
            self._renew(reloaded=True)
        epoch = self.driver_epoch
        rows = []
        for uuid, code, numbers in zip(uuids, status, fast, strict=False):
            if code:
                self._lose(uuid, _LOST_WHY.get(code, f"NVML error {code}"))
            else:
                self._find(uuid)
            rows.append(NO_ROW if code else self._rows.row(uuid, tick_ms, epoch, numbers))
        rows += [NO_ROW] * (len(self._gpus) - len(rows))
        return reading(rows, self._slow, slices, self._instances)

    # ---- events

    def _lose(self, uuid: str, why: str) -> None:
        if uuid not in self._lost:
            self._tell("gpu_lost", why, uuid)
        self._lost[uuid] = self._clock.now_ms()

    def _find(self, uuid: str) -> None:
        if uuid in self._lost and self._clock.now_ms() - self._lost[uuid] > _LOSS_LASTS_MS:
            del self._lost[uuid]
            self._tell("gpu_back", "the GPU answers again", uuid)

    def _tell(self, kind: str, detail: str, uuid: str = "", code: int = 0) -> None:
        if len(self._events) >= EVENTS_MAX:
            self.dropped += 1
            return
        event = Event(
            site=self._site.name, node=self._hostname, ts_ms=self._clock.now_ms(), kind=kind,
            uuid=uuid, code=code, detail=detail,
        )  # fmt: skip
        self._events.append(event)

    def _tell_xid(self, channel: str, kind: str, uuid: str, code: int, detail: str) -> None:
        if not self._twins.is_second(self._clock.now_ms(), channel, uuid, code):
            self._tell(kind, detail, uuid, code)

    def _open_kernel_log(self, path: Path) -> kernel_log.KernelLog | None:
        try:
            return kernel_log.KernelLog(path)
        except Unavailable as error:
            self._tell("kernel_log_unavailable", str(error))
            return None

    def _read_kernel_log(self) -> None:
        if self._kernel_log is None:
            return
        uuids = {kernel_log.pci_address(gpu.pci_bus_id): gpu.uuid for gpu in self._gpus}
        for event in self._kernel_log.poll():
            uuid = uuids.get(event.pci, "") if event.pci else ""
            where = "" if uuid or not event.pci else "PCI {:04x}:{:02x}:{:02x} ".format(*event.pci)
            if event.kind == "gpu_lost" and uuid:
                self._lose(uuid, event.detail)
            else:
                self._tell_xid("kernel", event.kind, uuid, event.code, where + event.detail)


def _gpus(found: object) -> list[Gpu]:
    assert isinstance(found, list)
    return [Gpu(**identity) for identity in found]


def _triples(found: object) -> list[tuple[int, int, int]]:
    assert isinstance(found, list)
    return [(g, i, c) for g, i, c in found]


def _with_free_index(gone: list[Gpu], found: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Lost GPUs, each with its old index, or the next free one where the driver gave it away."""
    taken = {gpu.index for gpu in found}
    kept = []
    for gpu in gone:
        index = gpu.index if gpu.index not in taken else max(taken) + 1
        taken.add(index)
        kept.append(
            Gpu(index, gpu.uuid, gpu.model, gpu.serial, gpu.pci_bus_id, gpu.vbios, gpu.memory_mib)
        )
    return tuple(kept)
