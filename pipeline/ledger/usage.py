"""A period's statement, from the ledger: every figure is a sum of closed quarters.

Quarters that have data and are not closed are not guessed at: they are left out, counted in
`provisional_hours`, and named in a note.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Final

from msgspec.structs import replace

from pipeline import queries
from pipeline.ledger import close as closing
from pipeline.ledger import contract_store
from pipeline.ledger.cells import QUARTER_MS
from pipeline.ledger.contracts import Contract
from pipeline.ledger.figures import CAUSES, HISTOGRAM_BINS, THROTTLES, Point, Statement, Terms, Use
from pipeline.records import UNALLOCATED, id64
from pipeline.store import Store

_HOUR_MS: Final = 3_600_000
_MJ_PER_KWH: Final = 3_600_000_000
_VERSIONS: Final = """FROM ledger_closes WHERE site = {site:UInt64} AND state = 'closed'
        AND ts >= toDateTime({since:Int64}, 'UTC') AND ts < toDateTime({until:Int64}, 'UTC')
    GROUP BY ts"""
_IN_RANGE: Final = f"""site = {{site:UInt64}} AND ts >= toDateTime({{since:Int64}}, 'UTC')
    AND ts < toDateTime({{until:Int64}}, 'UTC') AND (ts, version) IN (SELECT ts, max(version) {_VERSIONS})"""
_SUMS: Final = (
    "allocated_ms", "energy_j", "idle_j", "bridged_j", "estimated_j", "measured_ms", "active_ms",
    "util_gpu_pct_ms", "util_gpu_pct_dt_ms", "throttle_power_cap_ms", "throttle_sw_thermal_ms",
    "throttle_hw_thermal_ms", "throttle_power_brake_ms", "gap_ms",
)  # fmt: skip

Key = tuple[int, int]
"""(tenant, workload); workload 0 unless asked for, tenant None-like TOTAL for everything."""


@dataclass(slots=True)
class _Sum:
    """What the ledger has of somebody over the period, and each quarter's power."""

    figures: dict[str, int]
    gaps: list[int]
    bins: list[int]
    quarters: dict[int, "_Quarter"]

    @classmethod
    def zero(cls) -> "_Sum":
        return cls(dict.fromkeys(_SUMS, 0), [0] * len(CAUSES), [0] * HISTOGRAM_BINS, {})

    def quarter(self, ts_ms: int) -> "_Quarter":
        return self.quarters.setdefault(ts_ms, _Quarter())


@dataclass(slots=True)
class _Quarter:
    """A quarter of somebody: GPUs and node meters."""

    energy_mj: int = 0
    allocated_ms: int = 0
    measured_ms: int = 0
    node_mj: int | None = None


@dataclass(frozen=True, slots=True)
class _Facility:
    """What a site's own meters, above the nodes, say; None without them."""

    site_mj: int | None
    gpu_mj: int


