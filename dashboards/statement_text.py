"""A statement in words and figures: how a number is written, what must be said, tables, CSV."""

import csv as stdlib_csv
import io
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from pipeline.ledger.figures import CAUSES, THROTTLES, Statement, Terms, Use
from pipeline.table import render

Kind = Literal["tenant", "workload", "unallocated", "total"]

WHOLE: Final = 0.99
"""Coverage from which a figure is taken as complete."""

_THIN: Final = "\u202f"
"""Between thousands: a comma would be a decimal sign to half of the readers."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs a cell that begins so."""
_CAUSES: Final = {
    "agent": "monitoring agent stopped", "node": "node down", "gpu": "GPU lost",
    "driver": "driver hung", "spool": "buffer overflowed", "transit": "still on its way",
    "unknown": "cause not known",
}  # fmt: skip
_THROTTLES: Final = {
    "power_cap": "power cap", "sw_thermal": "software thermal limit",
    "hw_thermal": "hardware thermal limit", "power_brake": "power brake",
}  # fmt: skip


def known(value: float | None) -> float | None:
    """The value, or None for what is no number."""
    return value if value is not None and math.isfinite(value) else None


def fixed(value: float | None, decimals: int) -> str | None:
    """With thousands apart, never in powers of ten; what is not zero never reads as zero."""
    if (value := known(value)) is None:
        return None
    least = 10.0**-decimals
    if value and abs(value) < least / 2:
        return f"<{least:.{decimals}f}" if value > 0 else f">-{least:.{decimals}f}"
    return f"{value + 0.0:,.{decimals}f}".replace(",", _THIN)


def amount(value: float | None) -> str | None:
    """Energy, power, hours: one decimal from 100 on, three below."""
    return "0" if value == 0 else fixed(value, 1 if abs(value or 0) >= 100 else 3)


def percent(value: float | None) -> str | None:
    """A percentage with two decimals."""
    return fixed(value, 2)


def at_least(value: float | None) -> str | None:
    """A percentage of something promised: rounded down, so that 99.999 is not 100."""
    if (value := known(value)) is None:
        return None
    # Six decimals first: 0.29 * 100 is a hair below 29.
    return fixed(math.floor(round(value * 100, 6)) / 100, 2)


def share(value: float | None) -> float | None:
    """A share of one as a percentage."""
    return None if value is None else value * 100


def clean(text: str) -> str:
    """One line without characters that steer a terminal or turn the direction of writing."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line) or "(no name)"


def is_private(statement: Statement) -> bool:
    """Whether it is one tenant's own and so says nothing about others."""
    return statement.total is None and len({use.tenant for use in statement.tenants}) == 1


def uses(statement: Statement) -> list[tuple[Kind, Use]]:
    """Every row with its kind: tenants and workloads, what nobody held, the total.

    Beside a tenant's workloads a row without one is what the tenant used outside of them.
    """
    by_job = {use.tenant for use in statement.tenants if use.workload is not None}
    rows: list[tuple[Kind, Use]] = [
        ("workload" if use.tenant in by_job else "tenant", use) for use in statement.tenants
    ]
    if statement.unallocated is not None and not is_private(statement):
        rows.append(("unallocated", statement.unallocated))
    if statement.total is not None:
        rows.append(("total", statement.total))
    return rows


def money(value: float | None, currency: str | None) -> str | None:
    """An amount with its currency."""
    text = fixed(value, 2)
    return text if text is None or not currency else f"{text} {clean(currency)}"


def notices(use: Use) -> list[str]:
    """What a reader must know before the figures: sentences, none if all is well."""
    out = []
    coverage, availability, terms = known(use.coverage), known(use.availability_pct), use.terms
    provisional, estimated = known(use.provisional_hours), known(use.estimated_share)
    if coverage is None and use.gpu_hours_allocated > 0:
        out.append("It is not known how much of the GPU time was measured.")
    if coverage is not None and coverage < WHOLE:
        out.append(
            f"Only {at_least(share(coverage))} % of the GPU time was measured. Energy, power and"
            " utilisation are those of the measured time, with the energy that the GPUs' own"
            " counters prove for the gaps; nothing was added for the rest."
        )
    if provisional:
        out.append(
            f"{fixed(provisional, 1)} hours of the period are not closed yet: this statement is"
            " provisional and may still change."
        )
    if estimated:
        out.append(
            f"{percent(share(estimated))} % of the energy is estimated: bridged over"
            " gaps, or divided among holders who shared a GPU."
        )
    if terms and availability is not None and availability < terms.availability_promised_pct:
        out.append(
            f"Availability was {at_least(availability)} %;"
            f" {percent(terms.availability_promised_pct)} % was promised."
        )
    return out


