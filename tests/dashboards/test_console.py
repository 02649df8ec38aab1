"""The console's API: only the dashboards' own queries run, bounded, for whoever may ask."""

import base64
import contextlib
import json
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette

from dashboards import console_app, console_pages, console_query
from dashboards.console import Console
from dashboards.console_app import application
from dashboards.grafana import rendered
from dashboards.macros import Span
from dashboards.pages import PAGES
from dashboards.panel import Annotation, Page, Panel, Variable
from pipeline.errors import Refuse, Retry
from pipeline.settings import ClickHouse
from pipeline.store import Rows, Store
from pipeline.web import Address

WEB = Path(console_app.WEB)
HOME = Address("127.0.0.1", 8080)
RANGE = {"from": "1790000000000", "to": "1790003600000"}
KINDS = """SELECT toDateTime('2026-11-21 12:00:00', 'UTC') AS t, toDateTime64('2026-11-21 12:00:00.250', 3,
    'Europe/Berlin') AS ms, toDate('2026-11-21') AS d, toDecimal64('1.25', 2) AS decimal,
    CAST(NULL AS Nullable(Float64)) AS nothing, nan AS no_number, 18446744073709551615 AS large,
    toString(18446744073709551615) AS id, true AS yes, '=1+1' AS formula"""


def page(uid: str, *panels: Panel, **more: Any) -> Page:
    return Page(uid=uid, title=uid.title(), answers="A question.", rows=[panels], **more)


def table(sql: str, **more: Any) -> Panel:
    return Panel(kind="table", title="Of a test", sql=sql, width=1, **more)


EVERY_KIND = page(
    "every-kind",
    Panel(kind="timeseries", title="Lines", sql="SELECT now() AS time, 1 AS v", width=4, min=0,
          max=3, decimals=1, thresholds=((2, "#D55E00"),)),
    Panel(kind="timeseries", title="Areas", sql="SELECT now() AS time, 'a' AS l, 1 AS v", width=4,
          label="l", stacked=True),
    Panel(kind="stat", title="Now", sql="SELECT 1 AS v", width=4, columns={"v": "watt"}),
    Panel(kind="gauge", title="Full", sql="SELECT 1 AS v", width=4, unit="percent", min=0, max=100),
    Panel(kind="bargauge", title="Bars", sql="SELECT 'a' AS l, 1 AS v", width=4, max=5),
    Panel(kind="heatmap", title="Cells", sql="SELECT now() AS time, 'a' AS l, 1 AS v", width=2,
          label="l", min=0, max=100),
    table("SELECT 'a' AS x, 'b' AS x_id", links={"x": "/d/every-kind?var-x=${__data.fields.x_id}"},
          hidden=("x_id",), columns={"x": "none"}),
    variables=(Variable(name="site", label="Site", sql="SELECT '1', 'one'"),),
    annotations=(Annotation(name="Moves", sql="SELECT now() AS time, 'x' AS text", color="#111111"),),
)  # fmt: skip
ASKED = page(
    "asked",
    table("SELECT ${site:singlequote} AS said, $__interval_s AS step"),  # panel 2
    table("WITH 1 AS one SELECT one"),
    table("SELECT number FROM numbers(1000000)"),
    table("SELECT nonsense"),
    table(KINDS),
    table("SELECT $__timeInterval(toDateTime(0)) AS time"),
    table("SELECT 1 WHERE 0"),
    table("SELECT toUInt64(${site:singlequote})"),
    variables=(
        Variable(name="site", label="Site", sql="SELECT arrayJoin(['1', '2']) AS id, if(id = '1', 'one', 'two') ORDER BY id"),
        Variable(name="tenant", label="Tenant", sql="SELECT concat('of ', ${site:singlequote})"),
        Variable(name="none", label="None", sql="SELECT '' WHERE 0"),
    ),
    annotations=(
        Annotation(name="Moves", color="#123456", sql=f"SELECT fromUnixTimestamp64Milli({RANGE['from']})"
                   " AS time, fromUnixTimestamp64Milli(1790000001000) AS timeEnd, 'here' AS text"),
        Annotation(name="Nothing", color="#654321", sql="SELECT now() AS time, '' AS text WHERE 0"),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generated")
    for one in (EVERY_KIND, ASKED):
        (made / f"{one.uid}.json").write_text(json.dumps(rendered(one), indent=2))
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Store]:
    """An empty store for all of this module, since almost nothing here writes."""
    folder = tmp_path_factory.mktemp("store") / "data"
    shutil.copytree(migrated, folder, symlinks=True)
    opened = Store(ClickHouse(data=str(folder)))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def stores(store: Store) -> Iterator[console_query.Stores]:
    made = console_query.Stores(store, console_app.CONNECTIONS)
    yield made
    made.close()


class Client:
    """Asks an application without a socket, all in one event loop as a server does."""

    def __init__(self, app: Starlette, portal: BlockingPortal, base_url: str) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url=base_url)
        self._portal = portal

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(lambda: self._client.request(method, path, **more))

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as made:
        yield made


