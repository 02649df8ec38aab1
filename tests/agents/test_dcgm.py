"""An existing dcgm-exporter as a source: dialects, MIG, blanks, holds, silence, hostile pages."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents import dcgm_page
from agents.dcgm import Account, DcgmSource
from agents.prometheus_text import Sample
from agents.source import Reading
from pipeline.catalog import FAST, SLOW
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Refuse, Reject, Unavailable
from pipeline.records import ENERGY_COUNTER, ENERGY_TRAPEZOID, FLAG_HELD, Event
from pipeline.settings import Site
from pipeline.wire import LAYOUT

NOW = 1_790_000_000_000
GOLDEN = Path(__file__).parents[1] / "golden"
COLUMNS = [column.name for column in LAYOUT.fast]
SLOW_COLUMNS = [column.name for column in LAYOUT.slow]
NULL = {metric.name: metric.null_code for metric in SLOW + FAST}


@dataclass
class Exporter:
    """A web server whose page is set by the test."""

    page: bytes = b""
    status: int = 200
    requests: int = 0
    url: str = ""
    server: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                exporter.requests += 1
                self.send_response(exporter.status)
                self.end_headers()
                self.wfile.write(exporter.page)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/metrics"

    def set(self, **metrics: float) -> None:
        """A page of one GPU, by DCGM's names without their prefix."""
        labels = 'gpu="0",UUID="GPU-1",modelName="H200",Hostname="n1"'
        lines = [f"DCGM_FI_{name}{{{labels}}} {value!r}\n" for name, value in metrics.items()]
        self.page = "".join(lines).encode()


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    one = Exporter()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.01,))
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


def source(exporter: Exporter, clock: ManualClock | None = None) -> DcgmSource:
    return DcgmSource(
        exporter.url, Site(name="s"), background=False, clock=clock or ManualClock(NOW)
    )


def row(reading: Reading, gpu: int = 0) -> dict[str, int]:
    return {name: v[gpu] for name, v in zip(COLUMNS, reading.fast, strict=True)}


def slow(reading: Reading, gpu: int = 0) -> dict[str, int]:
    return {name: v[gpu] for name, v in zip(SLOW_COLUMNS, reading.slow, strict=True)}


@pytest.mark.parametrize("dialect", ["dcgm48", "dcgm49"])
def test_both_dialects_say_the_same(exporter: Exporter, dialect: str) -> None:
    """The page of our own exporter, in either dialect, comes back in our units."""
    exporter.page = (GOLDEN / f"{dialect}.prom").read_bytes()
    with_page = source(exporter)
    found = with_page.read(NOW)
    values = row(found, 1)
    assert values["power_w"] == 1007
    assert values["util_gpu_pct"] == 87
    assert values["sm_active_pct"] == 905
    assert values["mem_used_mib"] == 1000
    assert values["clock_sm_mhz"] == 1980
    assert values["temp_gpu_c"] == 41
    assert slow(found)["energy_counter_j"] == NOW
    assert slow(found)["power_limit_w"] == 7000
    assert slow(found)["mem_total_mib"] == 143_771
    (inventory,) = with_page.inventory()
    assert (inventory.node, inventory.driver_version) == ("node-0", "580.1")
    assert [(g.index, g.uuid, g.model) for g in inventory.gpus] == [
        (0, "GPU-0-0", 'H200 "SXM"'), (1, "GPU-0-1", 'H200 "SXM"'),
    ]  # fmt: skip


def test_every_name_of_the_catalogue_in_both_dialects() -> None:
    """What is written as value / factor is read as value, whatever the dialect."""
    for metric in FAST + SLOW:
        if metric.kind == "delta":
            continue
        for dialect in (metric.dcgm, metric.dcgm49):
            if dialect is not None:
                sample = Sample(dialect.name, {"UUID": "G"}, 60 / dialect.factor, None)
                found = dcgm_page.read([sample]).devices["G"].values
                assert found == {metric.name: 60 * metric.scale}, dialect.name


def test_percent_under_the_name_of_a_ratio() -> None:
    """DCGM 4.6: one ratio above 1.5 tells that all of the page are percent, and later pages too."""

    def page(*values: float, percent: bool = False) -> list[int]:
        samples = [
            Sample("DCGM_FI_DEV_GPU_UTIL_RATIO", {"UUID": f"G{i}"}, value, None)
            for i, value in enumerate(values)
        ]
        read = dcgm_page.read(samples, percent)
        return [d.values["util_gpu_pct"] for d in read.devices.values()]

    assert page(0.5, 1.0) == [50, 100]
    assert page(50.0, 1.0) == [50, 1]
    assert page(1.0, percent=True) == [1]


