"""Every panel of every page, on a store that the real simulator filled through the real pipeline."""

import datetime as dt
import itertools
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from agents.agent import open_spool
from agents.sampler import Sampler
from agents.simulator import SimulatorSource
from alerts import history
from alerts.alert import Alert
from dashboards.generate import documents, drift
from dashboards.macros import Span, expand
from dashboards.pages import PAGES
from dashboards.panel import WIDTH, Annotation, Page, Panel
from pipeline import rows
from pipeline.clock import ManualClock, SystemClock
from pipeline.ledger import close as closing
from pipeline.ledger import contract_store, contracts
from pipeline.records import Event, Gpu, Inventory
from pipeline.service import Service
from pipeline.settings import ClickHouse, Settings
from pipeline.spool_log import SpoolLog
from pipeline.store import Store

PANELS: Final = [(page, panel) for page in PAGES for row in page.rows for panel in row]
ASKING: Final = [(page, panel) for page, panel in PANELS if panel.kind != "text"]
DOCUMENTS: Final = {name: json.loads(text) for name, text in documents().items()}
MINUTES: Final = 32
"""At least one whole quarter of an hour, so that the ledger closes one."""
LESSEE: Final = "lessee"
UNITS: Final = frozenset(
    [
        "none",
        "string",
        "short",
        "sishort",
        "percent",
        "percentunit",
        "bool",
        "locale",
        "sci",
        "hertz",
        "rotrpm",
        "rotmhz",
        "bytes",
        "decbytes",
        "bits",
        "decbits",
        "kbytes",
        "mbytes",
        "gbytes",
        "tbytes",
        "deckbytes",
        "decmbytes",
        "decgbytes",
        "dectbytes",
        "Bps",
        "binBps",
        "bps",
        "binbps",
        "pps",
        "KiBs",
        "MiBs",
        "GiBs",
        "TiBs",
        "KBs",
        "MBs",
        "GBs",
        "TBs",
        "ns",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "dtdurationms",
        "dtdurations",
        "dthms",
        "dtdhms",
        "dateTimeAsIso",
        "dateTimeFromNow",
        "watt",
        "kwatt",
        "megwatt",
        "gwatt",
        "watth",
        "kwatth",
        "joule",
        "volt",
        "amp",
        "celsius",
        "cps",
        "ops",
        "reqps",
        "rps",
        "wps",
        "iops",
        "eps",
        "mps",
        "recps",
        "rowsps",
        "cpm",
        "opm",
        "reqpm",
        "rpm",
        "wpm",
        "epm",
        "mpm",
        "recpm",
        "rowspm",
    ]
)
"""Of the ids in Grafana's @grafana/data 13.2, valueFormats/categories."""
WRITTEN_OUT: Final = frozenset({"MW/s", "suffix:h"})
"""What Grafana has no id for, and writes behind the number as it is; hours, of which its own `h`
would make days."""


class _Beside(SystemClock):
    """The simulation's time of day, and real waiting."""

    def __init__(self, shown: ManualClock) -> None:
        self._shown = shown

    def now_ms(self) -> int:
        return self._shown.ms


@dataclass(frozen=True)
class Site:
    """A filled store, the simulation's span, and what a person would have chosen first."""

    store: Store
    from_ms: int
    until_ms: int
    chosen: Mapping[str, Mapping[str, str]]

    def spans(self) -> dict[str, Span]:
        end = self.until_ms
        return {
            "a minute": Span(end - 60_000, end, 1),
            "an hour": Span(end - 3_600_000, end, 5),
            "a day": Span(end - 86_400_000, end, 120),
            "a month": Span(end - 30 * 86_400_000, end, 3600),
            "long ago": Span(946_684_800_000, 946_684_860_000, 1),
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Site]:
    """Two simulated nodes over half an hour that ends now."""
    folder = tmp_path_factory.mktemp("site") / "data"
    shutil.copytree(migrated, folder, symlinks=True)
    settings = Settings()
    settings = msgspec.structs.replace(
        settings,
        clickhouse=ClickHouse(data=str(folder)),
        agent=msgspec.structs.replace(settings.agent, spool=str(folder / "spool")),
    )
    store = Store(settings.clickhouse)
    clock = ManualClock((int(time.time()) - MINUTES * 60) * 1000)
    from_ms = clock.ms
    _simulate(store, settings, clock)
    _say_more(store, clock.ms)
    filled = Site(store, from_ms, clock.ms, {})
    yield Site(store, from_ms, clock.ms, {page.uid: _chosen(filled, page) for page in PAGES})
    store.close()


