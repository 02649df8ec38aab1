"""The tables: numbered SQL templates in migrations/, filled in from the catalogue, in three forms.

Embedded (chDB: no TTL, a cap on disk instead), a single server, and a cluster, where each table is
a ReplicatedMergeTree in the database `<name>_local` of every shard, with a Distributed table of the
same name in front of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Final, Literal

from pipeline.catalog import FAST, SLICE, SLOW, Metric, Rollup
from pipeline.records import BAD_POWER, SHARED, UNALLOCATED
from pipeline.settings import ClickHouse

Form = Literal["embedded", "server", "cluster"]

_INTEGER: Final = {
    "u1": "UInt8", "u2": "UInt16", "u4": "UInt32", "u8": "UInt64", "i2": "Int16", "i4": "Int32",
}  # fmt: skip
DEDUPLICATION_WINDOW: Final = 20_000
"""Parts whose tokens are remembered: pipelines x inserts/s x partitions touched x an hour."""
_PLAIN: Final = "auto_statistics_types = ''"
"""No statistics of every column of every part: measured, a sixth of the cost of all ingest."""
_SYNCED: Final = "fsync_after_insert = 1, fsync_part_directory = 1"
_BULK: Final = (
    "min_bytes_for_wide_part = 134217728, merge_selector_base = 60,"
    " ratio_of_defaults_for_sparse_serialization = 1,"
    " min_partition_age_to_force_merge_seconds = 3600"
)
"""One file for a fresh part in place of two for every column, and dozens of parts to a merge, not
five: each pass over the rows costs as much as inserting them. What is left of a partition when
nothing came for an hour is merged then. No sparse columns, which make a merge a twelfth dearer for
0.3 % of its bytes. See pipeline/merges.py for large sites."""
_TIME, _ENERGY = "UInt64 CODEC(T64, ZSTD(1))", "Decimal(18, 3) CODEC(T64, ZSTD(1))"
LEDGER_COLUMNS: Final = (
    ("allocated_ms", _TIME), ("energy_j", _ENERGY), ("idle_j", _ENERGY), ("bridged_j", _ENERGY),
    ("estimated_j", _ENERGY), ("measured_ms", _TIME), ("held_ms", _TIME), ("active_ms", _TIME),
    ("util_gpu_pct_ms", _TIME), ("util_gpu_pct_dt_ms", _TIME),
    ("power_w_ms", "Decimal(18, 1) CODEC(T64, ZSTD(1))"), ("power_w_dt_ms", _TIME),
    ("throttle_power_cap_ms", _TIME), ("throttle_sw_thermal_ms", _TIME),
    ("throttle_hw_thermal_ms", _TIME), ("throttle_power_brake_ms", _TIME), ("gap_ms", _TIME),
)  # fmt: skip
"""What both tables of the ledger hold of a holder's quarter."""
_LATEST: Final = ("power_w", "temp_gpu_c", "util_gpu_pct", "mem_used_mib", "throttle_reasons")


@dataclass(frozen=True, slots=True)
class Statement:
    """One numbered step of the schema."""

    number: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class RollupColumn:
    """A column of a rollup: its type in the table, and how it comes from raw rows."""

    name: str
    function: str
    type: str
    expression: str


def column_type(metric: Metric) -> str:
    """A metric's type: its unit with its decimals, as an integer underneath; NULL if unreported."""
    return f"Nullable({_plain_type(metric)})"


def sample_columns() -> list[tuple[str, str]]:
    """Name and definition of the fast metrics' columns in gpu_samples: a stored code, and a name.

    `power_w_code` is stored, with the catalogue's null code where nothing was reported; `power_w`
    is what everybody reads: the same, or NULL. Against Nullable columns inserts cost an eighth
    less and merges a fifth.
    """
    out = []
    for metric in FAST:
        kind, code = _plain_type(metric), str(metric.null_code)
        if metric.decimals:  # as an integer: the code may have more digits than the decimal
            code = f"reinterpret(to{_underneath(metric)}({code}), '{kind}')"
        stored = coded(metric.name)
        out += [
            (stored, f"{kind} DEFAULT {code} CODEC({_codec(metric)})"),
            (
                metric.name,
                f"{column_type(metric)} ALIAS if({_missing(metric, '')}, NULL, {stored})",
            ),
        ]
    return out