@pytest.mark.parametrize(
    "blank",
    ["9223372036854775794", "9223372036854775792", "2147483632", "2147483635", "140737488355328",
     "140737488355330.0", "NaN", "+Inf", "-Inf", "1e300", "-1e300"],
)  # fmt: skip
def test_blanks_are_null(exporter: Exporter, blank: str) -> None:
    """DCGM's words for none, and what no column holds, never become a value."""
    exporter.page = (
        'DCGM_FI_DEV_MEMORY_TEMP{gpu="0",UUID="GPU-1"} ' + blank + "\n"
        'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-1"} ' + blank + "\n"
        'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-1"} ' + blank + "\n"
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1"} 40\n'
    ).encode()
    found = source(exporter).read(NOW)
    assert row(found)["temp_mem_c"] == NULL["temp_mem_c"]
    assert row(found)["power_w"] == NULL["power_w"]
    assert slow(found)["energy_counter_j"] == NULL["energy_counter_j"]
    assert row(found)["temp_gpu_c"] == 40


def test_the_readme_of_the_exporter(exporter: Exporter, captures: Path) -> None:
    """Its example page: two values and a blank."""
    text = (captures / "dcgm_fixtures/readme_metrics_example.txt").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("DCGM_FI_DEV_", "# "))]
    lines = [line for line in lines if line.startswith("#") or "{" in line]
    exporter.page = ("\n".join(lines) + "\n").encode()
    found = row(source(exporter).read(NOW))
    assert (found["clock_sm_mhz"], found["clock_mem_mhz"]) == (139, 405)
    assert found["temp_mem_c"] == NULL["temp_mem_c"]


def test_mig_instances_are_slices_and_power_counts_once(exporter: Exporter) -> None:
    """Device values repeat per instance; profiling and memory belong to the instance."""
    lines = []
    for gi, memory in ((1, 1000), (2, 2000)):
        labels = f'gpu="0",UUID="GPU-1",GPU_I_PROFILE="1g.10gb",GPU_I_ID="{gi}",Hostname="n1"'
        lines += [
            f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} 300.5\n",
            f"DCGM_FI_DEV_FB_USED{{{labels}}} {memory}\n",
            f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{labels}}} 0.{gi}\n",
        ]
    exporter.page = "".join(lines).encode()
    mig = source(exporter)
    found = mig.read(NOW)
    assert len(mig.inventory()[0].gpus) == 1
    assert row(found)["power_w"] == 3005
    assert row(found)["mem_used_mib"] == NULL["mem_used_mib"]
    assert found.instances == ((0, 1, 0), (0, 2, 0))
    names = [column.name for column in LAYOUT.slices]
    slices = {n: list(v) for n, v in zip(names, found.slices, strict=True)}  # type: ignore[call-overload]
    assert slices["mem_used_mib"] == [1000, 2000]
    assert slices["tensor_active_pct"] == [100, 200]
    generation = mig.generation
    exporter.page = "".join(lines[:3]).encode()
    assert mig.read(NOW + 1000).instances == ((0, 1, 0),)
    assert mig.generation == generation + 1


def test_a_shared_gpu_counts_once(exporter: Exporter) -> None:
    """Repeated per pod, with labels of any case."""
    exporter.page = b"".join(
        b'DCGM_FI_DEV_POWER_USAGE{gpu="3",uuid="GPU-1",hostname="n1",pod="p%d"} 300\n' % i
        for i in range(4)
    )
    shared = source(exporter)
    assert len(shared.read(NOW).fast[0]) == 1
    assert shared.inventory()[0].node == "n1"
    assert shared.inventory()[0].gpus[0].index == 3


def test_energy_of_an_exporter_as_fast_as_the_tick(exporter: Exporter) -> None:
    """From the second look on each row has its counter's growth."""
    live = source(exporter)
    found = []
    for i in range(5):
        exporter.set(DEV_TOTAL_ENERGY_CONSUMPTION=1e9 + i * 700_123, DEV_POWER_USAGE=700.0)
        found.append(row(live.read(NOW + i * 1000)))
    assert [r["energy_j"] for r in found] == [NULL["energy_j"]] * 2 + [700_123] * 3
    assert [r["flags"] for r in found] == [0] * 5
    assert found[-1]["energy_kind"] == ENERGY_COUNTER
    assert [r["dt_ms"] for r in found] == [1000] * 5


