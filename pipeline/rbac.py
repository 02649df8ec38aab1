"""Who may do what on a ClickHouse server: `megawatch schema --rbac`.

Roles: <database>_owner migrates, <database>_writer ingests, <database>_operator reads everything.
Each tenant has a role and a database of its own, both called <database>_tenant_<id>, with the id in
hex. The tenant's role reads the views in it and nothing else: no table, dictionary, system table or
table function. A view reads as its tenant's definer, a user who cannot log in, and row policies let
role and definer see that tenant's rows alone. Grants are the first wall, these policies the second:
a filter in a view alone can be probed, since conditions of the outer query may be evaluated before
it (`WHERE throwIf(...)`), but a row policy comes before both.

Every table with policies lets everybody else see all rows, as far as grants go: materialized views
read as whoever created them, and with no policy for that user they would silently pass nothing on.

The statements follow `megawatch migrate`; an administrator runs them, repeating them is safe, and
so is it to add tenants. On a cluster the server keeps roles and policies in a replicated access
storage; the server's own `select_from_system_db_requires_grant` must be on, as shipped.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pipeline import schema
from pipeline.errors import Refuse
from pipeline.records import SHARED, UNALLOCATED, id64
from pipeline.settings import ClickHouse

_VIEWS: Final = {
    "power_seconds": "tenant = {tenant}",
    "tenant_minutes": "tenant = {tenant}",
    "ledger_use": "tenant = {tenant}",
    "contracts": "tenant_id = {tenant}",
    "tenants": "id = {tenant}",
    "sites": (
        "name IN (SELECT site FROM {db}.contracts WHERE tenant_id = {tenant}"
        " UNION ALL SELECT site FROM {db}.allocations WHERE tenant_id = {tenant})"
    ),
    "settled": "1",
}
"""What a tenant sees: tables and views of the site, and which of their rows are the tenant's.

Site names and `settled`, a time, come from tables without a tenant: the filter is their only wall."""
_READS: Final = (
    *(f"SELECT ON {{db}}.{name}" for name in _VIEWS),
    "SELECT ON {db}.ledger_holders",
    "SELECT(site, ts, version, state) ON {db}.ledger_closes",
    "SELECT(site, tenant, tenant_id) ON {db}.allocations",
    "SELECT(site, site_id) ON {db}.inventory",
    "SELECT(at, kind, watermark) ON {db}.ingest_log",
)
"""What a definer needs for them: a view of the site reads as whoever asks it."""
_TENANT_LIMITS: Final = {
    "readonly": 1, "max_execution_time": 60, "max_memory_usage": 4 << 30,
    "max_rows_to_read": 200_000_000, "max_result_rows": 1_000_000,
    "max_concurrent_queries_for_user": 8,
}  # fmt: skip
"""Seconds, bytes, rows. Nothing of it can be changed by a tenant, also not lowered, but the time."""
_OPERATOR_LIMITS: Final = {
    "readonly": 1, "max_execution_time": 600, "max_memory_usage": 32 << 30,
}  # fmt: skip
_QUOTA: Final = (
    "FOR INTERVAL 1 minute MAX queries = 300,"
    " FOR INTERVAL 1 hour MAX queries = 6000, read_rows = 5000000000, execution_time = 1800"
)
"""All users of a tenant together; execution time in seconds."""
_COLUMN: Final = re.compile(r"^    (tenant|tenant_id) UInt64\b", re.MULTILINE)
_TABLE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")
_ENGINE: Final = re.compile(r"^ENGINE = (\w+)", re.MULTILINE)


def statements(settings: ClickHouse, tenants: Sequence[str]) -> list[str]:
    """SQL for a server, in the order in which to run it, without semicolons and passwords.

    `tenants` are names as in allocations, repetitions allowed. Raises Refuse for a name that has
    no id of its own.
    """
    tables = {
        table[1]: column[1]
        for step in schema.statements("server", settings)
        if (table := _TABLE.search(step.sql)) and (column := _COLUMN.search(step.sql))
    }
    found = [*_staff(settings), *_open(settings, tables)]
    for number, name in _ids(tenants).items():
        found += _tenant(settings, tables, number, name)
    return found


def _ids(tenants: Sequence[str]) -> dict[int, str]:
    ids: dict[int, str] = {}
    for name in tenants:
        if not name:
            raise Refuse("a tenant has no name: leave it out, what nobody holds is nobody's to see")
        try:
            number = id64("", name)
        except UnicodeEncodeError as error:
            raise Refuse(
                f"tenant {name!r} is no Unicode text: write it as in allocations"
            ) from error
        if ids.setdefault(number, name) != name or number in (UNALLOCATED, SHARED):
            raise Refuse(
                f"tenants {ids[number]!r} and {name!r} have the same id: rename one of them"
            )
    return ids


def _staff(settings: ClickHouse) -> Iterator[str]:
    """The site's own roles."""
    db = quoted(settings.database)
    owner, writer, operator = (
        quoted(f"{settings.database}_{name}") for name in ("owner", "writer", "operator")
    )
    used = {"MergeTree"}.union(
        *(_ENGINE.findall(step.sql) for step in schema.statements("server", settings))
    )
    engines = ", ".join(f"TABLE ENGINE ON {name}" for name in sorted(used))
    yield (
        "-- Users of these roles are made by hand, one for each service or person:\n"
        "-- CREATE USER name IDENTIFIED WITH sha256_password BY '...' DEFAULT ROLE role\n"
        f"CREATE ROLE IF NOT EXISTS {owner}, {writer}, {operator}"
    )
    yield (
        "-- For `megawatch migrate`.\n"
        "GRANT SELECT, INSERT, CREATE TABLE, CREATE VIEW, DROP VIEW, ALTER ADD COLUMN"
        f" ON {db}.*, {engines} TO {owner} WITH REPLACE OPTION"
    )
    yield f"GRANT SELECT, INSERT ON {db}.* TO {writer} WITH REPLACE OPTION"
    yield f"GRANT SELECT ON {db}.*, SELECT ON system.parts TO {operator} WITH REPLACE OPTION"
    yield _profile(operator, _OPERATOR_LIMITS)