def _simulate(store: Store, settings: Settings, clock: ManualClock) -> None:
    source = SimulatorSource(2, site=settings.site.name, start_ms=clock.ms)
    spool = open_spool(settings, clock)
    sampler = Sampler(source, spool, settings, clock)
    beside = _Beside(clock)
    service = Service(settings, store, lambda who: SpoolLog(spool, who, beside), beside)
    until_ms = clock.ms + MINUTES * 60_000
    lease = f"""
        [[contract]]
        tenant = "{LESSEE}"
        select = [{{node = "*01"}}]
        timezone = "UTC"
        from = {dt.datetime.fromtimestamp(clock.ms // 1000 - 86_400, dt.UTC).isoformat()}
        contracted_gpus = 8
        contracted_kw = 5
        price_per_gpu_hour = "2.00"
        price_per_kwh = "0.10"
        currency = "EUR"
        availability_pct = 99
        """
    contract_store.write(store, contracts.parse(lease, "lease", settings.site.name, clock.ms))
    drained_ms = clock.ms
    while clock.ms < until_ms:
        clock.ms = max(sampler.step(), clock.ms + 1)
        if clock.ms - drained_ms > 240_000:
            assert service.ingest.drain(30)
            drained_ms = clock.ms
    sampler.finish()
    assert service.ingest.drain(30)
    service.minutes.fill(clock.ms, None)
    service.close()
    spool.close()
    name, precedence = settings.site.name, settings.ledger.precedence
    quarters = closing.open_quarters(store, name, 0, clock.ms)
    closed = closing.close(store, name, precedence, quarters, clock.ms)
    assert any(outcome.state == "closed" for outcome in closed)


def _say_more(store: Store, now_ms: int) -> None:
    """What half an hour of a healthy site does not bring: trouble, letters, alerts, a lost node."""
    node = store.query("SELECT site, node, uuid FROM inventory LIMIT 1").dicts()[0]
    events = [
        Event(site=node["site"], node=node["node"], ts_ms=now_ms - 20_000, kind=kind, code=code,
              uuid=node["uuid"], detail="it's 100 % {real}")
        for kind, code in (("xid", 79), ("xid", 48), ("driver_reload", 0), ("drop", 0))
    ]  # fmt: skip
    lost = Inventory(
        site=node["site"], node="never-heard", from_ms=now_ms - 600_000, gpus=(Gpu(0, "GPU-lost"),)
    )
    for table, block in rows.by_table([*events, lost], now_ms).items():
        store.insert(table, block)
    letter: rows.Row = {"topic": "samples", "partition": 0, "offset": 7, "at": now_ms - 5_000,
                        "reason": "it's not a message", "key": b"n1", "payload": b"\xff",
                        "replayed_at": None, "version": now_ms}  # fmt: skip
    store.insert("dead_letters", rows.columns([letter]))
    told: list[rows.Row] = [
        {"at": now_ms - 9_000 + k, "rule": "GpuLost", "fingerprint": 1, "state": state,
         "severity": "page", "labels": '{"node":"n1"}', "annotations": "{}", "value": 1.0}
        for k, state in enumerate((1, 2, 3))
    ]  # fmt: skip
    store.insert("alert_history", rows.columns(told))
    lost_gpu = Alert(
        rule="GpuLost", version="1", severity="page", labels={"node": "n1"}, state="firing",
        value=1.0, active_ms=now_ms - 9_000, fired_ms=now_ms - 8_999,
    )  # fmt: skip
    history.save(store, {}, {lost_gpu.fingerprint: lost_gpu}, now_ms)


