"""dcgm-exporter's dialects, the agent's own metrics, and who may read them."""

import contextlib
import http.client
import os
import socket
import subprocess
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.exporter import STUCK_S, Exporter
from agents.exposition import FROM_49, UP_TO_48, Totals, render
from agents.sampler import Sampler, Snapshot
from agents.source import Reading
from deploy.fetch import prometheus_programs
from pipeline.catalog import FAST, SLOW
from pipeline.clock import ManualClock
from pipeline.errors import Refuse
from pipeline.records import Event
from pipeline.settings import Settings, Site
from pipeline.spool import Spool
from pipeline.web import MAX_REQUESTS, Address, Page, Web, parse_address, text
from pipeline.wire import LAYOUT
from tests.agents.tiny_source import TinySource
from tests.real.conftest import require_real

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = Path(os.environ.get("MEGAWATCH_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
TICK = 1_790_000_000_000


def snapshot(gpus: int = 2) -> Snapshot:
    source = TinySource(gpus=gpus)
    return Snapshot(TICK, source.inventory(), source.read(TICK))


def page(dialect: str, *, xid: bool = True) -> str:
    totals = Totals()
    totals.on_reading(snapshot())
    totals.on_reading(snapshot())
    if xid:
        totals.on_record(Event(site="s", node="n", ts_ms=1, kind="xid", uuid="GPU-0-1", code=79))
    return render(snapshot(), totals, {"48": UP_TO_48, "49": FROM_49}[dialect])


@pytest.mark.parametrize("dialect", ["48", "49"])
def test_the_exposition_is_as_agreed(dialect: str) -> None:
    """Byte for byte; set MEGAWATCH_GOLDEN=write to accept a change."""
    golden = GOLDEN / f"dcgm{dialect}.prom"
    if os.environ.get("MEGAWATCH_GOLDEN") == "write":
        golden.write_text(page(dialect))
    assert page(dialect) == golden.read_text()


def test_units_are_theirs() -> None:
    """Watts as such, millijoules or joules, percent or ratios, MiB or bytes, MHz or Hz, exact."""
    old, new = page("48"), page("49")
    gpu0 = 'gpu="0",UUID="GPU-0-0",pci_bus_id="00000000:00:00.0",device="nvidia0",'
    model = 'modelName="H200 \\"SXM\\"",'
    before = gpu0 + model + 'Hostname="node-0",DCGM_FI_DRIVER_VERSION="580.1"'
    after = gpu0 + model + 'hostname="node-0",DCGM_FI_SYSTEM_DRIVER_VERSION="580.1"'
    for line in (
        f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{before}}} {TICK}\n",
        f"DCGM_FI_DEV_GPU_UTIL{{{before}}} 87\n",
        f"DCGM_FI_PROF_SM_ACTIVE{{{before}}} 0.905\n",
        f"DCGM_FI_DEV_FB_FREE{{{before}}} {143_771 - 600 - 1000}\n",
        f"DCGM_FI_DEV_SM_CLOCK{{{before}}} 1980\n",
        f"DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS{{{before}}} 6000000\n",
        f"DCGM_FI_DEV_XID_ERRORS{{{before}}} 0\n",
    ):
        assert line in old
    for line in (
        f"DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{{{after}}} {TICK // 1000}\n",
        f"DCGM_FI_DEV_GPU_UTIL_RATIO{{{after}}} 0.87\n",
        f"DCGM_FI_DEV_FB_USED_BYTES{{{after}}} {1000 << 20}\n",
        f"DCGM_FI_DEV_SM_CLOCK_HERTZ{{{after}}} 1980000000\n",
    ):
        assert line in new


def test_a_counter_keeps_its_exact_name() -> None:
    """No suffix is added, and the type is said under that very name."""
    old = page("48")
    assert "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n" in old
    assert "# TYPE DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS counter\n" in old
    assert "_total" not in old + page("49")


def test_what_is_not_reported_has_no_series() -> None:
    """A null is no zero; a metric that no GPU has is not even described."""
    assert "DCGM_FI_DEV_MEMORY_TEMP" not in page("48")
    assert "DCGM_FI_DEV_FAN_SPEED" not in page("48")


def test_a_gpu_that_was_not_read_vanishes() -> None:
    """Of two GPUs, the one with dt_ms = 0 at this tick has no series."""
    whole = snapshot()
    fast = (array("I", [1000, 0]), *whole.reading.fast[1:])
    half = replace(whole, reading=Reading(fast, whole.reading.slow))
    rendered = render(half, Totals(), UP_TO_48)
    assert "GPU-0-0" in rendered
    assert "GPU-0-1" not in rendered