def _open(settings: ClickHouse, tables: Mapping[str, str]) -> Iterator[str]:
    for table in tables:
        yield (
            f"CREATE ROW POLICY OR REPLACE {quoted(f'{settings.database}_all')}"
            f" ON {quoted(settings.database)}.{table} FOR SELECT USING 1 AS PERMISSIVE TO ALL"
        )


def _tenant(
    settings: ClickHouse, tables: Mapping[str, str], number: int, name: str
) -> Iterator[str]:
    """All that one tenant has: first the walls, then the views, at last the door."""
    plain = f"{settings.database}_tenant_{number:016x}"
    db, role, definer = quoted(settings.database), quoted(plain), quoted(f"{plain}_definer")
    yield f"-- Tenant {commented(name)}.\nCREATE ROLE IF NOT EXISTS {role}"
    yield (
        "-- Nobody: it has neither a host to log in from nor a password that fits this hash.\n"
        f"CREATE USER IF NOT EXISTS {definer} IDENTIFIED WITH sha256_hash BY '{'0' * 64}'"
        " HOST NONE DEFAULT ROLE NONE GRANTEES NONE"
    )
    for table, column in tables.items():
        yield (
            f"CREATE ROW POLICY OR REPLACE {role} ON {db}.{table} FOR SELECT"
            f" USING {column} = {number} AS RESTRICTIVE TO {role}, {definer}"
        )
    reads = ", ".join(one.format(db=db) for one in _READS)
    yield f"GRANT {reads} TO {definer} WITH REPLACE OPTION"
    yield _profile(role, _TENANT_LIMITS)
    yield f"CREATE QUOTA OR REPLACE {role} NOT KEYED {_QUOTA} TO {role}"
    yield f"CREATE DATABASE IF NOT EXISTS {role}"
    for view, which in _VIEWS.items():
        rows = f"SELECT * FROM {db}.{view} WHERE {which.format(db=db, tenant=number)}"  # noqa: S608
        yield (
            f"CREATE OR REPLACE VIEW {role}.{view} DEFINER = {definer} SQL SECURITY DEFINER AS"
            f" {rows}"
        )
    seen = ", ".join(f"SELECT ON {role}.{view}" for view in _VIEWS)
    yield (
        "-- Its users are made by hand:\n"
        "-- CREATE USER name IDENTIFIED WITH sha256_password BY '...'"
        f" DEFAULT ROLE {role} DEFAULT DATABASE {role}\n"
        f"GRANT {seen} TO {role} WITH REPLACE OPTION"
    )


def _profile(role: str, limits: Mapping[str, int]) -> str:
    values = ", ".join(
        f"{name} = {value} {_constraint(name, value)}" for name, value in limits.items()
    )
    return f"CREATE SETTINGS PROFILE OR REPLACE {role} SETTINGS {values} TO {role}"


def _constraint(name: str, value: int) -> str:
    """Who may change a limit: nobody, but Grafana's plugin sets the time with every query.

    A server needs settings_constraints_replace_previous for that, which ClickHouse's own
    config.xml switches on. 0 would be no limit.
    """
    if name == "max_execution_time":
        return f"MIN 1 MAX {2 * value} CHANGEABLE_IN_READONLY"
    return "CONST"


def quoted(name: str) -> str:
    """An identifier in backticks, on one line. Raises Refuse."""
    # It also stands in comments, which a line's end would end.
    if not name.isprintable() or not name:
        raise Refuse(f"{name!r} cannot name a database: set [clickhouse] database to a plain word")
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def commented(text: str) -> str:
    """A text as one line of ASCII that ends no comment, not even for tools that split at ;."""
    return json.dumps(text[:100]).replace(";", "\\u003b").replace("\x7f", "\\u007f")