def statement(
    store: Store,
    site: str,
    zone: dt.tzinfo,
    period: tuple[int, int],
    *,
    tenant: str = "",
    by_workload: bool = False,
) -> Statement:
    """The use of a site over [from, to), whole quarters; of one tenant alone if named."""
    from_ms, until_ms = period
    asked = {"site": id64(site), "since": from_ms // 1000, "until": until_ms // 1000}
    only = id64("", tenant) if tenant else None
    found = _holders(store, asked, by_workload, only)
    _add_meters(store, asked, found, by_workload, only)
    contracts = contract_store.read(store, site)
    names = _Names.load(store, site, contracts)
    made = _Maker(
        names, contracts, _facility(store, asked), period, by_workload, zone,
        closing.open_quarters(store, site, *period), corrections(store, asked),
    )  # fmt: skip
    keys = sorted(
        (k for k in found if k[0] != UNALLOCATED),
        key=lambda k: (names.tenant(k[0]), names.workload(k[1])),
    )
    return Statement(
        since=queries.iso(from_ms, zone), until=queries.iso(until_ms, zone), site=site,
        timezone=str(zone), tenants=[made.use(key, found[key]) for key in keys],
        unallocated=None if tenant else made.use(None, _unallocated(found)),
        total=None if tenant else made.use(None, _merged(found.values())), notes=made.notes(),
    )  # fmt: skip


def _holders(
    store: Store, asked: Mapping[str, int], by_workload: bool, only: int | None
) -> dict[Key, _Sum]:
    """Sums of GPUs by holder and quarter, of one tenant only if given."""
    workload = "workload" if by_workload else "0"
    columns = ", ".join(
        f"toInt64(sum({name}) * 1000)" if name.endswith("_j") else f"toInt64(sum({name}))"
        for name in _SUMS
    )
    rows = store.query(
        f"SELECT tenant, toUInt64({workload}) AS job, toInt64(toUnixTimestamp(ts)) * 1000 AS q,"  # noqa: S608
        f" sumForEach(gap_ms_by_cause), sumForEach(util_ms_by_bin), {columns}"
        f" FROM ledger_holders WHERE {_IN_RANGE}{_of(only)} GROUP BY tenant, job, q",
        asked,
    ).rows
    out: dict[Key, _Sum] = {}
    for holder, job, ts_ms, gaps, bins, *values in rows:
        mine = out.setdefault((holder, job), _Sum.zero())
        named = dict(zip(_SUMS, values, strict=True))
        for name, value in named.items():
            mine.figures[name] += value
        mine.gaps = _added(mine.gaps, gaps)
        mine.bins = _added(mine.bins, bins)
        quarter = mine.quarter(ts_ms)
        quarter.energy_mj += named["energy_j"] + named["bridged_j"]
        quarter.allocated_ms += named["allocated_ms"]
        quarter.measured_ms += named["measured_ms"]
    return out


def _add_meters(
    store: Store,
    asked: Mapping[str, int],
    found: dict[Key, _Sum],
    by_workload: bool,
    only: int | None,
) -> None:
    """The energy of node meters, by holder and quarter."""
    workload = "workload" if by_workload else "0"
    for holder, job, ts_ms, energy in store.query(
        f"SELECT tenant, toUInt64({workload}) AS job, toInt64(toUnixTimestamp(ts)) * 1000 AS q,"  # noqa: S608
        f" toInt64(sum(energy_j) * 1000) FROM ledger_meters WHERE kind = 'node' AND {_IN_RANGE}{_of(only)}"
        " GROUP BY tenant, job, q",
        asked,
    ).rows:
        quarter = found.setdefault((holder, job), _Sum.zero()).quarter(ts_ms)
        quarter.node_mj = (quarter.node_mj or 0) + energy


def _of(only: int | None) -> str:
    return "" if only is None else f" AND tenant = {only}"


def _facility(store: Store, asked: Mapping[str, int]) -> _Facility:
    """The energy that the site's meter read (its halls' if it has none), and that of all GPUs."""
    found = store.query(
        f"SELECT kind, toInt64(sum(energy_j) * 1000) FROM ledger_meters"  # noqa: S608
        f" WHERE kind IN ('site', 'hall') AND {_IN_RANGE} GROUP BY kind",
        asked,
    ).rows
    read: dict[str, int] = {kind: energy for kind, energy in found}  # noqa: C416
    gpu = store.query(
        f"SELECT toInt64(sum(energy_j + bridged_j) * 1000) FROM ledger_holders WHERE {_IN_RANGE}",  # noqa: S608
        asked,
    ).rows[0][0]
    return _Facility(read.get("site", read.get("hall")), gpu)


def _added(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _merged(sums: Iterable[_Sum]) -> _Sum:
    out = _Sum.zero()
    for one in sums:
        for name, value in one.figures.items():
            out.figures[name] += value
        out.gaps, out.bins = _added(out.gaps, one.gaps), _added(out.bins, one.bins)
        for ts_ms, quarter in one.quarters.items():
            into = out.quarter(ts_ms)
            into.energy_mj += quarter.energy_mj
            into.allocated_ms += quarter.allocated_ms
            into.measured_ms += quarter.measured_ms
            if quarter.node_mj is not None:
                into.node_mj = (into.node_mj or 0) + quarter.node_mj
    return out


def _unallocated(found: Mapping[Key, _Sum]) -> _Sum:
    return _merged(s for (tenant, _), s in found.items() if tenant == UNALLOCATED)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of ids: tenants from contracts and allocations, workloads with their accounts."""

    tenants: Mapping[int, str]
    workloads: Mapping[int, tuple[str, str]]

    @classmethod
    def load(cls, store: Store, site: str, contracts: Sequence[Contract]) -> "_Names":
        tenants = {row[0]: row[1] for row in store.query("SELECT id, name FROM tenants").rows}
        tenants |= {id64("", c.tenant): c.tenant for c in contracts}
        workloads = store.query(
            "SELECT workload_id, any(workload), any(account) FROM allocations"
            " WHERE site_id = {site:UInt64} AND workload_id != 0 GROUP BY workload_id",
            {"site": id64(site)},
        ).rows
        return cls(tenants, {row[0]: (row[1], row[2]) for row in workloads})

    def tenant(self, key: int) -> str:
        return self.tenants.get(key, f"{key:016x}")

    def workload(self, key: int) -> str:
        return self.workloads[key][0] if key in self.workloads else ""


@dataclass(frozen=True, slots=True)
class _Maker:
    """Sums made into figures for people."""

    names: _Names
    contracts: Sequence[Contract]
    facility: _Facility
    period: tuple[int, int]
    by_workload: bool
    zone: dt.tzinfo
    provisional: Sequence[int]
    corrected: Mapping[int, Mapping[int, str]]

    def use(self, key: Key | None, found: _Sum) -> Use:
        """One holder's figures; None: what nobody held, or everything."""
        f, hours = found.figures, _hours
        has_gpus = f["measured_ms"] > 0 or f["bridged_j"] > 0
        energy = f["energy_j"] + f["bridged_j"]
        node = [q.node_mj for q in found.quarters.values() if q.node_mj is not None]
        peak = max(found.quarters, key=lambda t: _best_mj(found.quarters[t]), default=None)
        contract = None if key is None or self.by_workload else self._contract(key)
        overhead, basis = self._overhead(energy, sum(node) if node else None, contract)
        known_ms = f["util_gpu_pct_dt_ms"]
        out = Use(
            tenant=self.names.tenant(key[0]) if key else None,
            workload=self.names.workload(key[1]) or None if key else None,
            account=self.names.workloads.get(key[1], ("", ""))[1] or None if key else None,
            gpu_hours_allocated=hours(f["allocated_ms"]), gpu_hours_active=hours(f["active_ms"]),
            gpu_hours_idle=hours(known_ms - f["active_ms"]),
            gpu_energy_kwh=_kwh(energy) if has_gpus else None,
            bridged_energy_kwh=_kwh(f["bridged_j"]),
            idle_energy_kwh=_kwh(f["idle_j"]) if known_ms else None,
            node_energy_kwh=_kwh(sum(node)) if node else None,
            site_energy_kwh=None if overhead is None else _kwh(overhead), site_energy_from=basis,
            peak_15min_kw=None if peak is None else _kw(_best_mj(found.quarters[peak])),
            peak_15min_at=None if peak is None else queries.iso(peak, self.zone),
            utilization_pct=round(f["util_gpu_pct_ms"] / known_ms, 3) if known_ms else None,
            throttled_hours={name: hours(f[f"throttle_{name}_ms"]) for name in THROTTLES},
            coverage=_ratio(f["measured_ms"], f["allocated_ms"]),
            gap_hours={c: hours(ms) for c, ms in zip(CAUSES, found.gaps, strict=True)},
            estimated_share=_ratio(f["estimated_j"] + f["bridged_j"], energy) or 0.0,
            provisional_hours=len(self.provisional) / 4, energy_mj=str(f["energy_j"]),
            bridged_mj=str(f["bridged_j"]), curve=_curve(found),
            histogram_hours=[hours(ms) for ms in found.bins],
            corrections=list(self.corrected.get(key[0], {}).values()) if key else [],
        )  # fmt: skip
        return out if contract is None else _settled(out, contract, f, energy, self.period)

    def _contract(self, key: Key) -> Contract | None:
        """The tenant's contract in force at the end of the period, or the last before it."""
        mine = [
            c for c in self.contracts
            if id64("", c.tenant) == key[0] and c.from_ms < self.period[1]
            and (c.until_ms is None or c.until_ms > max(c.from_ms, self.period[0]))
        ]  # fmt: skip
        return max(mine, key=lambda c: c.from_ms, default=None)

    def _overhead(
        self, energy_mj: int, node_mj: int | None, contract: Contract | None
    ) -> tuple[int | None, str | None]:
        """Energy with its part of the site's overhead: by meter, in proportion, else by contract."""
        if self.facility.site_mj is not None and self.facility.gpu_mj:
            return self.facility.site_mj * energy_mj // self.facility.gpu_mj, "metered"
        if contract is None or contract.pue is None:
            return None, None
        metered = energy_mj if node_mj is None else node_mj
        return int(metered * contract.pue), f"declared PUE {contract.pue}"

    def notes(self) -> list[str]:
        """What holds for the whole statement."""
        if not self.provisional:
            return []
        first, last = min(self.provisional), max(self.provisional)
        until = queries.iso(last + QUARTER_MS, self.zone)
        return [
            f"{len(self.provisional)} quarters of an hour from {queries.iso(first, self.zone)} to"  # noqa: ISC004
            f" {until} have data and are not closed: they are not in these figures"
        ]


def _settled(
    use: Use, contract: Contract, f: Mapping[str, int], energy_mj: int, period: tuple[int, int]
) -> Use:
    """The figures that follow from a contract."""
    begin = max(period[0], contract.from_ms)
    end = min(period[1], contract.until_ms or period[1])
    promised_ms = contract.contracted_gpus * (end - begin)
    gpu_hours = Decimal(f["allocated_ms"]) / _HOUR_MS * contract.price_per_gpu_hour
    energy = Decimal(energy_mj) / _MJ_PER_KWH * contract.price_per_kwh
    cents = Decimal("0.01")
    parts = gpu_hours.quantize(cents), energy.quantize(cents)
    return replace(
        use, cost=float(sum(parts)), cost_gpu_hours=float(parts[0]), cost_energy=float(parts[1]),
        currency=contract.currency, terms=_terms(contract),
        delivered_gpus=round(f["measured_ms"] / (end - begin), 3),
        availability_pct=round(100 * min(1.0, f["measured_ms"] / promised_ms), 4)
        if promised_ms else None,
    )  # fmt: skip


def _terms(contract: Contract) -> Terms:
    return Terms(
        contracted_gpus=contract.contracted_gpus, contracted_kw=float(contract.contracted_kw),
        price_per_gpu_hour=str(contract.price_per_gpu_hour),
        price_per_kwh=str(contract.price_per_kwh), currency=contract.currency,
        availability_promised_pct=float(contract.availability_pct), timezone=contract.timezone,
    )  # fmt: skip


def corrections(store: Store, asked: Mapping[str, int]) -> dict[int, dict[int, str]]:
    """What closing a quarter again changed, as a sentence, by tenant and quarter."""
    found = store.query(
        "SELECT tenant, toInt64(toUnixTimestamp(ts)) * 1000 AS q, h.version,"  # noqa: S608
        " toInt64(sum(energy_j + bridged_j) * 1000), toInt64(sum(allocated_ms)) FROM ledger_holders"
        " AS h WHERE site = {site:UInt64} AND (ts, h.version) IN"
        f" (SELECT ts, arrayJoin(groupArray(version)) {_VERSIONS}"
        " HAVING count() > 1) GROUP BY tenant, q, h.version ORDER BY tenant, q, h.version",
        asked,
    ).rows
    out: dict[int, dict[int, str]] = {}
    for (tenant, ts_ms), versions in groupby(found, key=lambda row: (row[0], row[1])):
        history = list(versions)
        (_, _, _, was, held), (_, _, version, now, holds) = history[0], history[-1]
        if (was, held) != (now, holds):
            out.setdefault(tenant, {})[ts_ms] = (
                f"{queries.iso(ts_ms, dt.UTC)} was closed again at {queries.iso(version, dt.UTC)}:"
                f" {(now - was) / _MJ_PER_KWH:+.6f} kWh, {(holds - held) / _HOUR_MS:+.4f} GPU-hours"
            )
    return out


def _curve(found: _Sum) -> list[Point]:
    return [
        Point(
            ts_ms=ts_ms, gpu_kw=_kw(q.energy_mj) if q.measured_ms else None,
            node_kw=None if q.node_mj is None else _kw(q.node_mj),
            gpu_hours=_hours(q.allocated_ms), coverage=_ratio(q.measured_ms, q.allocated_ms),
        )
        for ts_ms, q in sorted(found.quarters.items())
    ]  # fmt: skip


def _best_mj(quarter: _Quarter) -> int:
    """A quarter's energy for its peak: of its GPUs, or by meters where there are no GPUs."""
    return quarter.energy_mj or quarter.node_mj or 0


def _kwh(millijoules: int) -> float:
    return round(millijoules / _MJ_PER_KWH, 9)


def _kw(millijoules: int) -> float:
    return round(millijoules / QUARTER_MS / 1000, 6)


def _hours(ms: int) -> float:
    return round(ms / _HOUR_MS, 6)


def _ratio(part: int, whole: int) -> float | None:
    return round(min(1.0, part / whole), 6) if whole else None
