"""GPU metrics under dcgm-exporter's names, in both of its dialects, as Prometheus text 0.0.4.

Names, labels and units are the contract with dashboards and rules that people already have, so a
counter keeps its exact name, with or without `_total`. What is not reported has no series.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from agents.sampler import Snapshot
from agents.source import Vector
from pipeline.catalog import ARRAY_CODE, FAST, SLOW, Dcgm, Metric
from pipeline.records import Event, Gpu, Inventory, Record
from pipeline.wire import ROW

_DT: Final = 0  # dt_ms stands first in a reading's fast columns
_SLOW_AT: Final = {metric.name: i for i, metric in enumerate(SLOW)}
_FAST_AT: Final = {metric.name: i for i, metric in enumerate(FAST, start=len(ROW))}
_UNITS: Final = {
    ("w", 1): "in W", ("j", Fraction(1, 1000)): "in mJ", ("j", 1): "in J", ("c", 1): "in C",
    ("pct", 1): "in %", ("pct", 100): "0 to 1", ("mib", 1): "in MiB",
    ("mib", Fraction(1, 1048576)): "in B", ("mhz", 1): "in MHz",
    ("mhz", Fraction(1, 1000000)): "in Hz", ("ms", Fraction(1, 1000000)): "in ns",
}  # fmt: skip

Values = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the versions of dcgm-exporter beside the metrics' names."""

    pick: Callable[[Metric], Dcgm | None]
    hostname: str
    driver: str
    free: Dcgm
    xid: str


UP_TO_48: Final = Dialect(
    lambda metric: metric.dcgm, "Hostname", "DCGM_FI_DRIVER_VERSION",
    Dcgm("DCGM_FI_DEV_FB_FREE"), "DCGM_FI_DEV_XID_ERRORS",
)  # fmt: skip
FROM_49: Final = Dialect(
    lambda metric: metric.dcgm49, "hostname", "DCGM_FI_SYSTEM_DRIVER_VERSION",
    Dcgm("DCGM_FI_DEV_FB_FREE_BYTES", 1 / 1048576), "DCGM_FI_DEV_XID_ERROR",
)  # fmt: skip


class Totals:
    """Counters since the agent's start of what sources report as differences, and the last XIDs.

    An observer of the sampler: its thread writes, the exporter's threads read.
    """

    def __init__(self) -> None:
        self.last_xid: Final[dict[str, int]] = {}
        self._sums: dict[str, dict[str, int]] = {
            m.name: {} for m in FAST if m.kind == "delta" and (m.dcgm or m.dcgm49)
        }

    def on_reading(self, snapshot: Snapshot) -> None:
        """Add a tick's differences."""
        uuids = [gpu.uuid for inventory in snapshot.inventories for gpu in inventory.gpus]
        for name, sums in self._sums.items():
            metric = FAST[_FAST_AT[name] - len(ROW)]
            for uuid, value in zip(uuids, _values(snapshot, metric), strict=True):
                if value is not None:
                    sums[uuid] = sums.get(uuid, 0) + value

    def on_record(self, record: Record) -> None:
        """Remember a GPU's last XID."""
        if isinstance(record, Event) and record.kind == "xid" and record.uuid:
            self.last_xid[record.uuid] = record.code

    def of(self, metric: Metric, uuids: Sequence[str]) -> Values:
        """Sums in the metric's stored integers, None for a GPU that never reported it."""
        sums = self._sums[metric.name]
        return [sums.get(uuid) for uuid in uuids]


