"""Header names of recorded history: which column of a file is which of ours."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.catalog import FAST_BY_NAME, SLOW_BY_NAME, Metric
from pipeline.errors import Refuse

Format = Literal["auto", "csv", "parquet", "nvidia-smi"]

METRICS: Final[Mapping[str, Metric]] = FAST_BY_NAME | SLOW_BY_NAME
IDENTITY: Final = (
    "site", "node", "gpu", "uuid", "model", "serial", "pci_bus_id", "vbios", "driver_version",
)  # fmt: skip
SAMPLES: Final = ("ts", *IDENTITY, *METRICS)
METERS: Final = ("ts", "site", "meter", "kind", "watts")
ALLOCATIONS: Final = (
    "site", "source", "tenant", "workload", "account", "node", "gpus", "share", "from",
    "until",
)  # fmt: skip
INVENTORY: Final = (
    "node", "site", "hall", "row", "rack", "pdu", "gpu", "uuid", "model", "serial", "pci_bus_id",
    "vbios", "memory_mib", "driver_version", "from", "until",
)  # fmt: skip

NVIDIA_SMI: Final[Mapping[str, tuple[str, ...]]] = {
    "ts": ("timestamp",),
    "gpu": ("index",),
    "uuid": ("uuid", "gpu_uuid"),
    "model": ("name", "gpu_name"),
    "serial": ("serial", "gpu_serial"),
    "pci_bus_id": ("pci.bus_id", "gpu_bus_id"),
    "vbios": ("vbios_version",),
    "driver_version": ("driver_version",),
    "power_w": ("power.draw", "power.draw.average"),
    "power_instant_w": ("power.draw.instant",),
    "module_power_w": ("module.power.draw.average",),
    "temp_gpu_c": ("temperature.gpu",),
    "temp_mem_c": ("temperature.memory",),
    "temp_margin_c": ("temperature.gpu.tlimit",),
    "util_gpu_pct": ("utilization.gpu",),
    "util_mem_pct": ("utilization.memory",),
    "util_encoder_pct": ("utilization.encoder",),
    "util_decoder_pct": ("utilization.decoder",),
    "mem_used_mib": ("memory.used",),
    "mem_total_mib": ("memory.total",),
    "mem_reserved_mib": ("memory.reserved",),
    "clock_sm_mhz": ("clocks.current.sm", "clocks.sm"),
    "clock_mem_mhz": ("clocks.current.memory", "clocks.mem"),
    "pstate": ("pstate",),
    "throttle_reasons": ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),
    "power_limit_w": ("enforced.power.limit",),
    "power_limit_requested_w": ("power.limit",),
    "power_limit_default_w": ("power.default_limit",),
    "power_limit_max_w": ("power.max_limit",),
    "fan_pct": ("fan.speed",),
    "mig_mode": ("mig.mode.current",),
    "recovery_action": ("gpu_recovery_action",),
    "ecc_corrected_volatile": ("ecc.errors.corrected.volatile.total",),
    "ecc_uncorrected_volatile": ("ecc.errors.uncorrected.volatile.total",),
    "ecc_corrected_aggregate": ("ecc.errors.corrected.aggregate.total",),
    "ecc_uncorrected_aggregate": ("ecc.errors.uncorrected.aggregate.total",),
    "remap_corrected_rows": ("remapped_rows.correctable",),
    "remap_uncorrected_rows": ("remapped_rows.uncorrectable",),
    "remap_pending": ("remapped_rows.pending",),
    "remap_failure": ("remapped_rows.failure",),
    "retired_pages_sbe": ("retired_pages.single_bit_ecc.count",),
    "retired_pages_dbe": ("retired_pages.double_bit.count",),
    "retired_pages_pending": ("retired_pages.pending",),
}
"""Our name to nvidia-smi's query fields, the preferred one first; their units are ours."""

_UNIT: Final = re.compile(r"\s*\[[^\]]*\]$")
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about the files.

    `rename` is ours to theirs, `constants` ours to a value for every row. `zone` is the time zone
    of times that name none (nvidia-smi writes its node's local time).
    """

    site: str = "site"
    rename: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    format: Format = "auto"
    keep_good: bool = False
    ignore_extra: bool = False
    zone: str = "UTC"


def pairs(arguments: Iterable[str], flag: str) -> dict[str, str]:
    """`name=value` arguments of a flag that may be repeated. Raises Refuse."""
    out: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (name and equals and value):
            raise Refuse(f"{flag} {argument}: write {flag} name=value")
        if name in out:
            raise Refuse(f"{flag} {argument}: {name} is given twice")
        out[name] = value
    return out


def resolve(
    header: Sequence[str], known: Sequence[str], options: Options, where: str
) -> dict[str, int]:
    """Our name to the column's position. Raises Refuse, which names what does not fit."""
    names = [name.strip() for name in header]
    _refuse_duplicates(names, where)
    for name in (*options.rename, *options.constants):
        _known(name, known, where)
    found, alternates = _matches(names, known, options, where)
    taken = set(found.values()) | alternates
    extra = [name for i, name in enumerate(names) if i not in taken]
    if extra and not options.ignore_extra:
        raise Refuse(
            f"{where}: unknown columns {_listed(extra)}: rename them with --map ours=theirs, or"
            " leave them out with --ignore-extra"
        )
    return {name: at for name, at in found.items() if name not in options.constants}


def require(have: Iterable[str], needed: Sequence[str], header: Sequence[str], where: str) -> None:
    """Refuse a file without these columns."""
    missing = [name for name in needed if name not in set(have)]
    if missing:
        raise Refuse(
            f"{where}: no column {_listed(missing)} among {_listed(header)}: name it with"
            f" --map {missing[0]}=THEIRS, or give one value with --set {missing[0]}=VALUE"
        )


def _refuse_duplicates(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refuse(f"{where}: columns {_listed(twice)} stand in the header more than once")


def _matches(
    names: Sequence[str], known: Sequence[str], options: Options, where: str
) -> tuple[dict[str, int], set[int]]:
    """What each of our names is in the file, and columns that are second choices of one."""
    found: dict[str, int] = {}
    alternates: set[int] = set()
    plain = {_UNIT.sub("", name).lower(): i for i, name in reversed(list(enumerate(names)))}
    for ours in known:
        if ours in options.rename:
            theirs = options.rename[ours].strip()
            if theirs not in names:
                raise Refuse(
                    f"{where}: --map {ours}={theirs}: no such column among {_listed(names)}"
                )
            found[ours] = names.index(theirs)
        elif ours in names:
            found[ours] = names.index(ours)
        elif ours in NVIDIA_SMI and known is SAMPLES:
            at = [plain[theirs] for theirs in NVIDIA_SMI[ours] if theirs in plain]
            found |= {ours: at[0]} if at else {}
            alternates.update(at[1:])
    return found, alternates


def _known(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(known)}"
        raise Refuse(f"{where}: unknown name {name!r}, {hint}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
