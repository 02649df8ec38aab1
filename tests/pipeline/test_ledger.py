"""Quarters closed from a store: who used what, again when something changes, never with less."""

import csv
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline import arguments, commands
from pipeline.clock import ManualClock
from pipeline.ledger import claims, usage
from pipeline.ledger import close as closing
from pipeline.ledger.cells import QUARTER_MS
from pipeline.ledger.check import check
from pipeline.ledger.keeper import Keeper
from pipeline.records import id64
from pipeline.settings import Settings, Site
from pipeline.store import Store

SITE = "s"
T0 = 1_790_000_100_000 // QUARTER_MS * QUARTER_MS
LATER = T0 + 10 * QUARTER_MS
WORDS = ("slurm", "import")


@dataclass
class Desk:
    """A store, worked on as a person does: by commands, at a time that only we move."""

    store: Store
    folder: Path
    clock: ManualClock

    def run(self, *argv):
        """A command's status and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        settings = Settings(site=Site(name=SITE))
        context = commands.Context(self.store, settings, self.clock, self.folder, out, err)
        args = arguments.parser().parse_args([*argv, "--store", "x"])
        with redirect_stderr(err):
            name = "import_" if args.command == "import" else args.command
            code = getattr(commands, name)(args, context)
        return code, out.getvalue(), err.getvalue()

    def give(self, what, header, *lines):
        """Import rows of a table."""
        path = self.folder / f"{what}.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        code, _, err = self.run("import", what, str(path))
        assert code == 0, err

    def samples(self, seconds, watts=500.0, gpus=(0,), node="n1", util=90):
        """A row a second of these GPUs, from T0 on."""
        lines = [
            f"{T0 + s * 1000},{node},{g},{watts},{util}" for s in seconds for g in gpus
        ]  # fmt: skip
        self.give("samples", "ts,node,gpu,power_w,util_gpu_pct", *lines)

    def job(self, tenant, workload, since, until, node="n1", gpus="", source="import", share=""):
        """An allocation over seconds from T0 on."""
        line = f"{tenant},{workload},{node},{gpus},{T0 + since * 1000},{T0 + until * 1000},{source},{share}"
        self.give("allocations", "tenant,workload,node,gpus,from,until,source,share", line.replace(
            ",0-1,", ',"0-1",'))  # fmt: skip

    def close(self):
        """Everything there is."""
        until = closing.span(self.store, SITE)
        quarters = closing.open_quarters(self.store, SITE, *until)
        self.clock.advance(1)
        return closing.close(self.store, SITE, WORDS, quarters, self.clock.now_ms())

    def ledger(self):
        """Energy in J by tenant and workload, over all closed quarters."""
        found = self.store.query(
            "SELECT tenant, workload, sum(energy_j), sum(allocated_ms) / 1000 FROM ledger"
            " GROUP BY tenant, workload"
        ).rows
        return {(t, w): (float(e), float(s)) for t, w, e, s in found}

    def statement(self, **asked):
        """The statement over everything."""
        import zoneinfo

        period = closing.span(self.store, SITE)
        return usage.statement(self.store, SITE, zoneinfo.ZoneInfo("UTC"), period, **asked)


@pytest.fixture
def desk(store, tmp_path):
    return Desk(store, tmp_path, ManualClock(LATER))


def who(tenant, workload=""):
    return id64("", tenant), id64(SITE, workload) if workload else 0


def test_a_quarter_is_whose_it_was(desk):
    """Energy, time and the rest, and what nobody held; all sums agree."""
    desk.samples(range(900))
    desk.job("lab-a", "w1", 60, 360)
    assert [o.state for o in desk.close()] == ["closed"]
    found = desk.ledger()
    # Between the readings at 60 and 359 s there are 299 s; that before 60 s is nobody's.
    assert found[who("lab-a", "w1")] == (299 * 500.0, 300.0)
    assert found[0, 0][0] == (899 - 299) * 500.0
    assert check(desk.store, SITE, T0, LATER).broken == []


def test_closing_again_changes_nothing(desk):
    """What is closed as things stand is not open."""
    desk.samples(range(1000))
    desk.job("lab-a", "w1", 60, 930)
    desk.close()
    before = desk.ledger()
    assert desk.close() == []
    assert (
        closing.close(desk.store, SITE, WORDS, [T0], desk.clock.now_ms() + 5)[0].state == "closed"
    )
    assert desk.ledger() == before


def test_a_late_allocation_reopens_what_it_touches_and_nothing_else(desk):
    """And the statement says what changed, to the tenant that it concerns alone."""
    desk.samples(range(2700))
    desk.job("lab-b", "w9", 0, 100)
    desk.close()
    desk.job("lab-a", "w1", 1000, 1100)
    assert [o.quarter_ms for o in desk.close()] == [T0 + QUARTER_MS]
    assert who("lab-a", "w1") in desk.ledger()
    by_name = {u.tenant: u for u in desk.statement().tenants}
    assert by_name["lab-b"].corrections == []
    assert check(desk.store, SITE, T0, LATER).broken == []


def test_a_correction_is_said_with_its_size(desk):
    """A job that ended earlier than it was said to."""
    desk.samples(range(900))
    desk.job("lab-a", "w1", 0, 800)
    desk.close()
    desk.clock.advance(5)
    desk.job("lab-a", "w1", 0, 400)
    desk.close()
    assert desk.ledger()[who("lab-a", "w1")] == (399 * 500.0, 400.0)
    (sentence,) = desk.statement(tenant="lab-a").tenants[0].corrections
    assert "-0.055556 kWh, -0.1111 GPU-hours" in sentence


def test_an_end_that_is_told_later_reopens_nothing_before_it(desk):
    """A job's quarters stay closed when it ends at last."""
    desk.samples(range(1800))
    desk.give("allocations", "tenant,workload,node,from", f"lab-a,w1,n1,{T0}")
    desk.close()
    desk.clock.advance(5)
    desk.give("allocations", "tenant,workload,node,from,until", f"lab-a,w1,n1,{T0},{T0 + 1700_000}")
    assert [o.quarter_ms for o in desk.close()] == [T0 + QUARTER_MS]