def render(snapshot: Snapshot, totals: Totals, dialect: Dialect) -> str:
    """A page of every GPU that was read at the snapshot's tick."""
    gpus = [(inventory, gpu) for inventory in snapshot.inventories for gpu in inventory.gpus]
    labels = [_labels(inventory, gpu, dialect) for inventory, gpu in gpus]
    uuids = [gpu.uuid for _, gpu in gpus]
    dt_ms = snapshot.reading.fast[_DT]
    present = [dt_ms[i] != 0 for i in range(len(dt_ms))]
    lines: list[str] = []
    for metric in (*FAST, *SLOW):
        dcgm = dialect.pick(metric)
        if dcgm is None:
            continue
        counts = metric.kind in ("counter", "delta")
        values = totals.of(metric, uuids) if metric.kind == "delta" else _values(snapshot, metric)
        ratio = 1 / (metric.scale * _exact(dcgm.factor))
        lines += _family(
            dcgm.name, "counter" if counts else "gauge", _help(metric, dcgm),
            (_number(v, ratio) for v in values), labels, present,
        )  # fmt: skip
    free = [_free(*memory) for memory in zip(*_memory(snapshot), strict=True)]
    megabytes = 1 / _exact(dialect.free.factor)
    lines += _family(
        dialect.free.name, "gauge", f"Memory that is free ({_unit('mib', dialect.free)})",
        (_number(v, megabytes) for v in free), labels, present,
    )  # fmt: skip
    xids = (str(totals.last_xid.get(uuid, 0)) for uuid in uuids)
    lines += _family(
        dialect.xid, "gauge", "Last XID since the agent's start, 0 if none", xids, labels, present
    )
    return "".join(lines)


def _family(
    name: str,
    kind: Literal["counter", "gauge"],
    meaning: str,
    values: Iterable[str | None],
    labels: Sequence[str],
    present: Sequence[bool],
) -> list[str]:
    lines = [
        f"{name}{{{labelled}}} {value}\n"
        for labelled, value, here in zip(labels, values, present, strict=True)
        if here and value is not None
    ]
    return [f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n", *lines] if lines else []


def _values(snapshot: Snapshot, metric: Metric) -> Values:
    block: tuple[Vector, ...]
    if metric.cadence == "fast":
        block, at = snapshot.reading.fast, _FAST_AT[metric.name]
    else:
        block, at = snapshot.reading.slow, _SLOW_AT[metric.name]
    null = metric.null_code
    # Through bytes: one conversion to plain integers, also for numpy's.
    plain = array(ARRAY_CODE[metric.storage], block[at].tobytes())
    return [None if value == null else value for value in plain]


def _memory(snapshot: Snapshot) -> tuple[Values, Values, Values]:
    used = FAST[_FAST_AT["mem_used_mib"] - len(ROW)]
    total, reserved = (SLOW[_SLOW_AT[name]] for name in ("mem_total_mib", "mem_reserved_mib"))
    return _values(snapshot, total), _values(snapshot, used), _values(snapshot, reserved)


def _free(total: int | None, used: int | None, reserved: int | None) -> int | None:
    return None if total is None or used is None else max(0, total - used - (reserved or 0))


def _exact(factor: float) -> Fraction:
    return Fraction(factor).limit_denominator(10**9)


def _number(stored: int | None, ratio: Fraction) -> str | None:
    """The value in their unit: exact where it is whole, since a counter has up to 20 digits."""
    if stored is None:
        return None
    whole, rest = divmod(stored * ratio.numerator, ratio.denominator)
    return str(whole) if rest == 0 else repr(stored * ratio.numerator / ratio.denominator)


def _unit(ours: str, dcgm: Dcgm) -> str:
    return _UNITS.get((ours, _exact(dcgm.factor)), "")


def _help(metric: Metric, dcgm: Dcgm) -> str:
    unit = _unit(metric.unit, dcgm)
    return f"{metric.meaning} ({unit})" if unit else metric.meaning


def _labels(inventory: Inventory, gpu: Gpu, dialect: Dialect) -> str:
    labels: Mapping[str, str] = {
        "gpu": str(gpu.index), "UUID": gpu.uuid, "pci_bus_id": gpu.pci_bus_id,
        "device": f"nvidia{gpu.index}", "modelName": gpu.model,
        dialect.hostname: inventory.node, dialect.driver: inventory.driver_version,
    }  # fmt: skip
    return ",".join(
        f'{name}="{_escaped(value)}"'
        for name, value in labels.items()
        if value or name != dialect.driver
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
