"""Every rule with SQL: what breaks it is found with its labels, what is well is not."""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from alerts.compile import bound, query
from alerts.rule import Rule, Signal, by_signal
from alerts.rules import RULES
from pipeline.records import id64
from pipeline.settings import ClickHouse
from pipeline.store import Store, open_store

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
        rows = self.store.query(bound(query(signal, rules, {}), CAPS), {"at": AT}).dicts()
        return {
            rule.name: [
                ({name: row[name] for name in signal.labels if row[name]}, row[rule.name])
                for row in rows
                if row[rule.name] is not None
            ]
            for rule in rules
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

    def health(self, i: int = 0, reload: bool = False, **columns: int | tuple[int, int]) -> None:
        """Slow columns of a GPU a minute ago and now; a pair of values is (then, now)."""
        for late_s, side in ((65, 0), (4, 1)):
            self.put(
                "gpu_health",
                {
                    "gpu": id64(SITE, f"h1-r1-n1/{i}"),
                    "ts": ago(late_s),
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


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Store]:
    store = open_store(ClickHouse(data=str(tmp_path_factory.mktemp("rules"))))
    yield store
    store.close()


@pytest.fixture
def world(opened) -> Iterator[World]:
    made = World(opened)
    yield made
    made.clear()


@dataclass(frozen=True)
class Case:
    """What breaks a rule, with the labels and value that must come back, and what does not."""

    broken: Callable[[World], object]
    labels: dict[str, str]
    value: float
    healthy: Callable[[World], object]
    also: int = 1


def does(*steps: Callable[[World], object]) -> Callable[[World], None]:
    def run(world: World) -> None:
        for step in steps:
            step(world)

    return run


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


FOUR: Final = ("h1-r1-n1", "h1-r1-n2", "h1-r2-n1", "h1-r3-n1", "h2-r1-n1")
STEADY: Final = "1000000 + 1000 * (s % 3)"

CASES: Final[dict[str, Case]] = {
    "SitePowerOverCap": Case(
        does(named, lambda w: w.seconds("600000"), lambda w: w.seconds("500000", tenant=BETA)),
        {"site": SITE}, 110, does(named, lambda w: w.seconds("990000")),
    ),
    "SitePowerForecast": Case(
        does(named, lambda w: w.seconds("950000 + 200 * s")), {"site": SITE}, 107,
        does(named, lambda w: w.seconds("950000 + 20 * s")),
    ),
    "SiteRampUp": Case(
        does(named, lambda w: w.seconds("100e6 + if(s >= -10, 30e6, 0)", "100000")),
        {"site": SITE}, 30, does(named, lambda w: w.seconds("100e6 + if(s >= -10, 10e6, 0)")),
    ),
    "SiteRampDown": Case(
        does(named, lambda w: w.seconds("100e6 - if(s >= -10, 30e6, 0)", "100000")),
        {"site": SITE}, 30,
        # A partition lags: a third of every tenant's GPUs is not there yet.
        does(named, lambda w: w.seconds("if(s >= -10, 66e6, 100e6)", "if(s >= -10, 66, 100)"),
             lambda w: w.seconds("if(s >= -10, 66e6, 100e6)", "if(s >= -10, 66, 100)", tenant=BETA)),
    ),
    "SiteLoadDrop": Case(
        # One tenant's GPUs changed hands, the others' fell: the whole site is compared.
        does(named, lambda w: w.seconds("if(s >= -10, 1e6, 5e6)", "if(s >= -10, 50, 100)"),
             lambda w: w.seconds("if(s >= -10, 2e6, 1e6)", "if(s >= -10, 150, 100)", tenant=BETA)),
        {"site": SITE}, 50,
        does(named, lambda w: w.seconds("if(s >= -10, 4e6, 8e6)", "if(s >= -10, 50, 100)")),
    ),
    "SiteOscillation": Case(
        does(named, lambda w: w.seconds("100e6 + 10e6 * sin(2 * pi() * s / 8)", "100000")),
        {"site": SITE}, 20, does(named, lambda w: w.seconds("100e6 + 0.4e6 * s", "100000")),
    ),
    "TenantOscillation": Case(
        does(named, lambda w: w.seconds("50e6 + 5e6 * sin(2 * pi() * s / 5)"),
             lambda w: w.seconds("50e6 - 5e6 * sin(2 * pi() * s / 5)", tenant=BETA)),
        WHO, 10, does(named, lambda w: w.seconds("if(s % 4 = 0, 40e6, 50e6)", "if(s % 4 = 0, 80, 100)")),
        also=2,
    ),
    "HallPowerOverCap": Case(
        does(site_of("h1-r1-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 9000, 1: 99_000})),
        {"site": SITE, "hall": "h1"}, 108, site_of("h1-r1-n1"),
    ),
    "PduPowerOverCap": Case(
        does(site_of("h1-r1-n1", "h1-r2-n1"), lambda w: w.live("h1-r2-n1", 2, power_w={0: 24_200})),
        {"site": SITE, "hall": "h1", "pdu": "h1-p1"}, 130, site_of("h1-r1-n1"),
    ),
    "RackPowerOverCap": Case(
        does(site_of("h1-r1-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 11_400})),
        RACK, 120, does(site_of("h1-r2-n1"), lambda w: w.live("h1-r2-n1", 2, power_w={0: 11_400})),
    ),
    "FeedRedundancyLost": Case(
        does(site_of("h1-r1-n1", "h1-r3-n1"),
             lambda w: w.live("h1-r1-n1", 2, power_w={0: 12_000, 1: 0}),
             lambda w: w.live("h1-r3-n1", 2, power_w={0: 12_000, 1: 0})),
        {"site": SITE, "hall": "h1"}, 120,
        does(site_of("h1-r1-n1", "h1-r3-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 12_000})),
    ),
    "SiteDark": Case(site_of(*FOUR, dark=FOUR), {"site": SITE}, 10, site_of(*FOUR, dark=FOUR[1:])),
    "HallDark": Case(
        site_of(*FOUR, dark=FOUR[:4]), {"site": SITE, "hall": "h1"}, 8, site_of(*FOUR, dark=FOUR[1:4]),
    ),
    "PduDark": Case(
        site_of(*FOUR, dark=FOUR[:3]), {"site": SITE, "hall": "h1", "pdu": "h1-p1"}, 6,
        site_of(*FOUR, dark=FOUR[:2]),
    ),
    "RackDark": Case(site_of(*FOUR, dark=FOUR[:2]), RACK, 4, site_of(*FOUR, dark=FOUR[:1])),
    "NodeSilent": Case(
        site_of(*FOUR, dark=FOUR[:1]), NODE, 2,
        # Many nodes all over the site: they did not fail, samples are late.
        site_of(*(f"h1-r{r}-n{n}" for r in range(1, 22) for n in (1, 2)),
                dark=tuple(f"h1-r{r}-n1" for r in range(1, 22))),
    ),
    "GpuMissing": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, late_s={0: 61})), GPU, 1,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, late_s={0: 11})),
    ),
    "CoverageLow": Case(
        does(lambda w: w.gpus(count=8), lambda w: w.live(count=7)), {"site": SITE}, 87.5,
        # Announced a minute ago: not expected yet.
        does(lambda w: w.gpus(count=8), lambda w: w.live(count=8), lambda w: w.gpus("h1-r1-n2", 4, 60)),
    ),
    "RackPowerBrake": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, throttle_reasons={0: 0x88, 1: 0x80})),
        RACK, 100,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, throttle_reasons={0: 0x80, 1: 0x4})),
    ),
    "NodeClockSkew": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, flags={0: 8, 1: 9})), NODE, 2,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, flags={0: 1, 1: 4})),
    ),
    "MeterOverCap": Case(
        does(named, lambda w: w.meter("if(s >= -60, 21000, 19000) + s % 7", "pdu", "h1-p1")),
        {"site": SITE, "pdu": "h1-p1", "meter": "h1-p1"}, 105,
        does(named, lambda w: w.meter("19000 + s % 7", "pdu", "h1-p1")),
    ),
    "MeterSilent": Case(
        does(named, lambda w: w.meter("if(s < -600, 19000 + s % 7, -2e9)", "rack", "h1-r1")),
        {"site": SITE, "rack": "h1-r1", "meter": "h1-r1"}, 605,
        does(named, lambda w: w.meter("19000 + s % 7", "rack", "h1-r1")),
    ),
    "MeterStuck": Case(
        does(named, lambda w: w.meter("19000", "hall", "h1")),
        {"site": SITE, "hall": "h1", "meter": "h1"}, 120,
        does(named, lambda w: w.meter("19000 + s % 7", "hall", "h1")),
    ),
    "GpuSumAboveMeter": Case(
        does(named, lambda w: w.meter("50000 + s % 7"), lambda w: w.minutes("100")),
        {"site": SITE, "meter": SITE}, 120,
        does(named, lambda w: w.meter("80000 + s % 7"), lambda w: w.minutes("100")),
    ),
    "GpuMeterDrift": Case(
        does(named, lambda w: w.meter("if(s >= -600, 100000, 80000) + s % 7"), lambda w: w.minutes("100")),
        {"site": SITE, "meter": SITE}, 25,
        # Load fell, and the meter with it, by less: pumps and fans run on.
        does(named, lambda w: w.meter("if(s >= -600, 50000, 80000) + s % 7"),
             lambda w: w.minutes("100", "if(m >= -10, 200, 600)")),
    ),
    "TenantOverContract": Case(
        does(named, lambda w: w.contract(kw=50), lambda w: w.minutes("100")), WHO, 120,
        does(named, lambda w: w.contract(kw=61), lambda w: w.minutes("100")),
    ),
    "TenantUnderDelivered": Case(
        does(named, lambda w: w.contract(gpus=125), lambda w: w.minutes("100")), WHO, 80,
        does(named, lambda w: w.contract(gpus=100), lambda w: w.minutes("100")),
    ),
    "TenantSlaBurnFast": Case(
        does(named, lambda w: w.contract(), lambda w: w.minutes("if(m >= -60, 80, 100)")), WHO, 20,
        # Over for five minutes: nobody needs to be woken.
        does(named, lambda w: w.contract(), lambda w: w.minutes("if(m BETWEEN -60 AND -6, 50, 100)")),
    ),
    "TenantSlaBurnSlow": Case(
        does(named, lambda w: w.contract(), lambda w: w.minutes("92")), WHO, 8,
        # A contract of an hour ago is not measured by the hours before.
        does(named, lambda w: w.contract(age_s=3600), lambda w: w.minutes("if(m < -60, 0, 100)")),
    ),
    "UnattributedWork": Case(
        does(named, lambda w: w.minutes("100", active="0.5", tenant=0)),
        {"site": SITE, "tenant": "(unallocated)"}, 50,
        does(named, lambda w: w.minutes("100", active="0.1", tenant=0), lambda w: w.minutes("100")),
    ),
    "JobIdle": Case(
        does(lambda w: w.gpus(count=4), lambda w: w.job(),
             lambda w: w.live(count=4, util_gpu_pct=dict.fromkeys(range(4), 0))),
        JOB, 100, does(lambda w: w.gpus(count=4), lambda w: w.job(), lambda w: w.live(count=4)),
    ),
    "JobPartlyIdle": Case(
        does(lambda w: w.gpus(count=4), lambda w: w.job(), lambda w: w.live(count=4, util_gpu_pct={0: 0})),
        JOB, 25,
        does(lambda w: w.gpus(count=4), lambda w: w.job(),
             lambda w: w.live(count=4, util_gpu_pct={0: 0}, late_s={0: 90})),
    ),
    "GpuHotAgainstPeers": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(temp_gpu_c={0: 80})),
        GPU | JOB, 20,
        # It works twice as hard as the others: no wonder.
        does(lambda w: w.gpus(), lambda w: w.live(
            temp_gpu_c={0: 80}, power_w={i: 250 if i else 600 for i in range(8)})),
    ),
    "GpuStraggler": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(power_w={0: 300})), GPU | JOB, 50,
        does(lambda w: w.gpus(), lambda w: w.live(power_w={0: 70}, util_gpu_pct={0: 0})),
    ),
    "GpuPowerUnreadable": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(flags={0: 4})), GPU | JOB, 1,
        does(lambda w: w.gpus(), lambda w: w.live(flags={0: 9})),
    ),
    "GpuThermalSlowdown": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="30000")), GPU, 50,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="3000")),
    ),
    "GpuPowerBrake": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_power_brake_ms="60000")), GPU, 100,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="60000")),
    ),
    "GpuFrozen": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(stuck=True)), GPU, 5,
        # Repeated at the edge from a slow exporter: that is no live reading that froze.
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(stuck=True, held_ms="56000")),
    ),
    "GpuEnergyMismatch": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(energy_j="27000")), GPU, 25,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(energy_j="if(m % 2, 31000, 41000)")),
    ),
    "GpuUncorrectableEcc": Case(
        does(lambda w: w.gpus(), lambda w: w.health(ecc_uncorrected_volatile=(1, 4))), GPU, 3,
        does(lambda w: w.gpus(), lambda w: w.health(ecc_uncorrected_volatile=(4, 4)),
             lambda w: w.health(1, reload=True, ecc_uncorrected_volatile=(0, 4))),
    ),
    "GpuRowRemapFailed": Case(
        does(lambda w: w.gpus(), lambda w: w.health(remap_failure=1)), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.health(remap_failure=(1, 0))),
    ),
    "GpuRemapPending": Case(
        does(lambda w: w.gpus(), lambda w: w.health(retired_pages_pending=1)), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.health(remap_pending=(1, 0))),
    ),
    "GpuRecoveryAction": Case(
        does(lambda w: w.gpus(), lambda w: w.health(recovery_action=(0, 2))), GPU, 2,
        does(lambda w: w.gpus(), lambda w: w.health(recovery_action=(2, 0))),
    ),
    "GpuNvlinkErrors": Case(
        does(lambda w: w.gpus(), lambda w: w.health(nvlink_replay_errors=(5, 305), nvlink_recovery_errors=(1, 61))),
        GPU, 360, does(lambda w: w.gpus(), lambda w: w.health(nvlink_replay_errors=(1000, 1010))),
    ),
    "GpuPcieReplays": Case(
        does(lambda w: w.gpus(), lambda w: w.health(pcie_replays=(0, 9))), GPU, 9,
        does(lambda w: w.gpus(), lambda w: w.health(pcie_replays=(100, 107))),
    ),
    "XidFatal": Case(
        does(lambda w: w.gpus(), lambda w: w.event("xid", 79), lambda w: w.event("xid", 79, late_s=90)),
        GPU | {"xid": "79"}, 2,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 13), lambda w: w.event("xid", 79, late_s=700)),
    ),
    "XidHardware": Case(
        does(lambda w: w.gpus(), lambda w: w.event("xid", 94)), GPU | {"xid": "94"}, 1,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 31)),
    ),
    "XidDriver": Case(
        # A code that nobody knows yet.
        does(lambda w: w.gpus(), *(lambda w, s=s: w.event("xid", 9999, late_s=s) for s in (10, 20, 30))),
        GPU | {"xid": "9999"}, 3,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 9999), lambda w: w.event("xid", 43)),
    ),
    "XidApplication": Case(
        # Sixteen GPUs of one job: one alert, of the job.
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(),
             *(lambda w, i=i: w.event("xid", 31, i) for i in range(8))),
        JOB | {"xid": "31"}, 8, does(lambda w: w.gpus(), lambda w: w.event("xid", 79)),
    ),
    "XidBurst": Case(
        does(lambda w: w.gpus(), *(lambda w, i=i: w.event("xid", 74, i) for i in range(5))), RACK, 5,
        does(lambda w: w.gpus(), *(lambda w, s=s: w.event("xid", 74, late_s=s) for s in range(9))),
    ),
    "GpuLost": Case(
        does(lambda w: w.gpus(), lambda w: w.event("gpu_lost")), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.event("driver_reloaded")),
    ),
    "AgentDropping": Case(
        does(lambda w: w.gpus(), lambda w: w.event("spool_overflow", i=-1, count=40),
             lambda w: w.event("spool_corrupt", i=-1, count=2, late_s=9)),
        NODE, 42, does(lambda w: w.gpus(), lambda w: w.event("clock_back", i=-1, count=9)),
    ),
    "DeadMansSwitch": Case(
        lambda w: w.insert(), {}, 1, lambda w: w.insert(behind_s=61),
    ),
    "SamplesStopped": Case(
        does(lambda w: w.insert(late_s=70), lambda w: w.insert(topic="meters", rows=5),
             lambda w: w.insert(rows=0)),
        {}, 70, lambda w: w.insert(late_s=10),
    ),
    "WatermarkBehind": Case(
        lambda w: w.insert(watermark=ago(90)), {}, 90, lambda w: w.insert(watermark=ago(50)),
    ),
    "SamplesStale": Case(
        lambda w: w.insert(until_ts=ago(45)), {}, 45, lambda w: w.insert(until_ts=ago(20)),
    ),
    "RejectedShareHigh": Case(
        does(lambda w: w.insert(messages=50, rejected=10), lambda w: w.insert(messages=50)), {}, 10,
        does(lambda w: w.insert(messages=96, rejected=4), lambda w: w.insert(late_s=400, rejected=10)),
    ),
    "DeadLetters": Case(
        does(*(lambda w, n=n: w.put("dead_letters", {
            "topic": "samples", "offset": n, "at": ago(30), "version": 1}) for n in (1, 1, 2))),
        {"topic": "samples"}, 2,
        lambda w: w.put("dead_letters", {"topic": "samples", "offset": 1, "at": ago(700)}),
    ),
    "LedgerNotClosed": Case(
        does(named, lambda w: w.quarter(3 * 3600, ""), lambda w: w.quarter(4 * 3600, "refused"),
             lambda w: w.quarter(5 * 3600)),
        {"site": SITE}, 2, does(named, lambda w: w.quarter(3600, ""), lambda w: w.quarter(5 * 3600)),
    ),
    "LedgerRefused": Case(
        does(named, lambda w: w.quarter(7200), lambda w: w.quarter(7200, "refused", version=2)),
        {"site": SITE}, 1,
        does(named, lambda w: w.quarter(7200, "failed"), lambda w: w.quarter(7200, version=2)),
    ),
    "LedgerConservationBroken": Case(
        does(named, lambda w: w.quarter(7200, held=3599), lambda w: w.quarter(8100)), {"site": SITE}, 1,
        does(named, lambda w: w.quarter(7200, held=1, version=1), lambda w: w.quarter(7200, version=2)),
    ),
    "LedgerCoverageLow": Case(
        does(named, lambda w: w.quarter(7200, measured=810_000)), {"site": SITE}, 90,
        does(named, lambda w: w.quarter(7200, measured=890_000), lambda w: w.quarter(9 * 3600, measured=1)),
    ),
    "LedgerBridgedHigh": Case(
        does(named, lambda w: w.quarter(7200, bridged=400)), {"site": SITE}, 10,
        does(named, lambda w: w.quarter(7200, bridged=40)),
    ),
    "UnattributedShareHigh": Case(
        does(named, lambda w: w.quarter(7200, nobody=80_000)), {"site": SITE}, 10,
        does(named, lambda w: w.quarter(7200, nobody=8_000)),
    ),
}  # fmt: skip
UNDER_OUR_FEET: Final = ("StoreDiskFilling", "StoreDiskFull", "TooManyParts")
"""They look at the disks and parts of the store itself, which no test can fill."""
FROM_NOTHING: Final = ("SamplesStopped", "WatermarkBehind", "SamplesStale", *UNDER_OUR_FEET)


def test_every_rule_with_sql_has_a_case() -> None:
    assert sorted({*CASES, *UNDER_OUR_FEET}) == sorted(WITH_SQL)


@pytest.mark.parametrize("name", CASES)
def test_what_breaks_a_rule_comes_back_with_its_labels(world, name) -> None:
    case = CASES[name]
    case.broken(world)
    found = world.ask(BY_NAME[name])
    assert [labels for labels, _ in found].count(case.labels) == 1, found
    assert len(found) == case.also, found
    value = next(v for labels, v in found if labels == case.labels)
    assert value == pytest.approx(case.value, rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_what_is_well_does_not(world, name) -> None:
    CASES[name].healthy(world)
    assert world.ask(BY_NAME[name]) == []


def test_from_nothing_comes_nothing(world) -> None:
    firsts = [rules[0] for rules in by_signal(RULES).values()]
    for rule in firsts:
        assert rule.signal is not None
        found = {name for name, rows in world.all(rule.signal).items() if rows}
        assert found <= set(FROM_NOTHING), rule.signal


def test_no_samples_at_all_is_an_alarm(world) -> None:
    assert world.ask(BY_NAME["SamplesStopped"]) == [({}, 999)]
