"""What the linter knows of other exporters' metrics: kind, unit, and the name across 4.9.

From the catalogue, and from a short table of what the catalogue does not read. A name that is in
neither is unknown: nothing is said about it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from pipeline.catalog import METRICS, Dcgm, Metric

Kind = Literal["gauge", "counter", "last", "mask", "speed", "window"]
"""last: keeps the last event's number. speed: already per second, whatever its name says.
window: events of the last minutes."""
Dialect = Literal["old", "new", "both", "smi"]
"""dcgm-exporter up to 4.8, from 4.9, a name that 4.9 did not touch, nvidia_gpu_exporter."""


@dataclass(frozen=True, slots=True)
class Known:
    """One metric name. `topic` is the same for both names of one thing; `twin` is the other name.

    resets: a counter that starts again when the driver is loaded.
    """

    name: str
    kind: Kind
    unit: str
    dialect: Dialect
    topic: str
    twin: str = ""
    resets: bool = False


_UNITS: Final = {
    ("w", 1): "W", ("j", 1e-3): "mJ", ("j", 1): "J", ("c", 1): "C", ("pct", 1): "percent",
    ("pct", 100): "ratio", ("mib", 1): "MiB", ("mib", 1 / 1048576): "B", ("mhz", 1): "MHz",
    ("mhz", 1e-6): "Hz", ("ms", 1e-6): "ns",
}  # fmt: skip
_LASTING: Final = ("aggregate", "remap", "retired")
"""Counters of a board's whole life carry one of these words."""

# old name, new name, kind, old unit, new unit, topic
_BESIDE: Final[tuple[tuple[str, str, Kind, str, str, str], ...]] = (
    ("DEV_XID_ERRORS", "DEV_XID_ERROR", "last", "", "", "xid"),
    ("DEV_FB_FREE", "DEV_FB_FREE_BYTES", "gauge", "MiB", "B", "mem_free_mib"),
    ("DEV_NVLINK_BANDWIDTH_TOTAL", "DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", "speed", "MB/s", "B/s",
     "nvlink"),
    ("PROF_GR_ENGINE_ACTIVE", "PROF_GR_ENGINE_UTIL_RATIO", "gauge", "ratio", "ratio", "gr_engine"),
    ("PROF_SM_OCCUPANCY", "PROF_SM_OCCUPANCY_RATIO", "gauge", "ratio", "ratio", "sm_occupancy"),
    ("PROF_PIPE_FP64_ACTIVE", "PROF_FP64_UTIL_RATIO", "gauge", "ratio", "ratio", "fp64"),
    ("PROF_PIPE_FP32_ACTIVE", "PROF_FP32_UTIL_RATIO", "gauge", "ratio", "ratio", "fp32"),
    ("PROF_PIPE_FP16_ACTIVE", "PROF_FP16_UTIL_RATIO", "gauge", "ratio", "ratio", "fp16"),
)  # fmt: skip

# Names that 4.9 did not touch.
_SAME: Final[tuple[tuple[str, Kind, str, str], ...]] = (
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "speed", "B/s", "pcie_tx"),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "speed", "B/s", "pcie_rx"),
    ("DCGM_FI_DEV_POWER_VIOLATION", "counter", "ns", "violation_power"),
    ("DCGM_FI_DEV_THERMAL_VIOLATION", "counter", "ns", "violation_thermal"),
    ("DCGM_EXP_XID_ERRORS_COUNT", "window", "", "xid_events"),
    ("DCGM_EXP_XID_ERRORS_TOTAL", "counter", "", "xid_events"),
)

_SMI: Final[tuple[tuple[str, Kind, str, str], ...]] = (
    ("temperature_gpu", "gauge", "C", "temp_gpu_c"),
    ("temperature_gpu_tlimit", "gauge", "C", "temp_margin_c"),
    ("utilization_gpu_ratio", "gauge", "ratio", "util_gpu_pct"),
    ("utilization_memory_ratio", "gauge", "ratio", "util_mem_pct"),
    ("memory_used_bytes", "gauge", "B", "mem_used_mib"),
    ("memory_free_bytes", "gauge", "B", "mem_free_mib"),
    ("memory_total_bytes", "gauge", "B", "mem_total_mib"),
    ("power_draw_watts", "gauge", "W", "power_w"),
    ("power_draw_average_watts", "gauge", "W", "power_w"),
    ("power_draw_instant_watts", "gauge", "W", "power_instant_w"),
    ("clocks_current_sm_clock_hz", "gauge", "Hz", "clock_sm_mhz"),
    ("clocks_event_reasons_active", "mask", "", "throttle_reasons"),
    ("clocks_throttle_reasons_active", "mask", "", "throttle_reasons"),
    ("xid_errors_total", "counter", "", "xid_events"),
)


def _read() -> dict[str, Known]:
    found = [
        Known(
            name.name, _kind(metric), _UNITS.get((metric.unit, name.factor), ""), dialect,
            metric.name, "" if dialect == "both" else other.name,
            metric.kind in ("counter", "delta") and not any(w in metric.name for w in _LASTING),
        )
        for metric in METRICS
        if metric.dcgm is not None and metric.dcgm49 is not None
        for name, other, dialect in _names(metric)
    ]  # fmt: skip
    for old, new, kind, old_unit, new_unit, topic in _BESIDE:
        names = f"DCGM_FI_{old}", f"DCGM_FI_{new}"
        found.append(Known(names[0], kind, old_unit, "old", topic, names[1]))
        found.append(Known(names[1], kind, new_unit, "new", topic, names[0]))
    found += [Known(name, kind, unit, "both", topic) for name, kind, unit, topic in _SAME]
    found += [
        Known(f"nvidia_smi_{name}", kind, unit, "smi", topic) for name, kind, unit, topic in _SMI
    ]
    return {known.name: known for known in found}


def _kind(metric: Metric) -> Kind:
    if metric.name == "throttle_reasons":
        return "mask"
    return "counter" if metric.kind in ("counter", "delta") else "gauge"


def _names(metric: Metric) -> list[tuple[Dcgm, Dcgm, Dialect]]:
    old, new = metric.dcgm, metric.dcgm49
    assert old is not None
    assert new is not None
    if old.name == new.name:
        return [(old, old, "both")]
    return [(old, new, "old"), (new, old, "new")]


KNOWN: Final = _read()

GPU_NAME: Final = ("DCGM_FI_", "DCGM_EXP_", "nvidia_smi_")
"""How the names of the exporters' metrics begin."""


def name_of(topic: str, like: Dialect) -> str:
    """The metric of a topic in a dialect; empty where it has none that is known."""
    for known in KNOWN.values():
        if known.topic == topic and known.dialect in (like, "smi" if like == "smi" else "both"):
            return known.name
    return ""


def host_label(dialect: Dialect) -> str:
    """The label that names the node: dcgm-exporter wrote Hostname, later hostname."""
    return {"new": "hostname", "smi": "instance"}.get(dialect, "Hostname")
