"""The agent's benchmark: its arithmetic, and one short run of the whole."""

import math
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.bench import agent as bench
from pipeline.clock import SystemClock

PAGE = """\
# HELP megawatch_agent_ticks_total Ticks that were read
# TYPE megawatch_agent_ticks_total counter
megawatch_agent_ticks_total 12.0
megawatch_agent_shipped_total{lane="live"} 3.0
megawatch_agent_shipped_total{lane="records"} 4.0
megawatch_agent_spool_bytes 1.5e+06
"""


def test_a_page_is_read_with_its_labels_added_up():
    assert bench.parse(PAGE) == {
        "megawatch_agent_ticks_total": 12.0,
        "megawatch_agent_shipped_total": 7.0,
        "megawatch_agent_spool_bytes": 1.5e6,
    }


def test_the_difference_of_two_pages_is_a_tick():
    """A second without a tick says nothing, one with two says their mean."""
    pages = [{"t_count": n, "t_sum": s} for n, s in ((5, 1.0), (6, 1.25), (6, 1.25), (8, 2.25))]
    assert bench.per_tick(pages, "t") == [0.25, 0.5]
    assert bench.per_tick(pages[:1], "t") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [(range(1, 101), 99), (range(1, 1001), 990), ([7], 7), ([3, 1, 2], 3)],
)
def test_p99_is_not_exceeded_by_99_percent(values, expected):
    assert bench.p99(list(values)) == expected


def test_p99_of_nothing_is_no_number():
    assert math.isnan(bench.p99([]))


def test_spooled_is_what_left_the_spool_and_what_stayed():
    first = {"megawatch_agent_shipped_bytes_total": 100.0, "megawatch_agent_spool_bytes": 50.0}
    last = {"megawatch_agent_shipped_bytes_total": 400.0, "megawatch_agent_spool_bytes": 20.0}
    assert bench.spooled_bytes(first, last) == 270.0
    assert bench.spooled_bytes({}, {"megawatch_agent_spool_bytes": 7.0}) == 7.0


def test_usage_of_a_process_grows_with_its_work():
    """To less than a hundredth of a second, unlike /proc/PID/stat."""
    before = bench.usage(os.getpid(), SystemClock())
    begun_s = time.process_time()
    while time.process_time() - begun_s < 0.02:
        pass
    after = bench.usage(os.getpid(), SystemClock())
    assert 0.02 <= after.parent_cpu_s - before.parent_cpu_s < 2
    assert after.parent_pss_bytes > 5 << 20


def test_a_short_run_says_what_an_agent_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a broker, which it says; no process is left behind."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, which the fake NVML needs")
    monkeypatch.setattr(bench, "WARM_UP_S", 1)
    # Longer than a flush, whose second within 4 depends on the name of the machine.
    found = bench.bench(tmp_path, 5, with_broker=False)
    assert found["broker"] is False
    assert 4 <= int(str(found["ticks"])) <= 7
    for name in ("cpu_pct_of_core", "cpu_pct_parent", "cpu_pct_child", "tick_ms_p99"):
        assert 0 < float(str(found[name])) < 100
    parts = float(str(found["pss_mib_parent"])) + float(str(found["pss_mib_child"]))
    assert 10 < parts < 300
    assert abs(parts - float(str(found["pss_mib"]))) <= 0.2
    assert int(str(found["spooled_bytes_per_day"])) > 0
    assert not processes_with(str(tmp_path))


def processes_with(text: str) -> list[str]:
    """Ids of living processes whose environment names a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in environment:
            found.append(process.name)
    return found
