"""A statement's figures: what `megawatch usage --json` prints, field by field.

Energies in kWh and times in hours are for people; the integers that they come from are in the
ledger. None is "there is no source for this figure", never "nothing was used".
"""

from typing import Final

import msgspec

CAUSES: Final = ("agent", "node", "gpu", "driver", "spool", "transit", "unknown")
"""Why time of a GPU was not measured: the agent stopped, the node was down, the GPU was lost, the
driver hung, the spool overflowed, the rows are still on their way, or nothing says."""
THROTTLES: Final = ("power_cap", "sw_thermal", "hw_thermal", "power_brake")
HISTOGRAM_BINS: Final = 10
"""Of mean utilisation: [0, 10), [10, 20), ... [90, 100] percent."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A quarter of an hour: for the power curve and the bars of a day."""

    ts_ms: int
    gpu_kw: float | None
    node_kw: float | None
    gpu_hours: float
    coverage: float | None


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the contract in force at the end of the period says."""

    contracted_gpus: int
    contracted_kw: float
    price_per_gpu_hour: str
    price_per_kwh: str
    currency: str
    availability_promised_pct: float
    timezone: str


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One holder's use over a period: a tenant's, a workload's, what nobody held, or the total."""

    tenant: str | None = None  # None: unallocated, or the total
    workload: str | None = None  # only with --by workload
    account: str | None = None
    gpu_hours_allocated: float = 0.0
    gpu_hours_active: float = 0.0
    gpu_hours_idle: float = 0.0
    gpu_energy_kwh: float | None = None  # measured and bridged
    bridged_energy_kwh: float = 0.0  # of which: from counters, over gaps
    idle_energy_kwh: float | None = None  # of which: while no kernel ran
    node_energy_kwh: float | None = None  # by node meters
    site_energy_kwh: float | None = None  # with overhead, metered or by a declared PUE
    site_energy_from: str | None = None  # "metered" or "declared PUE 1.25"
    peak_15min_kw: float | None = None
    peak_15min_at: str | None = None
    utilization_pct: float | None = None
    throttled_hours: dict[str, float] = msgspec.field(default_factory=dict)  # by THROTTLES
    cost: float | None = None
    cost_gpu_hours: float | None = None
    cost_energy: float | None = None
    currency: str | None = None
    terms: Terms | None = None
    delivered_gpus: float | None = None  # time-weighted mean of GPUs that were there
    availability_pct: float | None = None  # delivered GPU-time of contracted GPU-time
    coverage: float | None = None  # measured of expected GPU-time
    gap_hours: dict[str, float] = msgspec.field(default_factory=dict)  # by CAUSES
    estimated_share: float = 0.0  # of the energy: divided by shares, or bridged
    provisional_hours: float = 0.0  # of the period's hours: not closed yet
    energy_mj: str = "0"  # measured, exactly, millijoules
    bridged_mj: str = "0"
    curve: list[Point] = msgspec.field(default_factory=list)
    histogram_hours: list[float] = msgspec.field(default_factory=list)  # by HISTOGRAM_BINS
    corrections: list[str] = msgspec.field(default_factory=list)  # sentences: what was re-closed


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename={"since": "from", "until": "to"}):
    """What `megawatch usage` says of a period."""

    since: str
    until: str
    site: str
    timezone: str
    tenants: list[Use]
    unallocated: Use | None  # None in a statement for one tenant: it says nothing about others
    total: Use | None
    notes: list[str] = msgspec.field(default_factory=list)