def test_less_coverage_is_refused(desk):
    """The version before it stands, and the status says why."""
    desk.samples(range(900))
    desk.job("lab-a", "w1", 0, 800)
    desk.close()
    before = desk.ledger()
    desk.store.command(
        "INSERT INTO gpu_minutes (gpu, ts, site, version, rows, dt_ms, energy_j)"
        f" SELECT gpu, ts, site, version + 1, 1, 1000, 1 FROM gpu_minutes WHERE"
        f" ts = toDateTime({T0 // 1000 + 840}, 'UTC')"
    )
    (outcome,) = desk.close()
    assert outcome.state == "refused"
    assert "1 GPUs would have 59 s less measured" in outcome.reason
    assert desk.ledger() == before
    code, out, _ = desk.run("ledger", "status")
    assert code == 0
    assert "refused" in out


def test_a_broken_law_closes_nothing(desk, monkeypatch):
    """A quarter whose sums do not agree is not closed, and says which GPU."""
    from pipeline.ledger import cells

    desk.samples(range(900))
    whole = cells.Sums.give

    def lossy(self, spans):
        spans = spans.copy()
        spans["energy_mj"] += 1
        return whole(self, spans)

    monkeypatch.setattr(cells.Sums, "give", lossy)
    (outcome,) = desk.close()
    assert outcome.state == "failed"
    assert "+1 mJ" in outcome.reason
    assert desk.ledger() == {}


def test_sources_that_disagree(desk):
    """The first in the precedence is believed, where it says anything at all."""
    desk.samples(range(900))
    desk.job("lab-a", "w1", 0, 900, source="import")
    desk.job("lab-b", "w2", 300, 600, source="slurm")
    desk.close()
    found = desk.ledger()
    assert found[who("lab-b", "w2")] == (299 * 500.0, 300.0)
    assert found[who("lab-a", "w1")][1] == 600.0