def _chosen(site: Site, page: Page) -> dict[str, str]:
    """What a person might look at: the tenant that leases, else each variable's first answer."""
    values: dict[str, str] = {}
    for variable in page.variables:
        query = expand(variable.sql, site.spans()["an hour"], values)
        found = site.store.query(query.sql, query.parameters).rows
        assert found, f"{page.uid}: nothing to choose for {variable.name!r}"
        leasing = [row[0] for row in found if row[-1] == LESSEE]
        values[variable.name] = str([*leasing, found[0][0]][0])
    return values


def _types(site: Site, page: Page, sql: str) -> dict[str, str]:
    """Columns of an answer, also of an empty one."""
    query = expand(sql, site.spans()["an hour"], site.chosen[page.uid])
    found = site.store.query(f"DESCRIBE ({query.sql})", query.parameters).rows
    names = [row[0] for row in found]
    assert len(set(names)) == len(names), names
    return {row[0]: row[1] for row in found}


def _is_time(kind: str) -> bool:
    return kind.startswith("DateTime")


def _is_text(kind: str) -> bool:
    return kind in ("String", "LowCardinality(String)")


def _is_number(kind: str) -> bool:
    return bool(re.fullmatch(r"(Nullable\()?(U?Int\d+|Float\d+|Decimal\(\d+, \d+\))\)?", kind))


def _name(value: object) -> str | None:
    if isinstance(value, Page):
        return value.uid.removeprefix("megawatch-")
    return re.sub(r"\W+", "_", value.title) if isinstance(value, Panel) else None


# -- what a panel answers -----------------------------------------------------------------------


@pytest.mark.parametrize(("page", "panel"), ASKING, ids=_name)
def test_a_panel_answers_in_the_shape_of_its_kind(site: Site, page: Page, panel: Panel) -> None:
    found = _types(site, page, panel.sql)
    names, kinds = list(found), list(found.values())
    match panel.kind:
        case "timeseries" | "heatmap":
            assert names[0] == "time"
            assert _is_time(kinds[0]), found
            if panel.label or panel.kind == "heatmap":
                assert len(found) == 3, found
                assert _is_text(found[panel.label]), found
            values = [kind for name, kind in found.items() if name not in ("time", panel.label)]
            assert values, found
            assert all(map(_is_number, values)), found
        case "stat":
            assert all(_is_number(kind) or _is_text(kind) for kind in kinds), found
        case "gauge":
            assert all(map(_is_number, kinds)), found
        case "bargauge":
            assert len(found) == 2, found
            assert _is_text(kinds[0]), found
            assert _is_number(kinds[1]), found
        case "table":
            asked = {*panel.links, *panel.hidden}
            asked |= set(re.findall(r"__data\.fields\.(\w+)", " ".join(panel.links.values())))
            assert asked <= set(names), asked - set(names)
            assert set(panel.hidden) != set(names)
    assert set(panel.columns) <= set(names)
    if panel.kind != "table":
        assert not (panel.links or panel.hidden)


@pytest.mark.parametrize(("page", "panel"), ASKING, ids=_name)
def test_a_panel_answers_over_any_range(site: Site, page: Page, panel: Panel) -> None:
    for called, span in site.spans().items():
        query = expand(panel.sql, span, site.chosen[page.uid])
        answer = site.store.query(query.sql, query.parameters)
        found = answer.rows
        numbers = [v for row in found for v in row if isinstance(v, float)]
        assert all(map(math.isfinite, numbers)), (called, found[:3])
        if panel.kind in ("stat", "gauge"):
            assert len(found) <= 1, called
        assert len(found) <= 50_000, f"{called}: more than a browser can draw"
        if panel.kind in ("timeseries", "heatmap") and found:
            _is_a_line(answer.dicts(), panel, span, called)


def _is_a_line(found: Sequence[Mapping[str, Any]], panel: Panel, span: Span, called: str) -> None:
    times = [_ms(row["time"]) for row in found]
    assert times == sorted(times), called
    # The ledger's steps are quarters of an hour.
    assert times[0] > span.from_ms - max(900, span.interval_s) * 1000, called
    assert times[-1] <= span.until_ms, called
    keys = [(row["time"], row.get(panel.label)) for row in found]
    assert len(set(keys)) == len(keys), f"{called}: two values at one time"
    if panel.min is not None:
        values = [v for row in found for v in row.values() if isinstance(v, int | float)]
        assert min(values, default=panel.min) >= panel.min, called


