"""A whole day of a healthy site, day curves, jobs and their gaps included: nobody is told anything."""

import contextlib
from pathlib import Path
from typing import Final

import pytest

from alerts.bench import SAMPLES_MS, Plan, quiet
from pipeline.bench.simulated import Simulated

DAY: Final = Plan(rounds=0, nodes=4, hours=24, every_s=900)


@pytest.mark.slow
def test_a_healthy_day_pages_nobody(tmp_path: Path) -> None:
    with Simulated(
        tmp_path / "d", DAY.nodes, period_ms=SAMPLES_MS, flush_ms=SAMPLES_MS, seed=3
    ) as site:
        found = quiet(contextlib.nullcontext(site), DAY)
        jobs = site.store.query("SELECT uniqExact(workload) FROM allocations").rows[0][0]
        spread = site.store.query(
            "SELECT max(w) / min(w) FROM (SELECT sum(power_w_ms) AS w FROM tenant_minutes"
            " WHERE ts < (SELECT max(ts) FROM tenant_minutes) GROUP BY toStartOfHour(ts))"
        ).rows[0][0]
    assert found["pages"] == {}, found["examples"]
    assert found["tickets"] == {}, found["examples"]
    assert found["rule_errors"] == 0
    # What was quiet was a day with work in it, not an empty hall.
    assert jobs > 10
    assert spread > 1.05