@pytest.fixture
def client(stores: console_query.Stores, folder: Path, portal: BlockingPortal) -> Client:
    app = application(stores, console_pages.read(folder, ["every-kind"]), HOME)
    return Client(app, portal, "http://127.0.0.1:8080")


def asked(client: Client, number: int, **more: str) -> httpx.Response:
    values = {"var-site": "1", "panel": str(number), **RANGE, **more}
    return client.get("/api/query/asked", params=values)


def error(answer: httpx.Response) -> str:
    """The one sentence of a refusal."""
    assert answer.status_code >= 400
    sentence: str = answer.json()["error"]
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


# -- what is served ------------------------------------------------------------------------------


def test_dashboards_are_listed_in_the_pages_order(client: Client) -> None:
    listed = client.get("/api/dashboards").json()
    assert [one["uid"] for one in listed] == ["every-kind", "asked"]
    assert listed[0]["description"] == "A question."


def test_a_dashboard_is_its_file_byte_for_byte(client: Client, folder: Path) -> None:
    assert client.get("/api/dashboards/asked").content == (folder / "asked.json").read_bytes()


def test_a_folder_without_dashboards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refuse, match="no dashboards"):
        console_pages.read(tmp_path)


def test_values_come_as_columns_of_plain_json(client: Client) -> None:
    got = asked(client, 6).json()
    noon_ms = 1795262400000
    columns = zip(got["kinds"], got["columns"], strict=True)
    assert dict(zip(got["names"], map(list, columns), strict=True)) == {
        "t": ["time", [noon_ms]], "ms": ["time", [noon_ms - 3_600_000 + 250]],
        "d": ["time", [noon_ms - 43_200_000]], "decimal": ["number", [1.25]],
        "nothing": ["number", [None]], "no_number": ["number", [None]],
        "large": ["number", [18446744073709551615]], "id": ["text", ["18446744073709551615"]],
        "yes": ["number", [True]], "formula": ["text", ["=1+1"]],
    }  # fmt: skip


def test_a_csv_has_a_header_times_in_utc_and_no_formula(client: Client) -> None:
    got = client.get("/api/csv/asked", params={"panel": "6", **RANGE})
    assert got.headers["content-type"].startswith("text/csv")
    assert got.headers["content-disposition"] == 'attachment; filename="of-a-test.csv"'
    names, values = (line.split(",") for line in got.text.split("\r\n")[:2])
    row = dict(zip(names, values, strict=True))
    assert row["t"] == "2026-11-21T12:00:00+00:00"
    assert row["ms"] == "2026-11-21T11:00:00.250+00:00"
    assert (row["nothing"], row["no_number"], row["decimal"]) == ("", "", "1.25")
    assert row["formula"] == "'=1+1"


def test_the_step_follows_the_points_and_the_macros_use_it(client: Client) -> None:
    got = asked(client, 2, points="100").json()
    assert got["interval_s"] == 30
    assert got["columns"] == [["1"], [30]]


@pytest.mark.parametrize(
    ("hours", "points", "step_s"),
    [(1, 1000, 5), (1, 3600, 1), (1, 10000, 1), (24, 800, 120), (24 * 365 * 100, 1, 31536000)],
)
def test_steps_are_round(hours: int, points: int, step_s: int) -> None:
    assert console_query.interval_s(0, hours * 3_600_000, points) == step_s