def test_holders_at_once_share(desk):
    """By stated shares; the rest is nobody's; everything adds up; what is shared is estimated."""
    desk.samples(range(900), watts=333.3)
    desk.job("lab-a", "w1", 0, 900, share="0.25")
    desk.job("lab-b", "w2", 0, 900, share="0.125")
    desk.close()
    found = desk.ledger()
    total = sum(energy for energy, _ in found.values())
    assert total == pytest.approx(899 * 333.3, abs=1e-6)
    assert found[who("lab-a", "w1")][0] == pytest.approx(total / 4, abs=0.001)
    assert found[0, 0][0] == pytest.approx(total * 0.625, abs=0.002)
    use = {u.tenant: u for u in desk.statement().tenants}["lab-a"]
    assert use.estimated_share == 1.0


def test_sources_that_contradict_each_other_are_shown_side_by_side(desk):
    """The first of the precedence is believed; who only leaves something out contradicts nobody."""
    desk.samples(range(900), gpus=(0, 1))
    desk.job("lab-a", "w1", 0, 900, gpus="0-1", source="slurm")
    desk.job("lab-b", "w2", 0, 360, gpus="0-1", source="kubernetes")
    desk.job("lab-a", "", 360, 900, gpus="0", source="kubernetes")
    desk.close()
    assert set(desk.ledger()) == {who("lab-a", "w1")}
    _, _, said = desk.run("ledger", "status")
    assert (
        "slurm and kubernetes contradict each other about 2 GPUs for 0.20 GPU-hours: "
        "slurm is believed"
    ) in said
    assert said.count("contradict") == 1


def test_a_lease_outranks_the_scheduler(desk):
    """The tenant is the lessee; what runs stays what runs."""
    from pipeline.ledger import contract_store, contracts

    desk.samples(range(900), gpus=(0, 1))
    desk.job("someones-account", "w1", 0, 900, gpus="0")
    text = f"""
[[contract]]
tenant = "lab-a"
select = [{{node = "n1"}}]
from = {np.datetime64(T0 - 86_400_000, "ms")}Z
timezone = "UTC"
contracted_gpus = 2
contracted_kw = 2
price_per_gpu_hour = "2.00"
price_per_kwh = "0.10"
currency = "EUR"
availability_pct = 99
"""
    contract_store.write(desk.store, contracts.parse(text, "c.toml", SITE, LATER))
    desk.close()
    found = desk.ledger()
    assert set(found) == {who("lab-a", "w1"), who("lab-a")} | ({(0, 0)} & set(found))
    (use,) = desk.statement(tenant="lab-a").tenants
    assert use.terms.contracted_gpus == 2
    assert use.cost_gpu_hours == 1.0
    assert use.cost == pytest.approx(use.cost_gpu_hours + use.cost_energy)
    assert use.availability_pct == pytest.approx(100, abs=0.3)
    dearer = text.replace("2.00", "9.00").replace("[[contract]]", "[[contract]]\nuntil = FROM")
    begins = f"{np.datetime64(T0 + 60_000, 'ms')}Z"
    withdrawn = dearer.replace(f"{np.datetime64(T0 - 86_400_000, 'ms')}Z", begins)
    withdrawn = withdrawn.replace("FROM", begins)
    contract_store.write(desk.store, contracts.parse(withdrawn, "c.toml", SITE, LATER + 1))
    assert desk.statement(tenant="lab-a").tenants[0].cost_gpu_hours == 1.0