class Figure(NamedTuple):
    """A line of a statement: its figure as text, or the words for why there is none."""

    label: str
    text: str | None
    unit: str = ""
    missing: str = "no source"
    part: bool = False  # of the figure above it


def figures(use: Use, when: Callable[[str], str]) -> dict[str, list[Figure]]:
    """Every figure under the heading of its group; `when` writes a time of ISO 8601 for people."""
    return {
        "Use": _use(use),
        "Energy": _energy(use),
        "Power": _power(use, when),
        "Cost": _cost(use),
        "Service": _service(use),
        "Measurement": _measurement(use),
    }


def _use(use: Use) -> list[Figure]:
    return [
        Figure("GPU-hours allocated", amount(use.gpu_hours_allocated), "h"),
        Figure("of which active", amount(use.gpu_hours_active), "h", part=True),
        Figure("of which idle", amount(use.gpu_hours_idle), "h", part=True),
        Figure("Mean utilisation", percent(use.utilization_pct), "%", "not reported"),
        *_throttled(use.throttled_hours),
    ]


def _energy(use: Use) -> list[Figure]:
    source = f" ({use.site_energy_from})" if use.site_energy_from else ""
    return [
        Figure("GPU energy", amount(use.gpu_energy_kwh), "kWh", "not measured"),
        Figure("of which bridged over gaps", amount(use.bridged_energy_kwh), "kWh", part=True),
        Figure("of which estimated", percent(share(use.estimated_share)), "%", part=True),
        Figure("of which while idle", amount(use.idle_energy_kwh), "kWh", "not known", part=True),
        Figure("Node energy", amount(use.node_energy_kwh), "kWh", "not metered"),
        Figure(f"Site energy{source}", amount(use.site_energy_kwh), "kWh", "not metered"),
    ]


def _power(use: Use, when: Callable[[str], str]) -> list[Figure]:
    at = when(use.peak_15min_at) if use.peak_15min_at else None
    contracted = amount(use.terms.contracted_kw) if use.terms else None
    return [
        Figure("Peak quarter of an hour", amount(use.peak_15min_kw), "kW", "not measured"),
        Figure("beginning", at, missing="not known", part=True),
        Figure("Contracted", contracted, "kW", "no contract"),
    ]


def _cost(use: Use) -> list[Figure]:
    terms, missing = use.terms, "not priced"
    prices = ("", "")
    if terms:
        prices = (
            f" at {terms.price_per_gpu_hour} {terms.currency} per hour",
            f" at {terms.price_per_kwh} {terms.currency} per kWh",
        )
    return [
        Figure("Cost", money(use.cost, use.currency), missing=missing),
        Figure(f"GPU-hours{prices[0]}", fixed(use.cost_gpu_hours, 2), "", missing, part=True),
        Figure(f"energy{prices[1]}", fixed(use.cost_energy, 2), "", missing, part=True),
    ]


def _service(use: Use) -> list[Figure]:
    terms, missing = use.terms, "no contract"
    contracted = fixed(terms.contracted_gpus, 0) if terms else None
    promised = percent(terms.availability_promised_pct) if terms else None
    return [
        Figure("GPUs contracted", contracted, missing=missing),
        Figure("GPUs delivered, mean", fixed(use.delivered_gpus, 2)),
        Figure("Availability", at_least(use.availability_pct), "%", missing),
        Figure("promised", promised, "%", missing, part=True),
    ]


def _measurement(use: Use) -> list[Figure]:
    return [
        Figure("Coverage", at_least(share(use.coverage)), "%", "not known"),
        *_gaps(use.gap_hours),
        Figure("Provisional", amount(use.provisional_hours), "h"),
        Figure("Measured, exactly", _exact(use.energy_mj), "mJ"),
        Figure("Bridged, exactly", _exact(use.bridged_mj), "mJ"),
    ]