def test_an_answer_without_rows_is_an_answer(client: Client) -> None:
    assert asked(client, 8).json()["columns"] == []


def test_each_variable_sees_the_choices_before_it(client: Client) -> None:
    got = client.get("/api/variables/asked", params={**RANGE, "var-site": "2"}).json()
    assert [one["value"] for one in got] == ["2", "of 2", ""]
    assert got[0]["options"] == [["1", "one"], ["2", "two"]]
    assert got[2]["options"] == []


def test_a_value_that_is_no_option_becomes_the_first(client: Client) -> None:
    got = client.get("/api/variables/asked", params={**RANGE, "var-site": "9"}).json()
    assert got[0]["value"] == "1"


def test_annotations_have_a_time_an_end_and_a_text(client: Client) -> None:
    got = client.get("/api/annotations/asked", params=RANGE).json()
    assert got[0] == {
        "name": "Moves", "color": "#123456", "left_out": 0,
        "events": [[1790000000000, 1790000001000, "here"]],
    }  # fmt: skip
    assert got[1]["events"] == []


def test_the_newest_annotations_are_kept(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(console_app, "MAX_ANNOTATIONS", 0)
    # A slice from -0 would keep all of them.
    got = client.get("/api/annotations/asked", params=RANGE).json()
    assert (got[0]["left_out"], got[0]["events"]) == (1, [])


def test_an_empty_store_has_no_newest_second(client: Client) -> None:
    assert client.get("/api/status").json() == {"newest_ms": None}


def test_metrics_count_the_consoles_own_requests(client: Client) -> None:
    asked(client, 2)
    asked(client, 5)
    client.get("/healthz")
    text = client.get("/metrics").text
    assert 'megawatch_console_requests_total{status="200"} 2.0' in text
    assert "megawatch_console_queries_failed_total 1.0" in text
    assert "megawatch_console_query_seconds_count 2.0" in text
    assert "megawatch_console_queries_waiting 0.0" in text


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid",
    ["nothing", "..%2F..%2Fetc%2Fpasswd", "asked'--", "%00", "a" * 5000, "asked.json", "%F0%9F"],
)
@pytest.mark.parametrize("what", ["dashboards", "query", "csv", "variables", "annotations"])
def test_hostile_uids_are_not_found(client: Client, what: str, uid: str) -> None:
    got = client.get(
        f"/api/{what}/{uid}", params={"panel": "2", **RANGE} if what != "dashboards" else {}
    )
    assert got.status_code == 404
    assert len(error(got)) < 500


@pytest.mark.parametrize("panel", ["0", "1", "99", "-2", "18446744073709551617"])
def test_panels_without_a_query_are_not_found(client: Client, panel: str) -> None:
    got = asked(client, 2, panel=panel)
    assert got.status_code in (400, 404)
    assert error(got)


@pytest.mark.parametrize(
    "wrong",
    [
        {"from": "x"}, {"from": "now-1h"}, {"from": "-1"}, {"from": ""},
        {"to": "1"}, {"to": "99999999999999999999"}, {"to": RANGE["from"]}, {"from": "1.5"},
        {"points": "0"}, {"points": "10001"}, {"points": "1) OR (1"}, {"panel": "2; DROP TABLE t"},
        {"sql": "SELECT 1"}, {"rawSql": "SELECT 1"}, {"readonly": "0"}, {"var-site": "x" * 1001},
    ],
)  # fmt: skip
def test_hostile_parameters_are_refused(client: Client, wrong: dict[str, str]) -> None:
    got = client.get("/api/query/asked", params={"panel": "2", "var-site": "1", **RANGE, **wrong})
    assert got.status_code == 400
    assert error(got)


def test_a_missing_time_is_refused(client: Client) -> None:
    assert "from" in error(client.get("/api/query/asked", params={"panel": "2"}))


@pytest.mark.parametrize(
    "value",
    [
        "1' OR '1'='1", "1') UNION ALL SELECT name FROM tenants --", "\\", "\\'", "'; DROP TABLE x",
        "{site:String}", "${site:singlequote}", "$__fromTime", "%(a)s", "%", "\t\n", "日本", "",
    ],
)  # fmt: skip
def test_a_variables_value_is_never_sql(client: Client, value: str) -> None:
    got = asked(client, 2, **{"var-site": value}).json()
    assert got["columns"][0] == [value]


