"""The page Workload: known rows in, known figures on its panels."""

import pytest

from dashboards import macros
from dashboards.pages import workload as page
from dashboards.pages.stragglers import STRAGGLERS
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


@pytest.fixture
def late(store):
    """A job on two GPUs at 500 W; the second joined it after 20 s, and was away for 10 s again."""
    inventory(store, [1, 2])
    spans = [([1], 0, 60), ([2], 20, 40), ([2], 50, 60)]
    count = len(spans)
    store.insert("allocations", {
        "site": [SITE] * count, "site_id": [ID] * count, "tenant": ["red"] * count,
        "tenant_id": [id64("", "red")] * count, "workload": ["job-1"] * count,
        "workload_id": [JOB] * count, "node": ["n1"] * count, "node_id": [7] * count,
        "gpus": [gpus for gpus, _, _ in spans], "source": ["slurm"] * count,
        "from_ts": [(T0 + since) * 1000 for _, since, _ in spans],
        "until_ts": [(T0 + until) * 1000 for _, _, until in spans], "asserted_at": [1] * count,
    })  # fmt: skip
    rows = [(gpu, (T0 + s) * 1000, ID, 1000, 5000, 500_000) for s in range(60) for gpu in (1, 2)]
    names = ("gpu", "ts", "site", "dt_ms", "power_w", "energy_j")
    store.insert("gpu_samples", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return store


def test_a_gpu_counts_while_it_was_the_jobs(late):
    """Second by second, whether it was the job's throughout or came and went."""
    watts = [row["watts"] for row in ask(late, page.POWER)]
    assert watts == [500.0] * 20 + [1000.0] * 20 + [500.0] * 10 + [1000.0] * 10
    assert {row["coverage_pct"] for row in ask(late, page.COVERAGE)} == {100.0}
    (row,) = ask(late, page.ENERGY)
    assert row["energy_wh"] == pytest.approx(500 * 90 / 3600)
    assert {row["watts"] for row in ask(late, page.RHYTHM)} == {500.0}
    worst = ask(late, STRAGGLERS)
    assert sorted((r["node"], r["gpu_index"], r["seconds"]) for r in worst) == [
        ("n1", 1, 60), ("n1", 2, 30),
    ]  # fmt: skip


def test_a_minute_that_was_filled_again_counts_once(steady):
    """Long steps read the minutes, of each its newest version, and only those wholly the job's."""
    for version, gpus, joules in ((1, 2, 1000), (3, 1, 30_000), (2, 1, 7)):
        steady.command(
            "INSERT INTO gpu_minutes (gpu, ts, site, version, rows, dt_ms, energy_j, power_w_ms,"
            f" power_w_dt_ms) SELECT 1 + number % 2, {T0 - 60} + intDiv(number, 2) * 60, {ID}, {version}, 60,"
            f" 60000, {joules}, 60 * {joules}, 60000 FROM numbers(6) WHERE number % 2 < {gpus}"
        )
    span = macros.Span((T0 - 120) * 1000, (T0 + 180) * 1000, 60)

    def asked(panel):
        query = macros.expand(panel.sql, span, {"site": str(ID), "workload": str(JOB)})
        return steady.query(query.sql, query.parameters).dicts()

    assert [row["energy_wh"] for row in asked(page.ENERGY)] == [pytest.approx(31_000 / 3600)]
    assert [row["watts"] for row in asked(page.POWER)] == [pytest.approx(31.0)]
    assert [row["coverage_pct"] for row in asked(page.COVERAGE)] == [100.0]
    (row,) = asked(page.SPREAD)
    assert (row["least"], row["most"]) == (pytest.approx(1.0), pytest.approx(30.0))
