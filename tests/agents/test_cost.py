"""What the agent says that it costs."""

import os
import subprocess
import sys
from pathlib import Path

from agents.cost import Cost, measure


def test_own_time_and_memory_are_plausible() -> None:
    """Processor time grows with work, memory is some megabytes."""
    before = measure()
    assert sum(i * i for i in range(2_000_000)) > 0
    after = measure()
    assert after.cpu_s > before.cpu_s
    assert after.pss_bytes is not None
    assert 5 << 20 < after.pss_bytes < 4 << 30


def test_living_children_count() -> None:
    """A child with 64 MiB makes the family so much heavier."""
    before = measure().pss_bytes
    script = "import sys; kept = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = measure().pss_bytes
    assert before is not None
    assert during is not None
    assert during - before > 60 << 20


def test_a_process_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    """Nothing raises where /proc does not answer."""
    assert measure(1, tmp_path) == Cost(0.0, None)


def test_names_with_spaces_and_parentheses_are_read_over(tmp_path: Path) -> None:
    """The kernel does not quote the name of a process in its statistics."""
    folder = tmp_path / "7"
    folder.mkdir()
    ticks = os.sysconf("SC_CLK_TCK")
    rest = " ".join(["S", *["0"] * 10, str(ticks), str(2 * ticks), str(3 * ticks), str(4 * ticks)])
    (folder / "stat").write_text(f"7 (a) b) {rest} 0 0\n")
    (folder / "smaps_rollup").write_text("x\nRss: 9 kB\nPss:    12 kB\nPss_Dirty: 1 kB\n")
    assert measure(7, tmp_path) == Cost(10.0, 12 * 1024)