def test_node_meters_go_to_the_holders_of_the_node(desk):
    """Without a GPU in sight: by the readings inside, negatives passed over, the rest nobody's."""
    readings = [f"{T0 + s * 1000},n7,node,{-5 if s == 100 else 1000}" for s in range(0, 900, 2)]
    desk.give("meters", "ts,meter,kind,watts", *readings)
    desk.job("lab-a", "w1", 60, 660, node="n7")
    desk.close()
    (use,) = desk.statement(tenant="lab-a", by_workload=True).tenants
    assert use.workload == "w1"
    assert use.node_energy_kwh == pytest.approx(598 / 3600, abs=1e-9)
    assert use.gpu_energy_kwh is None
    total = desk.statement().total
    assert total.node_energy_kwh == pytest.approx(898 / 3600, abs=1e-9)
    _, _, said = desk.run("ledger", "status")
    assert "node meter n7: 1 negative readings were passed over" in said


def test_jobs_that_share_a_metered_node_by_their_gpus(desk):
    """The node's GPUs are as many as anybody ever claimed; those that nobody claims are nobody's."""
    desk.give(
        "meters", "ts,meter,kind,watts", *(f"{T0 + s * 1000},n7,node,800" for s in range(900))
    )
    desk.job("lab-a", "w1", 0, 900, node="n7", gpus="0-1")
    desk.give("allocations", "tenant,workload,node,gpus,from,until",
              f"lab-b,w2,n7,7,{T0},{T0 + 900_000}")  # fmt: skip
    desk.close()
    found = desk.statement()
    by_name = {u.tenant: u.node_energy_kwh for u in found.tenants}
    whole = 899 * 800 / 3.6e6
    assert by_name["lab-a"] == pytest.approx(whole * 2 / 8, abs=1e-8)
    assert by_name["lab-b"] == pytest.approx(whole / 8, abs=1e-8)
    assert found.unallocated.node_energy_kwh == pytest.approx(whole * 5 / 8, abs=1e-8)


def test_a_meter_of_the_site_gives_overhead(desk):
    """In proportion to the energy of the GPUs."""
    desk.samples(range(900), gpus=(0, 1))
    desk.job("lab-a", "w1", 0, 900, gpus="0")
    desk.give(
        "meters", "ts,meter,kind,watts",
        *[f"{T0 + s * 1000},main,site,1500" for s in range(0, 901, 60)],
    )  # fmt: skip
    desk.close()
    use = {u.tenant: u for u in desk.statement().tenants}["lab-a"]
    assert use.site_energy_from == "metered"
    assert use.site_energy_kwh == pytest.approx(1500 * 900 / 3.6e6 / 2, rel=0.001)


def test_a_statement_says_nothing_about_others(desk):
    """Not a name, not a sum, not a note."""
    desk.samples(range(900), gpus=(0, 1))
    desk.job("lab-a", "w1", 0, 900, gpus="0")
    desk.job("rival", "secret-run", 0, 900, gpus="1")
    desk.close()
    found = desk.statement(tenant="lab-a")
    assert found.unallocated is None
    assert found.total is None
    import msgspec

    text = msgspec.json.encode(found)
    assert b"rival" not in text
    assert b"secret-run" not in text


def test_what_is_open_is_provisional(desk):
    """It is left out, counted and named."""
    desk.samples(range(900))
    desk.job("lab-a", "w1", 0, 900)
    desk.clock.advance(600)  # what was filled within the last minute is filled again
    desk.samples(range(900, 901))
    desk.close()
    desk.clock.advance(600)
    desk.samples(range(901, 1000))
    found = desk.statement(tenant="lab-a")
    assert found.tenants[0].provisional_hours == 0.25
    assert "1 quarters of an hour" in found.notes[0]


def test_a_gap_is_bridged_from_the_counters(desk):
    """Measured and bridged apart; together what the counter says."""
    lines = [
        f"{T0 + s * 1000},n1,0,500,{1_000_000 + s * 500}"
        for s in range(900) if not 300 < s < 420
    ]  # fmt: skip
    desk.give("samples", "ts,node,gpu,power_w,energy_counter_j", *lines)
    desk.close()
    use = desk.statement().total
    assert use.bridged_energy_kwh == pytest.approx(120 * 500 / 3.6e6, rel=0.01)
    assert use.gpu_energy_kwh == pytest.approx(899 * 500 / 3.6e6, rel=1e-6)


