"""What a page of dcgm-exporter says of each GPU, in our units, whichever dialect it speaks.

Values of the device count once per UUID, however often the page repeats them: for every MIG
instance, for every pod of a shared GPU. Pure: pages in, values out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.gathered import stored
from agents.prometheus_text import Sample
from pipeline.catalog import FAST, SLICE, SLOW, Metric
from pipeline.errors import Reject
from pipeline.records import Gpu

COUNTED: Final = ("energy_j", *(m.name for m in FAST if m.kind == "delta" and m.dcgm))
"""Deltas that a page has counters for."""
ENERGY: Final = "energy_counter_j"
XID_NAMES: Final = ("DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR")
"""The last XID as a gauge: it sticks, and the same one again leaves no trace."""

_UUID: Final = ("UUID", "uuid", "gpu_uuid")
_HOST: Final = ("Hostname", "hostname")
_MODEL: Final = ("modelName", "model_name")
_SERIAL: Final = ("DCGM_FI_DEV_SERIAL", "DCGM_FI_DEV_SERIAL_NUMBER")
_VBIOS: Final = ("DCGM_FI_DEV_VBIOS_VERSION",)
_DRIVER: Final = ("DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION")
_INSTANCE: Final = "GPU_I_ID"
_PERCENT: Final = 100.0
_RATIO_MOST: Final = 1.5
"""DCGM 4.6 wrote percent under the name of a ratio: a ratio above this is none."""

_BLANKS: Final = (
    (0x7FFFFFFFFFFFFFF0, 1 << 63),  # as a double, all of these are 2^63
    (0x7FFFFFF0, 0x7FFFFFFF),
    (140737488355328, 140737488355343),
)
"""DCGM's words for blank, not found, not supported, not permitted: of 64 bits, 32 bits, doubles."""


def _names() -> dict[str, tuple[Metric, float]]:
    """Every name of both dialects: our metric, and the factor to its unit."""
    found: dict[str, tuple[Metric, float]] = {}
    for metric in FAST + SLOW:
        for dialect in (metric.dcgm, metric.dcgm49):
            if dialect is not None:
                found[dialect.name] = (metric, dialect.factor)
    return found


NAMES: Final = _names()
_SLICES: Final = {m.name: m for m in SLICE}
_UTILISATION: Final = frozenset(
    name for name in NAMES if name.endswith("_UTIL_RATIO") and "_DEV_" in name
)


@dataclass(slots=True)
class Device:
    """A GPU on a page: storage integers by metric; counters are still cumulative in `counters`.

    `instances` are MIG instances by GPU instance id.
    """

    gpu: Gpu
    values: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    instances: dict[int, dict[str, int]] = field(default_factory=dict)
    xid: int | None = None

    def same_as(self, other: "Device") -> bool:
        """Whether nothing was measured between the two."""
        mine = (self.values, self.counters, self.instances)
        return mine == (other.values, other.counters, other.instances)


@dataclass(frozen=True, slots=True)
class Page:
    """Devices by UUID; `percent` is known once a page has shown that its ratios are percent."""

    host: str
    driver_version: str
    devices: Mapping[str, Device]
    percent: bool


def is_blank(value: float) -> bool:
    """Whether a value is one of DCGM's words for none."""
    return math.isnan(value) or any(low <= value <= high for low, high in _BLANKS)


def read(samples: Sequence[Sample], percent: bool = False) -> Page:
    """The page of these samples. `percent` is what an earlier page showed.

    Raises Reject where no GPU is on it.
    """
    percent = percent or any(
        s.name in _UTILISATION and _RATIO_MOST < s.value <= _PERCENT for s in samples
    )
    devices: dict[str, Device] = {}
    host = driver = ""
    for sample in samples:
        if sample.name not in NAMES and sample.name not in XID_NAMES:
            continue
        uuid = _label(sample, _UUID)
        if not uuid.isprintable() or not uuid:
            continue
        device = devices.get(uuid)
        if device is None:
            device = devices[uuid] = Device(_gpu(sample, uuid, len(devices)))
        host, driver = host or _label(sample, _HOST), driver or _label(sample, _DRIVER)
        if not is_blank(sample.value):
            _take(device, sample, percent)
    if not devices:
        raise Reject("the page has no GPU")
    return Page(host, driver, devices, percent)


def _take(device: Device, sample: Sample, percent: bool) -> None:
    """Note a value, unless the page has already said it."""
    if sample.name in XID_NAMES:
        if device.xid is None and 0 <= sample.value < 10_000:
            device.xid = int(sample.value)
        return
    metric, factor = NAMES[sample.name]
    value = sample.value * (1.0 if percent and sample.name in _UTILISATION else factor)
    instance = sample.labels.get(_INSTANCE, "")
    if instance and metric.name in _SLICES:
        if instance.isascii() and instance.isdecimal() and int(instance) < 256:
            number = stored(_SLICES[metric.name], value)
            if number is not None:
                device.instances.setdefault(int(instance), {}).setdefault(metric.name, number)
        return
    if metric.kind == "delta":
        scaled = value * metric.scale  # which may leave the floats
        if scaled >= 0 and math.isfinite(scaled):
            device.counters.setdefault(metric.name, math.floor(scaled + 1e-6))
        return
    number = stored(metric, value)
    if number is not None:
        device.values.setdefault(metric.name, number)
        if metric.name == ENERGY:
            device.counters.setdefault("energy_j", number)


def _gpu(sample: Sample, uuid: str, position: int) -> Gpu:
    index = sample.labels.get("gpu", "")
    known = index.isascii() and index.isdecimal() and len(index) < 5
    return Gpu(
        index=int(index) if known else position, uuid=uuid, model=_label(sample, _MODEL),
        serial=_label(sample, _SERIAL), pci_bus_id=sample.labels.get("pci_bus_id", ""),
        vbios=_label(sample, _VBIOS),
    )  # fmt: skip


def _label(sample: Sample, names: Sequence[str]) -> str:
    return next((sample.labels[name] for name in names if sample.labels.get(name)), "")
