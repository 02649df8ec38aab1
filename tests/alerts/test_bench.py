"""`megawatch bench alerts` in the small: what is asked, what is counted, and a site that is not well."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from agents.faults import Fault
from alerts import bench
from alerts.bench import Plan, caps_w
from alerts.rule import by_signal
from alerts.rules import RULES
from pipeline.bench.simulated import Simulated
from pipeline.bench.site import Extent

TINY = Plan(rounds=1, nodes=4, hours=0.1, every_s=15)


def tiny() -> Extent:
    return Extent(gpus=320, now_s=int(time.time()) // 60 * 60, samples_s=20, gpu_minutes=5,
                  seconds_days=0.002, minutes_days=1)  # fmt: skip


def test_every_feed_of_the_large_site_has_a_cap() -> None:
    caps = caps_w(tiny())
    assert {key.split()[0] for key in caps} == {"site", "hall", "rack", "pdu"}
    assert sum(key.startswith("rack ") for key in caps) == 10


@pytest.mark.slow
def test_every_signal_is_asked_and_the_sum_is_that_of_its_parts(tmp_path: Path) -> None:
    found = bench.cost(tmp_path / "d", tiny(), 1, {})
    by = cast("dict[str, float]", found["cpu_s_by_signal"])
    assert set(by) == set(by_signal(RULES))
    every_s = cast("dict[str, int]", found["every_s"])
    watch = cast("dict[str, float]", found["watch_cpu_s"])
    asked = {name: rules[0].signal.every_s for name, rules in by_signal(RULES).items()}  # type: ignore[union-attr]
    per_s = sum(by[name] / every_s[name] for name in by)
    per_s += sum(cpu / asked[name] for name, cpu in watch.items())
    assert set(watch) == {"places"}
    assert found["core_pct"] == pytest.approx(100 * per_s, abs=0.1)
    assert per_s > 0


@pytest.mark.slow
def test_a_site_that_loses_a_gpu_is_not_quiet(tmp_path: Path) -> None:
    @contextmanager
    def ill() -> Iterator[Simulated]:
        with Simulated(tmp_path / "d", TINY.nodes) as site:
            site.source.inject(Fault("gpu_lost", 3))
            yield site

    found = bench.quiet(ill(), TINY)
    assert "GpuLost" in cast("dict[str, int]", found["tickets"])
    assert found["rule_errors"] == 0