def test_the_keeper_closes_behind_the_watermark(desk):
    """And looks again only at what may have changed."""
    desk.samples(range(1200))
    desk.job("lab-a", "w1", 0, 900)
    keeper = Keeper(desk.store, Settings(site=Site(name=SITE)))
    keeper.step(desk.clock.now_ms())
    assert (keeper.closed, keeper.not_closed) == (2, 0)
    keeper.step(desk.clock.now_ms() + 60_000)
    assert keeper.closed == 2


def test_pieces_are_worked_out_once(desk):
    """Thousands of GPUs in the same hands share one answer."""
    desk.samples(range(10), gpus=range(8))
    desk.job("lab-a", "w1", 0, 900)
    site = claims.load(desk.store, SITE, WORDS, T0, T0 + QUARTER_MS)
    made = [site.pieces(g, T0, T0 + QUARTER_MS) for g in site.stays]
    assert len(made) == 8
    assert all(m is made[0] for m in made)


def test_nanogpt_by_job(desk, captures):
    """A real log with jobs: each job's energy is the trapezoid over the readings inside it."""
    folder = captures / "nanogpt_8gpu_nvsmi"
    names = {"ts": "timestamp", "gpu": "gpu_index", "power_w": "power_W",
             "temp_gpu_c": "temperature_C", "util_gpu_pct": "utilization_gpu_percent"}  # fmt: skip
    maps = [part for ours, theirs in names.items() for part in ("--map", f"{ours}={theirs}")]
    files = sorted(str(p) for p in folder.glob("raw/*.csv"))
    assert desk.run("import", "samples", *files, *maps, "--set", "node=g")[0] == 0
    assert desk.run("import", "allocations", str(folder / "jobs_synthetic.csv"), "--map",
                    "workload=job_id", "--map", "from=start", "--map", "until=end", "--set",
                    "node=g", "--ignore-extra")[0] == 0  # fmt: skip
    desk.close()
    found = desk.statement(by_workload=True)
    by_job = {u.workload: u for u in found.tenants}
    readings = _readings(files)
    with (folder / "jobs_synthetic.csv").open() as file:
        jobs = list(csv.DictReader(file))
    assert len(by_job) == len(jobs) == 8
    for job in jobs:
        low, _, high = job["gpus"].partition("-")
        begin, end = (np.datetime64(job[k].rstrip("Z"), "ms") for k in ("start", "end"))
        want = sum(
            _inside(readings[gpu], begin, end) for gpu in range(int(low), int(high) + 1)
        )  # fmt: skip
        assert by_job[job["job_id"]].gpu_energy_kwh == pytest.approx(want / 3.6e6, rel=1e-4)
    parts = [*found.tenants, found.unallocated]
    assert sum(int(u.energy_mj) for u in parts) == int(found.total.energy_mj)
    raw = desk.store.query("SELECT toInt64(sum(energy_j) * 1000) FROM gpu_samples").rows[0][0]
    assert int(found.total.energy_mj) == raw


def _readings(files):
    out: dict[int, dict[np.datetime64, float]] = {gpu: {} for gpu in range(8)}
    for name in files:
        with Path(name).open() as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                at = np.datetime64(row["timestamp"].strip().rstrip("Z"), "ms")
                out[int(row["gpu_index"])][at] = float(row["power_W"])
    return {gpu: sorted(mine.items()) for gpu, mine in out.items()}


def _inside(readings, begin, end):
    """Joules by the trapezoid over readings in [begin, end), none across more than 10 s."""
    mine = [(t, w) for t, w in readings if begin <= t < end]
    joules = 0.0
    for (t1, w1), (t2, w2) in pairwise(mine):
        seconds = (t2 - t1) / np.timedelta64(1, "s")
        joules += (w1 + w2) / 2 * seconds if seconds <= 10 else 0.0
    return joules