def coded(name: str) -> str:
    """The column of gpu_samples that holds a metric's codes."""
    return f"{name}_code"


def _missing(metric: Metric, of: str = "s.") -> str:
    """The condition on `gpu_samples AS s` that a metric was not reported."""
    return f"{_integer(metric, of)} = {metric.null_code}"


def _integer(metric: Metric, of: str = "s.") -> str:
    """The integer that gpu_samples holds: decimals of 128 bits cost twice as much to add."""
    stored = of + coded(metric.name)
    return f"reinterpretAs{_underneath(metric)}({stored})" if metric.decimals else stored


def _underneath(metric: Metric) -> str:
    """The integer that a decimal is made of: energy is 64 bits wide wherever it stands."""
    return "Int64" if metric.unit == "j" else "Int32"


def _plain_type(metric: Metric) -> str:
    if metric.decimals:
        return f"Decimal({18 if _underneath(metric) == 'Int64' else 9}, {metric.decimals})"
    return _INTEGER[metric.storage]


def metric_columns(metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    """Name and definition of every metric's column."""
    return [(m.name, f"{column_type(m)} CODEC({_codec(m)})") for m in metrics]


def _codec(metric: Metric) -> str:
    if metric.kind == "counter":
        return "Delta, Default"
    return "Default" if metric.storage in ("u1", "i2") else "T64, Default"


def rollup_columns(table: Rollup) -> list[RollupColumn]:
    """What a rollup keeps, by the catalogue: sums of deltas, value x time of gauges, extremes."""
    columns = []
    for metric in FAST:
        if table not in metric.rollups:
            continue
        if metric.kind == "delta":
            columns.append(_delta(metric))
        else:
            columns += _gauge(metric, extremes=table != "power_seconds")
    columns += [
        RollupColumn("rows", "sum", "UInt64", "count()"),
        RollupColumn("dt_ms", "sum", "UInt64", "sum(s.dt_ms)"),
        RollupColumn("held_ms", "sum", "UInt64", "sumIf(s.dt_ms, bitTest(s.flags, 0))"),
    ]
    if table != "power_seconds":
        active = "sumIf(s.dt_ms, ifNull(s.util_gpu_pct, 0) > 0)"
        columns.append(RollupColumn("active_ms", "sum", "UInt64", active))
    return columns


def _delta(metric: Metric) -> RollupColumn:
    kind = f"Decimal(38, {metric.decimals})" if metric.decimals else "UInt64"
    total = f"sumIf({_integer(metric)}, NOT ({_missing(metric)}))"
    if metric.decimals:
        total = f"toDecimal128({total}, {metric.decimals}) / {metric.scale}"
    return RollupColumn(metric.name, "sum", kind, total)


def _gauge(metric: Metric, *, extremes: bool) -> list[RollupColumn]:
    """A mean's two sums, and extremes; every row stands for some time, so that none means no row."""
    name, kind = metric.name, column_type(metric)
    good = f"NOT ({_missing(metric)})"
    if metric.unit == "w":
        good += f" AND bitAnd(s.flags, {BAD_POWER}) = 0"
    total = f"sumIf(toInt64({_integer(metric)}) * s.dt_ms, {good})"
    wide = "Int64"
    if metric.decimals:
        wide = f"Decimal(38, {metric.decimals})"
        total = f"toDecimal128({total}, {metric.decimals}) / {metric.scale}"
    time = f"sumIf(s.dt_ms, {good})"
    out = [
        RollupColumn(f"{name}_ms", "sum", wide, total),
        RollupColumn(f"{name}_dt_ms", "sum", "UInt64", time),
    ]
    for function in ("min", "max") if extremes else ():
        # Of integers, NULL only where a group has none: half the cost of NULL in every row.
        found = f"{function}If({_integer(metric)}, {good})"
        if metric.decimals:
            found = f"reinterpret({found}, '{_plain_type(metric)}')"
        text = f"if({time} = 0, NULL, {found})"
        out.append(RollupColumn(f"{name}_{function}", function, kind, text))
    return out


def statements(form: Form, settings: ClickHouse, cluster: str = "") -> list[Statement]:
    """The whole schema in order, rendered for an engine."""
    values = _values(form, settings, cluster)
    folder = resources.files("pipeline") / "migrations"
    out = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            sql = Template(entry.read_text()).substitute(values)
            out.append(Statement(int(number), name, _for_form(sql, form)))
    return out


def _values(form: Form, settings: ClickHouse, cluster: str) -> dict[str, object]:
    window = "replicated" if form == "cluster" else "non_replicated"
    deduplicated = f"{window}_deduplication_window = {DEDUPLICATION_WINDOW}"
    values: dict[str, object] = {
        "db": f"{settings.database}_local." if form == "cluster" else "",
        "on_cluster": f" ON CLUSTER '{cluster}'" if form == "cluster" else "",
        "durable": f"{deduplicated}, {_PLAIN}, {_SYNCED}",
        "bulk": f"{deduplicated}, {_PLAIN}, {_SYNCED}, {_BULK}",
        # What a power cut may take from: slow columns of the last seconds, which come again.
        "lasting": f"{deduplicated}, {_PLAIN}, {_BULK}",
        "plain": _PLAIN,
        "fast_columns": _definitions(sample_columns()),
        "slow_columns": _definitions(metric_columns(SLOW)),
        "slice_columns": _definitions(metric_columns(SLICE)),
        "latest_columns": _definitions(
            [(m.name, column_type(m)) for m in FAST if m.name in _LATEST]
        ),
        "bad_power": BAD_POWER,
        "unallocated": UNALLOCATED,
        "shared": SHARED,
    }
    values["ledger_columns"] = _definitions(LEDGER_COLUMNS)
    tables: tuple[Rollup, ...] = ("power_seconds", "tenant_minutes", "gpu_minutes")
    for table in tables:
        aggregated = table != "gpu_minutes"
        values[f"{table}_columns"] = _definitions(
            [
                (
                    c.name,
                    f"SimpleAggregateFunction({c.function}, {c.type})" if aggregated else c.type,
                )
                for c in rollup_columns(table)
            ]
        )
        values[f"{table}_select"] = select_list(table)
    for name in ("samples", "health", "seconds", "minutes"):
        values[f"{name}_ttl_days"] = getattr(settings, f"{name}_ttl_days")
    return values


def select_list(table: Rollup) -> str:
    """The expressions that fill a rollup's columns from rows of `gpu_samples AS s`."""
    return ",\n    ".join(f"{c.expression} AS {c.name}" for c in rollup_columns(table))


def _definitions(columns: Sequence[tuple[str, str]]) -> str:
    return ",\n    ".join(f"{name} {definition}" for name, definition in columns)


def _for_form(sql: str, form: Form) -> str:
    if form == "embedded":
        return re.sub(r"^TTL .*\n", "", sql, flags=re.MULTILINE)
    if form == "cluster":
        # Without arguments the path and replica come from the server's defaults.
        return re.sub(
            r"^ENGINE = (\w*MergeTree)", r"ENGINE = Replicated\1", sql, flags=re.MULTILINE
        )
    return sql


_TABLE: Final = re.compile(
    r"CREATE (?:TABLE IF NOT EXISTS|VIEW IF NOT EXISTS|OR REPLACE VIEW) (?:\w+\.)?(\w+)"
)
_SHARD_BY: Final = {"gpu_samples": "gpu", "gpu_health": "gpu", "slice_samples": "gpu",
                    "gpu_minutes": "gpu", "gpu_latest": "gpu"}  # fmt: skip


def cluster_statements(settings: ClickHouse, cluster: str) -> list[str]:
    """The cluster form: databases, local tables and views, and the tables in front of them."""
    name, local = settings.database, f"{settings.database}_local"
    out = [f"CREATE DATABASE IF NOT EXISTS {db} ON CLUSTER '{cluster}'\n" for db in (local, name)]
    for statement in statements("cluster", settings, cluster):
        out.append(statement.sql)
        found = _TABLE.search(statement.sql)
        if found is None:
            continue
        table = found[1]
        if "VIEW" in found[0]:
            # A view in front reads the distributed tables.
            out.append(statement.sql.replace(f"{local}.", f"{name}."))
        else:
            shard = _SHARD_BY.get(table, "rand()")
            out.append(
                f"CREATE TABLE IF NOT EXISTS {name}.{table} ON CLUSTER '{cluster}' "
                f"AS {local}.{table}\n"
                f"ENGINE = Distributed('{cluster}', '{local}', '{table}', {shard})\n"
            )
    return out