def test_a_variable_that_is_missing_is_named(client: Client) -> None:
    got = client.get("/api/query/asked", params={"panel": "2", **RANGE})
    assert got.status_code == 400
    assert "'site'" in error(got)


def test_a_dashboard_that_would_write_is_refused(tmp_path: Path) -> None:
    writing = page("writing", table("INSERT INTO schema_migrations (number) VALUES (99)"))
    (tmp_path / "writing.json").write_text(json.dumps(rendered(writing)))
    with pytest.raises(Refuse, match="is no SELECT"):
        console_pages.read(tmp_path)


def test_a_query_that_would_write_fails_in_the_store_too(store: Store) -> None:
    before = store.query("SELECT count() FROM schema_migrations").rows
    apart = store.another()
    with pytest.raises(Retry, match="readonly"):
        console_query.rows(
            apart, "INSERT INTO schema_migrations (number) VALUES (99)", Span(0, 1), {}
        )
    apart.close()
    assert store.query("SELECT count() FROM schema_migrations").rows == before


def test_an_answer_that_is_too_long_says_so(client: Client) -> None:
    assert error(asked(client, 4)) == (
        "the answer has more than 200,000 rows: choose a shorter time range"
    )


def test_a_query_that_takes_too_long_says_so(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setitem(console_query.LIMITS, "max_execution_time", 1)
    monkeypatch.setattr(console_query, "expand", slow)
    assert "longer than 30 s" in error(asked(client, 2))


def slow(*_: object) -> Any:
    from dashboards.macros import Query

    return Query("SELECT sum(sleepEachRow(1)) FROM numbers(3)", {})


def test_a_broken_query_is_one_sentence_without_its_text(client: Client) -> None:
    got = error(asked(client, 5))
    assert got == "the query failed: Unknown expression identifier `nonsense`"


def test_a_value_of_the_wrong_kind_is_said_plainly(client: Client) -> None:
    got = error(asked(client, 9, **{"var-site": "no number"}))
    assert got.startswith("the query failed: Cannot parse string 'no number' as UInt64")
    assert "SELECT" not in got


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1:8080@x", "[::2]:1"]
)
def test_other_host_names_are_refused(client: Client, host: str) -> None:
    got = client.get("/api/dashboards", headers={"Host": host})
    assert got.status_code == 403
    assert error(got) == "this is not the host's name"


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:9", "LOCALHOST"])
def test_this_machines_names_are_let_in(client: Client, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading(client: Client, method: str) -> None:
    got = client.request(method, "/api/query/asked")
    assert got.status_code == 405
    assert got.headers["allow"] == "GET, HEAD"
    assert "access-control-allow-origin" not in got.headers


def test_another_sites_page_cannot_keep_the_store_busy(client: Client) -> None:
    away = {"Sec-Fetch-Site": "cross-site"}
    assert client.get("/api/status", headers=away).status_code == 403
    assert client.get("/d/asked", headers=away).status_code == 200
    own = client.get("/api/status", headers={"Sec-Fetch-Site": "same-origin"})
    assert own.json() == {"newest_ms": None}


@pytest.mark.parametrize(
    "path", ["/", "/d/asked", "/static/console.js", "/api/dashboards", "/nothing", "/healthz"]
)
def test_every_answer_has_the_headers(client: Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] in ("no-cache", "no-store")


def test_a_page_of_an_unknown_dashboard_is_the_page_with_a_404(client: Client) -> None:
    got = client.get("/d/nothing")
    assert got.status_code == 404
    assert "console.js" in got.text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../console.py",
        "/static/..%2Fconsole.py",
        "/static/%2Fetc%2Fpasswd",
        "/static/",
        "/static/vendor",
    ],
)
def test_nothing_beside_the_web_folder_is_served(client: Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_file_that_the_browser_has_is_not_sent_again(client: Client) -> None:
    first = client.get("/static/console.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/static/console.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_with_a_token_every_request_needs_it(
    stores: console_query.Stores, folder: Path, portal: BlockingPortal
) -> None:
    app = application(stores, console_pages.read(folder), Address("10.0.0.1", 80), "secret")
    client = Client(app, portal, "http://console.example")
    given = [
        None, "", "Bearer", "Bearer wrong", "Bearer secret2", "bearer  secret", "Basic !!!",
        "Basic " + base64.b64encode(b"secret").decode(), "Basic \xff",
    ]  # fmt: skip
    for one in given:
        got = client.get(
            "/healthz", headers={} if one is None else {"Authorization": one.encode("latin-1")}
        )
        assert got.status_code == 401, one
        assert got.headers["www-authenticate"].startswith("Basic")
    for one in ("Bearer secret", "Basic " + base64.b64encode(b"anyone:secret").decode()):
        assert client.get("/healthz", headers={"Authorization": one}).status_code == 200


# -- how many at once ----------------------------------------------------------------------------


class Counting:
    """Connections that count how many queries run at once, and hold them until told."""

    def __init__(self) -> None:
        self.let_go, self.full = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.run = 0

    @contextlib.contextmanager
    def lent(self) -> Iterator["Counting"]:
        with self.lock:
            self.running, self.run = self.running + 1, self.run + 1
            self.most = max(self.most, self.running)
            if self.running == console_app.CONNECTIONS:
                self.full.set()
        yield self
        with self.lock:
            self.running -= 1

    def query(self, *_: object, **__: object) -> Rows:
        assert self.let_go.wait(20)
        return Rows(("t", "n"), [(1, 1)])


def counted(folder: Path) -> tuple[Counting, Any]:
    counting = Counting()
    return counting, application(counting, console_pages.read(folder), HOME)  # type: ignore[arg-type]


def test_a_few_queries_run_and_the_rest_wait(folder: Path) -> None:
    counting, app = counted(folder)

    async def body() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            codes: list[int] = []

            async def ask() -> None:
                codes.append((await client.get("/api/status")).status_code)

            async with anyio.create_task_group() as group:
                for _ in range(console_app.MAX_WAITING + 5):
                    group.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                assert await anyio.to_thread.run_sync(counting.full.wait, 20)
                counting.let_go.set()
            assert sorted(codes) == [200] * console_app.MAX_WAITING + [503] * 5

    anyio.run(body)
    assert counting.most == console_app.CONNECTIONS


def test_a_query_whose_asker_has_left_is_not_run(folder: Path) -> None:
    counting, app = counted(folder)
    scope = {
        "type": "http", "method": "GET", "path": "/api/status", "query_string": b"",
        "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    codes: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            codes.append(message["status"])

    async def stay() -> Any:
        await anyio.sleep_forever()

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    async def body() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(console_app.CONNECTIONS):
                group.start_soon(app, dict(scope), stay, send)
            assert await anyio.to_thread.run_sync(counting.full.wait, 20)
            await app(dict(scope), leave, send)
            assert codes == [499]
            counting.let_go.set()

    anyio.run(body)
    assert codes == [499] + [200] * console_app.CONNECTIONS
    assert counting.run == console_app.CONNECTIONS


def test_who_waits_too_long_is_told(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(console_app, "MAX_WAIT_S", 0.05)
    counting, app = counted(folder)

    async def body() -> None:
        async with (
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://localhost"
            ) as client,
            anyio.create_task_group() as group,
        ):
            for _ in range(console_app.CONNECTIONS):
                group.start_soon(client.get, "/api/status")
            assert await anyio.to_thread.run_sync(counting.full.wait, 20)
            assert "busy" in error(await client.get("/api/status"))
            counting.let_go.set()

    anyio.run(body)


# -- the server ----------------------------------------------------------------------------------


def test_the_console_serves_on_a_socket_and_stops(store: Store, folder: Path) -> None:
    console = Console(store, "127.0.0.1:0", folder=folder)
    try:
        with urllib.request.urlopen(f"{console.url}api/dashboards", timeout=10) as got:
            assert json.load(got)[0]["uid"] == "asked"
        busy = console.url.removeprefix("http://").rstrip("/")
        with pytest.raises(Refuse, match="cannot listen on"):
            Console(store, busy, folder=folder)
    finally:
        console.close()
        console.close()
    assert store.query("SELECT 1").rows == [(1,)]


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:80", "nonsense", "[::]:0"])
def test_an_address_for_others_needs_a_token(store: Store, listen: str) -> None:
    with pytest.raises(Refuse):
        Console(store, listen)


def test_the_sentence_of_an_unknown_error_is_its_own() -> None:
    assert console_query.sentence(Retry("connection refused")) == "connection refused"


# -- the closed dialect --------------------------------------------------------------------------

DIALECT = json.loads((WEB / "dialect.json").read_text())


def unknown(value: Any, allowed: Any, path: str) -> Iterator[str]:
    """Paths that the dialect does not have; dialect.js does the same in the page."""
    if allowed == "*":
        return
    if isinstance(value, list):
        for one in value:
            yield from unknown(one, allowed, path)
    elif isinstance(allowed, list):
        # A value of the same kind: True is not 1 here.
        if (type(value), value) not in [(type(one), one) for one in allowed]:
            yield f"{path} = {value!r}"
    elif not isinstance(value, dict):
        yield f"{path} = {value!r}"
    else:
        for key, one in value.items():
            yield from (
                unknown(one, allowed[key], f"{path}.{key}") if key in allowed else [f"{path}.{key}"]
            )


def strange(tree: dict[str, Any]) -> list[str]:
    found = list(unknown(tree, DIALECT["dashboard"], "dashboard"))
    for panel in tree["panels"]:
        kind = panel["type"]
        if kind in DIALECT["panels"]:
            found += unknown(panel, DIALECT["panel"] | DIALECT["panels"][kind], kind)
        else:
            found.append(f"a panel of type {kind}")
    return found


@pytest.mark.parametrize("one", [*PAGES, EVERY_KIND, ASKED], ids=lambda p: p.uid)
def test_the_console_knows_everything_that_a_page_has(one: Page) -> None:
    assert not strange(rendered(one))


def test_the_committed_files_are_in_the_dialect() -> None:
    for path in console_pages.FOLDER.glob("*.json"):
        assert not strange(json.loads(path.read_text())), path.name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("panels", 1, "type"), "piechart"),
        (("panels", 1, "fieldConfig", "defaults", "custom", "drawStyle"), "bars"),
        (("panels", 1, "fieldConfig", "defaults", "custom", "lineWidth"), 2),
        (("panels", 1, "options", "legend", "calcs"), ["max"]),
        (("panels", 7, "fieldConfig", "overrides", 0, "properties", 0, "id"), "custom.width"),
        (("panels", 1, "transformations"), [{"id": "merge"}]),
        (("templating", "list", 1, "multi"), True),
        (("graphTooltip",), 2),
        (("panels", 1, "targets", 0, "format"), True),
    ],
)
def test_what_the_console_does_not_know_is_found(path: tuple[Any, ...], value: object) -> None:
    tree = rendered(EVERY_KIND)
    at: Any = tree
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert len(strange(tree)) == 1


# -- the files of the page -----------------------------------------------------------------------


def test_the_page_has_no_inline_script_or_style_and_loads_what_is_there() -> None:
    text = (WEB / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", text)
    for name in re.findall(r'(?:src|href)="/static/([^"]+)"', text):
        assert (WEB / name).is_file(), name


def test_modules_import_files_that_are_there_and_no_markup_is_parsed() -> None:
    reached = {"console.js"}
    waiting = ["console.js"]
    while waiting:
        text = (WEB / waiting.pop()).read_text()
        if "uPlot" not in text[:10]:
            assert "innerHTML" not in text or text.startswith("/**")
        for name in re.findall(r'^import .* from "\./([^"]+)";$', text, re.MULTILINE):
            assert (WEB / name).is_file(), name
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    assert {path.name for path in WEB.glob("*.js")} <= reached


def test_uplot_is_kept_with_its_licence_and_its_version() -> None:
    (folder,) = (WEB / "vendor").iterdir()
    name, version = folder.name.split("-")
    assert name == "uplot"
    assert (folder / "VERSION").read_text().startswith(version)
    assert "MIT" in (folder / "LICENSE").read_text()
