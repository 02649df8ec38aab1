"""The page Workload: known rows in, known figures on its panels."""

import pytest

from dashboards import macros
from dashboards.pages import workload as page
from pipeline.records import id64
from tests.dashboards.test_pages_site import ID, JOB, SITE, T0, inventory


@pytest.fixture
def steady(store):
    """A job on two GPUs at 500 W for a minute, one tick of which was missed, one two ticks."""
    inventory(store, [1, 2])
    store.insert("allocations", {
        "site": [SITE], "site_id": [ID], "tenant": ["red"], "tenant_id": [id64("", "red")],
        "workload": ["job-1"], "workload_id": [JOB], "node": ["n1"], "node_id": [7], "gpus": [[]],
        "source": ["slurm"], "from_ts": [T0 * 1000], "until_ts": [(T0 + 60) * 1000],
        "asserted_at": [1],
    })  # fmt: skip
    ticks = [(s, 1000) for s in range(60) if s not in (19, 20, 38, 39, 40)]
    ticks += [(20, 2000), (40, 3000)]
    rows = [(gpu, (T0 + s) * 1000, ID, dt, 5000, dt // 2) for s, dt in ticks for gpu in (1, 2)]
    names = ("gpu", "ts", "site", "dt_ms", "power_w", "energy_j")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["energy_j"] = [mj * 1000 for mj in columns["energy_j"]]
    store.insert("gpu_samples", columns)
    return store


def ask(store, panel):
    span = macros.Span((T0 - 10) * 1000, (T0 + 70) * 1000, 1)
    query = macros.expand(panel.sql, span, {"site": str(ID), "workload": str(JOB)})
    return store.query(query.sql, query.parameters).dicts()


def test_a_missed_tick_is_neither_a_peak_nor_a_hole(steady):
    """The row after it stands for its seconds too."""
    assert {row["watts"] for row in ask(steady, page.POWER)} == {1000.0}
    assert len(ask(steady, page.POWER)) == 60
    assert {row["coverage_pct"] for row in ask(steady, page.COVERAGE)} == {100.0}
    assert [row["coverage_pct"] for row in ask(steady, page.COVERED)] == [100.0]


def test_energy_is_that_of_the_rows(steady):
    """Whatever seconds they are cut into."""
    (row,) = ask(steady, page.ENERGY)
    assert row["energy_wh"] == pytest.approx(60_000 / 3600)