def _ms(moment: dt.datetime) -> int:
    return round(moment.replace(tzinfo=moment.tzinfo or dt.UTC).timestamp() * 1000)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_half_of_the_panels_have_something_to_say(site: Site, page: Page) -> None:
    """A query that is never wrong because it never finds anything; a healthy site has few faults."""
    silent = []
    asking = [panel for of, panel in ASKING if of is page]
    for panel in asking:
        query = expand(panel.sql, site.spans()["an hour"], site.chosen[page.uid])
        if not site.store.query(query.sql, query.parameters).rows:
            silent.append(panel.title)
    assert len(silent) * 2 <= len(asking), silent


@pytest.mark.parametrize(
    ("page", "annotation"),
    [(page, annotation) for page in PAGES for annotation in page.annotations],
    ids=lambda value: value.name if isinstance(value, Annotation) else _name(value),
)
def test_an_annotation_is_moments_and_words(site: Site, page: Page, annotation: Annotation) -> None:
    found = _types(site, page, annotation.sql)
    assert {"time", "text"} <= set(found) <= {"time", "timeEnd", "text", "title", "tags"}
    assert _is_time(found["time"])
    assert _is_text(found["text"])
    for span in site.spans().values():
        query = expand(annotation.sql, span, site.chosen[page.uid])
        assert len(site.store.query(query.sql, query.parameters).rows) <= 1000


@pytest.mark.parametrize("page", [page for page in PAGES if page.variables], ids=_name)
def test_a_variable_gives_values_and_perhaps_texts(site: Site, page: Page) -> None:
    for variable in page.variables:
        kinds = list(_types(site, page, variable.sql).values())
        assert 1 <= len(kinds) <= 2, variable.name
        assert all(map(_is_text, kinds)), variable.name


@pytest.mark.parametrize(
    "value", ["", "0", "x", "-1", "'); DROP TABLE events; --", "18446744073709551616"]
)
def test_no_value_of_a_variable_breaks_a_page(site: Site, value: str) -> None:
    """What stands in the address bar is anybody's."""
    for page, panel in ASKING:
        query = expand(panel.sql, site.spans()["a minute"], {v.name: value for v in page.variables})
        if query.parameters:
            site.store.query(query.sql, query.parameters)


def _energy_of_job(store: Store, workload: int) -> tuple[float, int]:
    """Joules, and number of GPUs, of the settled rows of a job: claim by claim."""
    claims: dict[tuple[str, tuple[int, ...], dt.datetime], dt.datetime | None] = {}
    for row in store.query(
        "SELECT node, gpus, from_ts, until_ts FROM allocations"
        f" WHERE workload_id = {workload} ORDER BY asserted_at"
    ).rows:
        claims[row[0], tuple(row[1]), row[2]] = row[3]
    joules, gpus = 0.0, set()
    for (node, indices, since), until in claims.items():
        asked = {"node": node, "since": _ms(since), "until": _ms(until) if until else 4 * 10**12}
        which = f"AND gpu_index IN ({str([*indices])[1:-1]})" if indices else ""
        for gpu, energy in store.query(
            "SELECT gpu, toFloat64(sum(energy_j)) FROM gpu_samples WHERE gpu IN"
            f" (SELECT gpu_id FROM inventory WHERE node = {{node:String}} {which})"
            " AND toUnixTimestamp64Milli(ts) >= {since:Int64}"
            " AND toUnixTimestamp64Milli(ts) < {until:Int64}"
            " AND ts < (SELECT until FROM settled) GROUP BY gpu",
            asked,
        ).rows:
            joules += energy
            gpus.add(gpu)
    return joules, len(gpus)