def _throttled(hours: Mapping[str, float]) -> list[Figure]:
    """By cause and without a sum: two causes may hold at once."""
    if not any(hours.values()):
        return [Figure("Throttled", "0" if hours else None, "h", "none recorded")]
    return [
        Figure(f"Throttled, {_THROTTLES.get(cause, cause)}", amount(h), "h")
        for cause, h in hours.items()
        if h
    ]


def _gaps(hours: Mapping[str, float]) -> list[Figure]:
    """Their sum, then the causes that occurred."""
    total = amount(sum(hours.values())) if hours else None
    causes = [
        Figure(_CAUSES.get(cause, cause), amount(h), "h", part=True)
        for cause, h in hours.items()
        if h
    ]
    return [Figure("Not measured", total, "h", "none recorded"), *causes]


def _exact(digits: str) -> str:
    """Thousands apart, if these are digits."""
    whole = digits.isascii() and digits.isdecimal()
    return f"{int(digits):,}".replace(",", _THIN) if whole else clean(digits)


def table(statement: Statement) -> str:
    """Lines for a terminal: a row per tenant or workload, then unallocated and total."""
    rows = uses(statement)
    names = ["tenant", "workload"][: 1 + any(kind == "workload" for kind, _ in rows)]
    lines = [[figure.label for figure in columns(Use())]]
    for _, use in rows:
        lines.append([(f.text or "-").replace(_THIN, ",") for f in columns(use)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *figured = [[t.rjust(w) for t, w in zip(x, widths, strict=True)] for x in lines]
    cells = [
        [*_words(kind, use)[: len(names)], *texts]
        for (kind, use), texts in zip(rows, figured, strict=True)
    ]
    return render([*names, *head], cells)


def _words(kind: Kind, use: Use) -> tuple[str, str]:
    if kind in ("unallocated", "total"):
        return f"({kind})", ""
    tenant = "(no tenant)" if use.tenant is None else clean(use.tenant)
    job = "(no job)" if use.workload is None else clean(use.workload)
    return tenant, job if kind == "workload" else ""


def columns(use: Use) -> list[Figure]:
    """The figures of a row where many uses stand under each other."""
    return [
        Figure("GPU-hours", amount(use.gpu_hours_allocated)),
        Figure("GPU kWh", amount(use.gpu_energy_kwh), missing="not measured"),
        Figure("site kWh", amount(use.site_energy_kwh), missing="not metered"),
        Figure("peak kW", amount(use.peak_15min_kw), missing="not measured"),
        Figure("util. %", percent(use.utilization_pct), missing="not reported"),
        Figure("cost", money(use.cost, use.currency), missing="not priced"),
        Figure("coverage %", at_least(share(use.coverage)), missing="not known"),
        Figure("estimated %", percent(share(use.estimated_share))),
        Figure("provisional h", amount(use.provisional_hours)),
    ]


def csv(statement: Statement) -> str:
    """RFC 4180, a row per Use, every scalar figure under its name in JSON; empty is not known.

    Dictionaries are spread (`gap_agent_hours`), terms are prefixed, corrections are one cell.
    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    rows = [_flat(statement, kind, use) for kind, use in uses(statement)]
    names = dict.fromkeys(n for row in [_flat(statement, "tenant", Use()), *rows] for n in row)
    out = io.StringIO()
    writer = stdlib_csv.writer(out)
    writer.writerow([_cell(name) for name in names])
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue()


def _flat(statement: Statement, kind: Kind, use: Use) -> dict[str, object]:
    flat: dict[str, object] = {
        "from": statement.since, "to": statement.until, "site": statement.site,
        "timezone": statement.timezone, "kind": kind,
    }  # fmt: skip
    for name in Use.__struct_fields__:
        value = getattr(use, name)
        if name == "terms":
            flat |= {f"terms_{n}": getattr(value, n, None) for n in Terms.__struct_fields__}
        elif name == "throttled_hours":
            flat |= _spread("throttled", THROTTLES, value)
        elif name == "gap_hours":
            flat |= _spread("gap", CAUSES, value)
        elif name == "corrections":
            flat[name] = "; ".join(value)
        elif name not in ("curve", "histogram_hours"):
            flat[name] = value
    return flat


def _spread(name: str, keys: tuple[str, ...], hours: Mapping[str, float]) -> dict[str, object]:
    return {f"{name}_{key}_hours": hours.get(key) for key in dict.fromkeys((*keys, *hours))}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if known(value) is None else f"{Decimal(repr(value)):f}"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "" if value is None else str(value)
