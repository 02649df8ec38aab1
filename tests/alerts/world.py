"""A store that scenarios fill, and what rules say of it."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final

from alerts import evaluate
from alerts.rule import Rule, Signal, by_signal
from alerts.rules import RULES
from pipeline.clock import SystemClock
from pipeline.records import id64
from pipeline.store import Store

AT: Final = dt.datetime(2026, 11, 21, 12, 0, 0, tzinfo=dt.UTC)
SITE: Final = "north"
SITE_ID: Final = id64(SITE)
ACME: Final = id64("", "acme")
BETA: Final = id64("", "beta")
TRAIN: Final = id64(SITE, "train-1")
TABLES: Final = (
    "power_seconds", "tenant_minutes", "gpu_minutes", "gpu_latest", "gpu_health", "meters",
    "events", "inventory", "allocations", "contracts", "ingest_log", "dead_letters",
    "ledger_sources", "ledger_closes", "ledger_holders",
)  # fmt: skip
CAPS: Final = {
    "site": 1e6, "hall h1": 1e5, "rack h1-r1": 10_000.0, "pdu h1-p1": 20_000.0,
    "pdu h1-p2": 20_000.0,
}  # fmt: skip
BY_NAME: Final = {rule.name: rule for rule in RULES}
WITH_SQL: Final = [rule.name for rule in RULES if rule.signal is not None]


Found = tuple[dict[str, str], float]


@dataclass
class World:
    """A store that a scenario fills, and what rules say of it at AT."""

    store: Store
    touched: set[str] = field(default_factory=set)
    names: evaluate.Names = field(default_factory=dict)

    def put(self, table: str, *rows: dict[str, object]) -> None:
        """Rows by column; what is missing is the column's default."""
        self.touched.add(table)
        lines = ", ".join(f"({', '.join(map(literal, row.values()))})" for row in rows)
        self.store.command(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES {lines}")

    def many(self, table: str, columns: str, select: str) -> None:
        self.touched.add(table)
        self.store.command(f"INSERT INTO {table} ({columns}) {select}")

    def clear(self) -> None:
        for table in self.touched:
            self.store.command(f"TRUNCATE TABLE {table}")
        self.touched.clear()

    def ask(self, rule: Rule) -> list[Found]:
        """Labels and value of what breaks the rule, all rules of its signal asked at once."""
        assert rule.signal is not None
        return self.all(rule.signal)[rule.name]

    def all(self, signal: Signal) -> dict[str, list[Found]]:
        """The same for every rule of a signal."""
        rules = by_signal(RULES)[signal.name]
        at_ms = round(AT.timestamp() * 1000)
        times = evaluate.Times(at_ms, at_ms)
        asked = evaluate.ask(self.store, rules, {}, CAPS, times, SystemClock(), inf, self.names)
        assert not asked.errors
        return {
            name: [({n: v for n, v in hit.labels.items() if v}, hit.value) for hit in answer.hits]
            for name, answer in asked.answers.items()
            if answer is not None
        }

    # -- what scenarios are made of ---------------------------------------------------------

    def gpus(self, node: str = "h1-r1-n1", count: int = 8, age_s: int = 86_400) -> None:
        """A node of the inventory; hall, rack and PDU follow from its name, two racks to a PDU."""
        hall, rack, _ = node.split("-")
        pdu = f"{hall}-p{(int(rack[1:]) + 1) // 2}"
        self.put("inventory", *({
            "site": SITE, "node": node, "hall": hall, "row": f"{hall}-row1",
            "rack": f"{hall}-{rack}", "pdu": pdu, "gpu_index": i, "uuid": uuid,
            "model": "H100", "site_id": SITE_ID, "node_id": id64(SITE, node),
            "gpu_id": id64(SITE, uuid), "from_ts": ago(age_s), "asserted_at": ago(age_s),
        } for i in range(count) for uuid in (f"{node}/{i}",)))  # fmt: skip

    def live(self, node: str = "h1-r1-n1", count: int = 8, **odd: dict[int, float]) -> None:
        """Newest ticks; `odd` has, by column, what differs for some of the GPUs."""
        rows = []
        for i in range(count):
            usual = {
                "power_w": 600, "temp_gpu_c": 60, "util_gpu_pct": 98, "throttle_reasons": 0,
                "flags": 0, "tenant": ACME, "workload": TRAIN, "late_s": 2,
            }  # fmt: skip
            row = {n: odd.get(n, {}).get(i, v) for n, v in usual.items()}
            late_s = int(row.pop("late_s"))
            rows.append(
                {
                    "gpu": id64(SITE, f"{node}/{i}"),
                    "ts": ago(late_s),
                    "node": id64(SITE, node),
                    "site": SITE_ID,
                    **row,
                }
            )
        self.put("gpu_latest", *rows)

    def seconds(self, watts: str, gpus: str = "100", tenant: int = ACME) -> None:
        """Two minutes and more; `s` counts seconds up to AT, from -140 to -1."""
        self.many(
            "power_seconds",
            "site, tenant, ts, power_w_ms, power_w_dt_ms, dt_ms, rows",
            f"""
            SELECT {SITE_ID}, {tenant}, toDateTime({int(AT.timestamp())}) + s, ({watts}) * 1000,
                ({gpus}) * 1000, ({gpus}) * 1000, {gpus}
            FROM (SELECT toInt32(number) - 140 AS s FROM numbers(140)) WHERE ({gpus}) > 0""",
        )

    def minutes(self, gpus: str, watts: str = "600", active: str = "1", tenant: int = ACME) -> None:
        """Six hours; `m` counts minutes up to AT, from -360 to -1."""
        self.many(
            "tenant_minutes",
            "site, tenant, ts, power_w_ms, power_w_dt_ms, dt_ms, active_ms",
            f"""
            SELECT {SITE_ID}, {tenant}, toDateTime({int(AT.timestamp())}) + 60 * m,
                ({gpus}) * ({watts}) * 60000, toUInt64(({gpus}) * 60000), toUInt64(({gpus}) * 60000),
                toUInt64(({gpus}) * ({active}) * 60000)
            FROM (SELECT toInt32(number) - 360 AS m FROM numbers(360)) WHERE ({gpus}) > 0""",
        )

    def contract(self, gpus: int = 100, kw: float = 100, age_s: int = 30 * 86_400) -> None:
        self.put(
            "contracts",
            {
                "site": SITE,
                "tenant": "acme",
                "tenant_id": ACME,
                "from_ts": ago(age_s),
                "contracted_gpus": gpus,
                "contracted_kw": kw,
                "availability_pct": 99.0,
                "asserted_at": ago(age_s),
            },
        )

    def job(self) -> None:
        self.put(
            "allocations",
            {
                "site": SITE,
                "source": "slurm",
                "tenant": "acme",
                "workload": "train-1",
                "node": "h1-r1-n1",
                "from_ts": ago(86_400),
                "asserted_at": ago(86_400),
                "site_id": SITE_ID,
                "node_id": id64(SITE, "h1-r1-n1"),
                "tenant_id": ACME,
                "workload_id": TRAIN,
            },
        )

    def gpu_minutes(self, i: int = 0, stuck: bool = False, **columns: str) -> None:
        """Five minutes of one GPU that draws 600 W; `columns` are SQL."""
        usual = {
            "power_w_ms": "36000000", "power_w_dt_ms": "60000", "energy_j": "36000", "dt_ms": "60000",
            "rows": "60", "held_ms": "0", "throttle_hw_thermal_ms": "0",
            "throttle_power_brake_ms": "0", "active_ms": "60000", "power_w_min": "600" if stuck else "580",
            "power_w_max": "600" if stuck else "620",
        } | columns  # fmt: skip
        self.many(
            "gpu_minutes",
            f"gpu, ts, site, version, {', '.join(usual)}",
            f"""
            SELECT {id64(SITE, f"h1-r1-n1/{i}")}, toDateTime({int(AT.timestamp())}) - 60 * m, {SITE_ID}, 1,
                {", ".join(usual.values())} FROM (SELECT 1 + number AS m FROM numbers(5))""",
        )

    def health(
        self,
        i: int = 0,
        reload: bool = False,
        late_s: tuple[int, int] = (65, 4),
        **columns: int | tuple[int, int],
    ) -> None:
        """Slow columns of a GPU a minute ago and now; a pair of values is (then, now)."""
        for side, age_s in enumerate(late_s):
            self.put(
                "gpu_health",
                {
                    "gpu": id64(SITE, f"h1-r1-n1/{i}"),
                    "ts": ago(age_s),
                    "site": SITE_ID,
                    "driver_epoch": 7 + (reload and side),
                    **{n: v[side] if isinstance(v, tuple) else v for n, v in columns.items()},
                },
            )

    def event(
        self,
        kind: str,
        code: int = 0,
        i: int = 0,
        late_s: int = 60,
        node: str = "h1-r1-n1",
        **more: object,
    ) -> None:
        uuid = f"{node}/{i}" if i >= 0 else ""
        self.put(
            "events",
            {
                "site": SITE_ID,
                "node": node,
                "ts": ago(late_s),
                "kind": kind,
                "code": code,
                "gpu": id64(SITE, uuid) if uuid else 0,
                "uuid": uuid,
                "count": 1,
                **more,
            },
        )

    def meter(self, watts: str, kind: str = "site", name: str = SITE) -> None:
        """An hour at 5 s; `s` counts seconds up to AT."""
        self.many(
            "meters",
            "site, meter, kind, ts, watts",
            f"""
            SELECT {SITE_ID}, '{name}', '{kind}', toDateTime64({int(AT.timestamp())}, 3) + s, {watts}
            FROM (SELECT toInt32(number * 5) - 3600 AS s FROM numbers(720)) WHERE ({watts}) > -1e9""",
        )

    def insert(self, late_s: int = 1, behind_s: int = 3, **columns: object) -> None:
        self.put(
            "ingest_log",
            {
                "at": ago(late_s),
                "kind": "insert",
                "topic": "samples",
                "rows": 100,
                "messages": 10,
                "until_ts": ago(late_s + behind_s),
                "watermark": ago(late_s + behind_s),
                **columns,
            },
        )

    def quarter(
        self,
        late_s: int,
        state: str = "closed",
        held: int = 3600,
        version: int = 1,
        measured: int = 900_000,
        nobody: int = 0,
        bridged: int = 0,
        minutes: int = 1,
    ) -> None:
        ts = ago(late_s)
        self.put("ledger_sources", {"site": SITE_ID, "ts": ts, "minutes_version": minutes})
        if not state:
            return
        self.put(
            "ledger_closes",
            {
                "site": SITE_ID,
                "ts": ts,
                "version": version,
                "state": state,
                "energy_j": 3600,
                "bridged_j": bridged,
                "measured_ms": measured,
                "expected_ms": 900_000,
            },
        )
        self.put(
            "ledger_holders",
            {
                "site": SITE_ID,
                "ts": ts,
                "tenant": ACME,
                "version": version,
                "energy_j": held,
                "measured_ms": measured - nobody,
                "active_ms": 800_000 - nobody,
            },
            {
                "site": SITE_ID,
                "ts": ts,
                "tenant": 0,
                "version": version,
                "energy_j": 0,
                "measured_ms": nobody,
                "active_ms": nobody,
            },
        )


def ago(seconds: int) -> dt.datetime:
    return AT - dt.timedelta(seconds=seconds)


def literal(value: object) -> str:
    if isinstance(value, dt.datetime):
        return f"'{value:%Y-%m-%d %H:%M:%S}'"
    return f"'{value}'" if isinstance(value, str) else str(int(value) if value is True else value)


RACK: Final = {"site": SITE, "hall": "h1", "row": "h1-row1", "rack": "h1-r1", "pdu": "h1-p1"}
NODE: Final = RACK | {"node": "h1-r1-n1"}
GPU: Final = NODE | {"gpu": "h1-r1-n1/0"}
WHO: Final = {"site": SITE, "tenant": "acme"}
JOB: Final = WHO | {"workload": "train-1"}


def named(w: World) -> None:
    """So that ids have names, without anything being expected of the GPU."""
    w.gpus("h9-r9-n9", 1)
    w.job()


def site_of(*nodes: str, dark: tuple[str, ...] = ()) -> Callable[[World], None]:
    def run(w: World) -> None:
        for node in nodes:
            w.gpus(node, 2)
            if node not in dark:
                w.live(node, 2)

    return run