def test_a_job_has_the_energy_and_the_power_of_its_rows(site: Site) -> None:
    """Found by its allocations; the stamps of live rows are provisional and not asked."""
    page = next(page for page in PAGES if page.uid == "megawatch-workload")
    panels = {panel.title: panel for row in page.rows for panel in row}
    job = site.store.query(
        "SELECT workload_id, any(site_id) FROM allocations WHERE workload_id > 1"
        " GROUP BY workload_id ORDER BY min(from_ts), uniqExact(node_id) DESC, workload_id LIMIT 1"
    ).rows[0]
    values = {"workload": str(job[0]), "site": str(job[1])}
    joules, gpus = _energy_of_job(site.store, job[0])

    def asked(title: str, interval_s: int) -> list[dict[str, Any]]:
        end = site.until_ms
        query = expand(panels[title].sql, Span(end - 3_600_000, end, interval_s), values)
        return site.store.query(query.sql, query.parameters).dicts()

    assert asked("Energy", 5)[0]["energy_wh"] * 3600 == pytest.approx(joules)
    power = asked("Power of the job", 1)
    assert sum(row["watts"] for row in power) == pytest.approx(joules, rel=0.02)
    minutes = asked("Power of the job", 60)
    assert 0 < len(minutes) < len(power) / 50
    mean = [sum(r["watts"] for r in found) / len(found) for found in (power, minutes)]
    assert mean[1] == pytest.approx(mean[0], rel=0.1)
    assert (
        asked("Newest second", 1)[0]["gpus_held"] >= asked("Newest second", 1)[0]["gpus_measured"]
    )
    spread = asked("Power per GPU: least, median, most", 5)
    assert all(row["least"] <= row["median"] <= row["most"] for row in spread)
    slow = asked("Stragglers", 5)
    assert 0 < len(slow) <= gpus
    assert [row["of_median"] for row in slow] == sorted(row["of_median"] for row in slow)


# -- what is generated --------------------------------------------------------------------------


def test_the_committed_files_are_what_the_pages_say() -> None:
    assert drift() == []


def test_addresses_and_titles_are_of_one_page_each() -> None:
    for of in ("uid", "title"):
        found = [getattr(page, of) for page in PAGES]
        assert len(set(found)) == len(found)
    for page in PAGES:
        assert re.fullmatch(r"megawatch-[a-z-]{2,30}", page.uid)
        assert page.answers.endswith(".")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = DOCUMENTS[name]["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    for a, b in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart or below, (a, b)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= WIDTH for p in panels)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_variables_are_declared_before_their_use_and_all_used(page: Page) -> None:
    known: set[str] = set()
    used: set[str] = set()
    for variable in page.variables:
        asked = set(re.findall(r"\$\{(\w+):", variable.sql))
        assert asked <= known, variable.name
        known.add(variable.name)
        used |= asked
    asking = [panel for row in page.rows for panel in row]
    for sql in [*(p.sql for p in asking), *(a.sql for a in page.annotations)]:
        used |= set(re.findall(r"\$\{(\w+):", sql))
        assert not re.search(r"'\$\{|\[\[", sql), "a variable in quotes is a word, not a value"
    assert used == known
    declared = {v["name"] for v in DOCUMENTS[f"{page.uid}.json"]["templating"]["list"]}
    assert declared == known | {"ds"}


def test_links_lead_to_pages_and_variables_that_there_are() -> None:
    variables = {page.uid: {variable.name for variable in page.variables} for page in PAGES}
    for page, panel in PANELS:
        for url in panel.links.values():
            found = re.match(r"/d/([\w-]+)(?:\?(.*))?$", url)
            assert found, url
            assert found[1] in variables, (page.uid, url)
            given = set(re.findall(r"var-(\w+)=", url))
            assert given <= variables[found[1]], (page.uid, url)


@pytest.mark.parametrize(("page", "panel"), PANELS, ids=_name)
def test_a_panel_says_what_it_shows(page: Page, panel: Panel) -> None:
    if panel.kind == "text":
        assert panel.content
        assert not panel.sql
        return
    assert panel.title
    assert len(panel.description) > 40, "what it shows, from where, and what no data means"
    assert panel.description.endswith("."), panel.description[-20:]
    assert "  " not in panel.description
    units = {panel.unit, *panel.columns.values()}
    assert units <= UNITS | WRITTEN_OUT, units - UNITS
    assert [at for at, _ in panel.thresholds] == sorted(at for at, _ in panel.thresholds)