def test_energy_of_an_exporter_that_looks_every_thirty_seconds(exporter: Exporter) -> None:
    """Held in between; what the counter grew is paid out evenly, to the millijoule, no lump."""
    live = source(exporter)
    found = []
    for i in range(121):
        look = (i + 7) // 30
        exporter.set(
            DEV_TOTAL_ENERGY_CONSUMPTION=1e9 + look * 21_000_001, DEV_POWER_USAGE=700.0 + look
        )
        found.append(row(live.read(NOW + i * 1000)))
    energy = [r["energy_j"] for r in found]
    assert energy[:53] == [NULL["energy_j"]] * 53
    assert sum(energy[53:83]) == 21_000_001
    assert sum(energy[83:113]) == 21_000_001
    assert all(abs(one - 700_000) < 2 for one in energy[53:])
    held = [i for i, r in enumerate(found) if not r["flags"] & FLAG_HELD]
    assert held == [0, 23, 53, 83, 113]


def test_a_reset_and_a_restart(exporter: Exporter) -> None:
    """A counter that fell gives null and a new epoch; one that goes on after a silence too."""
    live = source(exporter)
    found = []
    epochs = set()
    for i, total in enumerate((10e6, 10.5e6, 11e6, 5.0, 0.5e6, 1e6)):
        exporter.set(DEV_TOTAL_ENERGY_CONSUMPTION=total)
        found.append(row(live.read(NOW + i * 1000))["energy_j"])
        epochs.add((live.generation, live.driver_epoch))
    null = NULL["energy_j"]
    assert found == [null, null, 500_000, null, 499_995, 500_000]
    assert len(epochs) == 2
    exporter.set(DEV_TOTAL_ENERGY_CONSUMPTION=200e6)
    late = row(live.read(NOW + 200_000))
    assert (late["energy_j"], late["dt_ms"]) == (null, 2000)


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_what_is_earned_is_paid_once(earned: list[tuple[int, int]], skip: int) -> None:
    """Σ paid = Σ earned without missed ticks; never more with them, and never negative."""
    account, tick = Account(), 0
    paid = total = 0
    for grown, seconds in earned:
        account.earn(grown, tick, seconds * 1000)
        total += grown
        for i in range(seconds):
            tick += 1000
            if skip and i % (skip + 1) == skip:
                continue
            share = account.pay(tick, 1000)
            assert share is not None
            assert share >= 0
            paid += share
    assert paid <= total
    assert skip or paid == total
    assert account.pay(tick + 1000, 1000) is None


def test_without_a_counter_energy_is_of_the_power(exporter: Exporter) -> None:
    """Trapezoid over held readings."""
    live = source(exporter)
    exporter.set(DEV_POWER_USAGE=100.0)
    live.read(NOW)
    exporter.set(DEV_POWER_USAGE=200.0)
    found = row(live.read(NOW + 1000))
    assert (found["energy_j"], found["energy_kind"]) == (150_000, ENERGY_TRAPEZOID)


def test_a_frozen_exporter_is_not_read_for_ever(exporter: Exporter) -> None:
    """A page that does not change for a minute makes no rows, until it changes."""
    live = source(exporter)
    exporter.set(DEV_POWER_USAGE=100.0)
    found = [row(live.read(NOW + i * 1000)) for i in range(63)]
    assert [r["dt_ms"] for r in found] == [1000] * 61 + [0] * 2
    exporter.set(DEV_POWER_USAGE=101.0)
    assert row(live.read(NOW + 63_000))["power_w"] == 1010


def test_a_gpu_that_left_the_page_is_still_expected(exporter: Exporter) -> None:
    """Fallen off the bus: no row, but in the inventory."""
    line = b'DCGM_FI_DEV_POWER_USAGE{gpu="%d",UUID="GPU-%d",Hostname="n"} 100\n'
    exporter.page = line % (0, 0) + line % (1, 1)
    live = source(exporter)
    live.read(NOW)
    generation = live.generation
    exporter.page = line % (1, 1)
    found = live.read(NOW + 1000)
    assert [found.fast[0][0], found.fast[0][1]] == [0, 1000]
    assert len(live.inventory()[0].gpus) == 2
    assert live.generation == generation


def test_an_xid_is_an_event_when_it_changes(exporter: Exporter) -> None:
    """An old one that sticks is not news, nor is the end of one."""
    live = source(exporter)
    for i, xid in enumerate((31, 31, 79, 79, 0, 13)):
        exporter.set(DEV_XID_ERRORS=xid, DEV_POWER_USAGE=100.0 + i)
        live.read(NOW + i * 1000)
    events = [e for e in live.records() if isinstance(e, Event)]
    assert [(e.kind, e.code, e.uuid, e.node, e.ts_ms) for e in events] == [
        ("xid", 79, "GPU-1", "n1", NOW + 2000), ("xid", 13, "GPU-1", "n1", NOW + 5000),
    ]  # fmt: skip
    assert live.records() == []