def test_every_family_of_the_catalogue_is_well_formed_and_has_a_unit() -> None:
    """Both dialects parse, each name once, and a value with a unit says which."""
    reading = Reading(
        tuple(array(_code(c.storage), [1]) for c in LAYOUT.fast),
        tuple(array(_code(c.storage), [1]) for c in LAYOUT.slow),
    )
    full = Snapshot(TICK, TinySource(gpus=1).inventory(), reading)
    totals = Totals()
    totals.on_reading(full)
    for dialect in (UP_TO_48, FROM_49):
        rendered = render(full, totals, dialect)
        families = list(text_string_to_metric_families(rendered))
        names = [m.name for m in (*FAST, *SLOW) if dialect.pick(m)]
        assert len(families) == len(names) + 2
        assert len({f.name for f in families}) == len(families)
        for metric in (*FAST, *SLOW):
            dcgm = dialect.pick(metric)
            if dcgm and metric.unit:
                line = next(x for x in rendered.splitlines() if f"# HELP {dcgm.name} " in x)
                assert line.endswith(")"), line


def _code(storage: str) -> str:
    return {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i2": "h", "i4": "i"}[storage]


def test_names_are_those_of_dcgm_exporter() -> None:
    """Every default metric of dcgm-exporter that NVML can answer is served under its name."""
    path = DATA / "dcgm_fixtures" / "dcgm_exporter_default-counters.csv"
    if not path.exists():
        pytest.skip("needs dcgm_fixtures of MEGAWATCH_TEST_DATA")
    rows = [x.split(",") for x in path.read_text().splitlines() if x and not x.startswith("#")]
    theirs = {row[0].strip(): row[1].strip() for row in rows}
    ours = {m.dcgm.name: m.kind for m in (*FAST, *SLOW) if m.dcgm}
    ours |= {UP_TO_48.free.name: "gauge", UP_TO_48.xid: "gauge"}
    without = {name for name in theirs if name not in ours and theirs[name] != "label"}
    # Rates that DCGM computes or vGPU licences: NVML has no such value.
    assert without == {
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_PCIE_TX_BYTES",
        "DCGM_FI_PROF_PCIE_RX_BYTES",
    }  # fmt: skip
    for name in theirs.keys() & ours.keys():
        assert (theirs[name] == "counter") == (ours[name] in ("counter", "delta")), name


# -- the agent's own metrics and health ------------------------------------------------------------


@dataclass
class Bench:
    """An agent's parts, turned by hand."""

    clock: ManualClock
    source: TinySource
    sampler: Sampler
    exporter: Exporter

    def turn(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.ms = self.sampler.step()

    def get(self, path: str) -> str:
        answer = self.exporter.pages()[path]()
        assert answer.status == 200
        return answer.body.decode()


class Cost(NamedTuple):
    """As a source says it."""

    calls: int
    seconds: float
    longest_s: float


class TimedSource(TinySource):
    """A source that knows the cost of its calls."""

    def costs(self) -> dict[str, Cost]:
        return {"nvmlDeviceGetFieldValues": Cost(8, 0.25, 0.125)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    clock, source, totals = ManualClock(TICK), TimedSource(), Totals()
    with contextlib.closing(Spool(tmp_path, 1 << 26, clock)) as spool:
        settings = Settings(site=Site(name="s", node="node-0"))
        sampler = Sampler(source, spool, settings, clock, [totals])
        exporter = Exporter(source, sampler, spool, None, totals, clock, 1000, "1.2.3")
        yield Bench(clock, source, sampler, exporter)


def test_a_stale_source_makes_series_vanish(bench: Bench) -> None:
    """Three periods after the last reading there is no GPU on the page, and it says so."""
    assert "DCGM" not in bench.get("/metrics")
    bench.turn(5)
    assert "DCGM_FI_DEV_POWER_USAGE" in bench.get("/metrics")
    assert "megawatch_agent_source_up 1.0" in bench.get("/metrics")
    bench.source.unavailable = "driver hung"
    bench.turn(2)
    assert "DCGM_FI_DEV_POWER_USAGE" in bench.get("/metrics")
    bench.turn(3)
    for path in ("/metrics", "/metrics/dcgm49"):
        assert "DCGM" not in bench.get(path)
    assert "megawatch_agent_source_up 0.0" in bench.get("/metrics")
    assert 'holes_total{reason="driver hung"}' in bench.get("/metrics/agent")


def test_the_agents_own_metrics_are_on_metrics_and_alone(bench: Bench) -> None:
    """Cost, ticks, spool and calls; each family once and well formed."""
    bench.turn(9)
    alone = bench.get("/metrics/agent")
    assert bench.get("/metrics").count("# TYPE megawatch_agent_") == alone.count("# TYPE ")
    samples = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(alone)
        for s in family.samples
    }
    assert samples["megawatch_agent_ticks_total",] == len(bench.source.reads) > 5
    assert samples["megawatch_agent_tick_lateness_seconds_count",] == len(bench.source.reads)
    assert samples["megawatch_agent_spool_messages",] >= 2
    assert samples["megawatch_agent_cpu_seconds_total",] > 0
    assert samples["megawatch_agent_memory_pss_bytes",] > 1 << 20
    assert samples["megawatch_agent_info", "1.2.3"] == 1
    call = ("megawatch_agent_source_call_seconds_sum", "nvmlDeviceGetFieldValues")
    assert samples[call] == 0.25
    assert samples["megawatch_agent_source_call_max_seconds", call[1]] == 0.125


def test_health_is_that_of_the_loop_not_of_the_gpus(bench: Bench) -> None:
    """A restart helps a stuck loop, not a hung driver."""
    bench.turn(3)
    assert bench.exporter.health() == text(200, "ok\n")
    bench.source.unavailable = "driver hung"
    bench.turn(10)
    assert bench.exporter.health().status == 200
    assert b"cannot be read" in bench.exporter.health().body
    bench.clock.advance(STUCK_S + 1)
    assert bench.exporter.health().status == 503


@pytest.mark.real
def test_prometheus_tool_accepts_the_pages(bench: Bench) -> None:
    """promtool reads every page; of our own names it has nothing to complain about."""
    promtool = require_real("promtool", prometheus_programs) / "promtool"
    bench.turn(9)
    for path in ("/metrics", "/metrics/dcgm49", "/metrics/agent"):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=bench.get(path).encode(), capture_output=True,
            timeout=30, check=False,
        )  # fmt: skip
        said = (done.stdout + done.stderr).decode()
        assert done.returncode in (0, 3), said  # 3: only style
        assert "error while" not in said
        assert "megawatch_agent" not in said


# -- the server ------------------------------------------------------------------------------------

PAGES = {"/metrics": lambda: text(200, "page\n")}


def ask(web: Web, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=5)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture
def web() -> Iterator[Web]:
    with contextlib.closing(Web("127.0.0.1:0", PAGES)) as web:
        yield web


def test_pages_are_served_to_get_only(web: Web) -> None:
    """Queries are ignored, other paths are 404, other methods 501."""
    assert ask(web) == (200, "page\n")
    assert ask(web, "/metrics?x=1") == (200, "page\n")
    assert ask(web, "/")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(web, method=method)[0] == 501


@pytest.mark.parametrize("host", ["localhost", "localhost:9465", "127.0.0.1:1", "[::1]:9465"])
def test_loopback_names_are_served(web: Web, host: str) -> None:
    """With or without a port."""
    assert ask(web, Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9465", "", "localhost.evil:1"])
def test_other_names_are_refused(web: Web, host: str) -> None:
    """A web page whose name resolves to loopback reads nothing."""
    assert ask(web, Host=host)[0] == 403


def test_a_token_is_asked_for() -> None:
    """Where one is set, nothing is served without it, and any host name with it."""
    with contextlib.closing(Web("127.0.0.1:0", PAGES, "s3cret")) as web:
        assert ask(web)[0] == 401
        assert ask(web, Authorization="Bearer wrong")[0] == 401
        assert ask(web, Authorization="Bearer s3cret", Host="node-1:9465")[0] == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:9465", "192.0.2.1:1", "[::]:9465", "node-1:9465"])
def test_a_public_address_needs_a_token(listen: str) -> None:
    """One sentence with the address and the way out."""
    with pytest.raises(Refuse, match="name a token_file, or listen on"):
        Web(listen, PAGES)


@pytest.mark.parametrize(
    "listen", ["", "9465", "localhost", ":9465", "localhost:x", "localhost:70000", "a:1/x", "u@a:1"]
)
def test_what_is_no_address_is_refused(listen: str) -> None:
    """One sentence with the bad value."""
    with pytest.raises(Refuse, match="is not an address"):
        parse_address(listen)


def test_addresses_are_understood() -> None:
    """IPv6 in brackets; loopback is known as such."""
    assert parse_address("[::1]:80") == Address("::1", 80)
    assert parse_address("[::1]:80").is_loopback
    assert parse_address("localhost:1").is_loopback
    assert parse_address("127.9.9.9:1").is_loopback


def test_an_address_in_use_is_refused(web: Web) -> None:
    """One sentence, no traceback."""
    with pytest.raises(Refuse, match="in use"):
        Web(f"127.0.0.1:{web.port}", PAGES)


def test_slow_and_many_clients_are_bounded() -> None:
    """More requests than slots are turned away, and the rest is served afterwards."""
    hold, entered = threading.Event(), threading.Semaphore(0)

    def slow() -> Page:
        entered.release()
        hold.wait(10)
        return text(200, "late\n")

    pages = PAGES | {"/slow": slow}
    with contextlib.closing(Web("127.0.0.1:0", pages)) as web:
        clients = []
        for _ in range(MAX_REQUESTS):
            client = socket.create_connection(("127.0.0.1", web.port), timeout=5)
            client.sendall(b"GET /slow HTTP/1.0\r\nHost: localhost\r\n\r\n")
            clients.append(client)
            assert entered.acquire(timeout=5)
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(web)
        hold.set()
        for client in clients:
            with client:
                while client.recv(4096):
                    pass
        assert ask(web)[0] == 200