def test_a_dead_exporter_is_unavailable(exporter: Exporter) -> None:
    """At first at once; later after three scrapes without an answer; then it comes back."""
    clock = ManualClock(NOW)
    live = source(exporter, clock)
    exporter.status = 500
    with pytest.raises(Unavailable, match="answers 500"):
        live.read(NOW)
    assert live.inventory() == ()
    exporter.status = 200
    exporter.set(DEV_POWER_USAGE=100.0)
    live.read(NOW)
    exporter.status = 503
    for i in range(1, 4):
        clock.advance(1)
        assert row(live.read(NOW + i * 1000))["flags"] == FLAG_HELD
    clock.advance(1)
    with pytest.raises(Unavailable, match="answers 503"):
        live.read(NOW + 4000)
    assert live.scrapes_failed == 5
    exporter.status = 200
    assert row(live.read(NOW + 5000))["dt_ms"] == 2000
    live.close()
    with pytest.raises(Unavailable):
        live.read(NOW + 6000)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"", "no GPU"),
        (b"<html>not found</html>\n", "line 1"),
        (b'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-1"} 100', "cut off"),
        (b"DCGM_FI_DEV_POWER_USAGE 100\n", "no GPU"),
        (b'DCGM_FI_DEV_POWER_USAGE{UUID="\xff"} 100\n', "not UTF-8"),
        (b'DCGM_FI_DEV_POWER_USAGE{UUID="a\\nb"} 100\n', "no GPU"),
        (b"#" * (17 << 20), "larger than 16 MiB"),
    ],
    ids=["empty", "html", "cut off", "no uuid", "bytes", "newline in uuid", "huge"],
)
def test_hostile_pages_are_unavailable(exporter: Exporter, page: bytes, words: str) -> None:
    """Said in the reason, nothing else happens."""
    exporter.page = page
    with pytest.raises(Unavailable, match=words):
        source(exporter).read(NOW)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://h/x", "localhost:9400", "http://"]
)
def test_only_web_addresses(url: str) -> None:
    """Nothing else is ever opened."""
    with pytest.raises(Refuse, match="no http:// or https:// address"):
        DcgmSource(url, Site())


def test_nobody_listens(exporter: Exporter) -> None:
    """A refused connection is a reason, not a crash."""
    gone = DcgmSource("http://127.0.0.1:9/metrics", Site(), background=False, timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        gone.read(NOW)


def test_a_thread_scrapes_beside_the_tick(exporter: Exporter) -> None:
    """The first tick has a page; afterwards a tick asks nobody, and close ends the thread."""
    exporter.set(DEV_POWER_USAGE=100.0)
    clock = SystemClock()
    live = DcgmSource(exporter.url, Site(), scrape_ms=20, clock=clock)
    live.read(NOW)
    seen = threading.Event()
    exporter.set(DEV_POWER_USAGE=200.0)
    for i in range(1, 200):
        clock.wait(seen, 0.02)
        if row(live.read(NOW + i))["power_w"] == 2000:
            break
    else:
        pytest.fail("the new page was never seen")
    live.close()
    live.close()
    asked = exporter.requests
    clock.wait(seen, 0.1)
    assert exporter.requests == asked
    assert not [t for t in threading.enumerate() if t.name == "dcgm-scrape"]


@example([(name, {"UUID": "u", "gpu": "0"}, 1.79e308) for name in dcgm_page.NAMES])
@given(st.lists(st.tuples(
    st.sampled_from([*dcgm_page.NAMES, *dcgm_page.XID_NAMES, "other"]),
    st.dictionaries(st.sampled_from(["UUID", "gpu", "GPU_I_ID", "Hostname", "modelName"]),
                    st.text(max_size=3) | st.sampled_from(["0", "1", "GPU-1", "256"])),
    st.floats(),
)))  # fmt: skip
def test_any_samples_make_a_page_that_fits(
    samples: list[tuple[str, dict[str, str], float]],
) -> None:
    """Whatever an exporter says, every value fits its column and none is a null code."""
    try:
        page = dcgm_page.read([Sample(*sample, None) for sample in samples])
    except Reject:
        return
    for device in page.devices.values():
        for name, value in device.values.items():
            assert value != NULL[name]
        assert all(value >= 0 for value in device.counters.values())
        assert all(0 <= gi < 256 for gi in device.instances)
