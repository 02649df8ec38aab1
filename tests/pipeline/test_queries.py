"""Watts, coverage and times: known rows in, known figures out."""

import contextlib
import datetime as dt
import zoneinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import queries
from pipeline.clock import ManualClock
from pipeline.errors import Refuse
from pipeline.ingest import Ingest
from pipeline.log import Partition
from pipeline.minutes import Minutes
from pipeline.records import Allocation
from pipeline.settings import Pipeline
from pipeline.topics import encode_record
from pipeline.warm import warmed
from tests.memory_log import MemoryLog, MemoryTopics
from tests.messages import SITE, T0_MS, inventory, message

UTC = dt.UTC
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
BEGIN_MS = T0_MS // 60_000 * 60_000
FAR_MS = BEGIN_MS + 3 * 10**7


@pytest.fixture
def feed(store):
    """Ingests records first, then messages."""
    topics = MemoryTopics()

    def now(*messages: bytes, records=()) -> None:
        for record in records:
            topic = "inventory" if record.__class__.__name__ == "Inventory" else "allocations"
            topics.add(Partition(topic, 0), encode_record(record), BEGIN_MS)
        if records:
            drain(topics)
        for raw in messages:
            topics.add(Partition("samples", 0), raw, FAR_MS)
        if messages:
            drain(topics)

    def drain(topics) -> None:
        reader = Ingest(
            lambda listener: MemoryLog(topics, listener), store, warmed(store, BEGIN_MS),
            Pipeline(), ManualClock(FAR_MS),
        )  # fmt: skip
        assert reader.drain(20)
        reader.close()

    return now


def at(seconds: int, seq: int = 0, watts: int = 500, **changes) -> bytes:
    values = {"power_w": watts * 10, "energy_j": watts * 1000} | changes.pop("values", {})
    return message(seq=seq, t0_ms=BEGIN_MS + seconds * 1000, values=values, **changes)


def lease(tenant, **changes):
    fields: dict[str, Any] = {"source": "lease", "node": "n1", "from_ms": BEGIN_MS} | changes
    return Allocation(site=SITE, tenant=tenant, **fields)


def power(store, since: int, until: int, step: str = "1s", by="site", **more):
    return queries.power(store, BEGIN_MS + since, BEGIN_MS + until, queries.STEPS[step], by, **more)


def test_watts_of_each_second(store, feed):
    """The sum over GPUs, second by second."""
    feed(at(0, 0, 500), at(4, 1, 700), records=[inventory("n1", from_ms=BEGIN_MS)])
    found = power(store, 0, 60_000)
    assert [p.watts for p in found] == [1000.0] * 4 + [1400.0] * 4
    assert {p.coverage for p in found} == {1.0}
    assert {(p.site, p.tenant, p.expected_from) for p in found} == {(SITE, None, "inventory")}
    assert [(p.ts_ms - BEGIN_MS) // 1000 for p in found] == list(range(8))


def test_a_step_is_the_mean_over_the_seconds_that_there_were(store, feed):
    """A minute cut short by the newest second is averaged over what it has."""
    feed(at(0, 0, 500), at(4, 1, 700))
    (found,) = power(store, 0, 60_000, "1m")
    assert found.watts == pytest.approx(1200.0)


def test_a_missing_gpu_is_missing_in_coverage_and_not_made_up_in_watts(store, feed):
    """Half of the expected GPUs: half the watts, coverage one half."""
    feed(at(0), records=[inventory("n1", gpus=4, from_ms=BEGIN_MS)])
    found = power(store, 0, 4000)
    assert {(p.watts, p.coverage) for p in found} == {(1000.0, 0.5)}


def test_without_inventory_the_gpus_that_were_seen_are_expected(store, feed):
    """And it is said so."""
    feed(at(0), at(0, 0, 500, node="n2"), at(4, 1))
    found = power(store, 0, 8000)
    assert {p.expected_from for p in found} == {"seen"}
    assert [p.coverage for p in found] == [1.0] * 4 + [0.5] * 4


@pytest.mark.parametrize("shift", [1, 999])
def test_a_range_within_seconds_shows_no_other_watts(store, feed, shift):
    """`--from -10s` begins at some millisecond; the first and last second are whole ones."""
    feed(at(0, 0), at(4, 1), records=[inventory("n1", from_ms=BEGIN_MS)])
    found = power(store, 2000 + shift, 6000 + shift)
    assert {p.watts for p in found} == {1000.0}
    assert {p.coverage for p in found} == {1.0}
    (minute,) = power(store, 2000 + shift, 6000 + shift, "1m")
    assert minute.watts == pytest.approx(1000.0)


def test_watts_by_tenant_add_up_to_the_site(store, feed):
    """What nobody holds is a line of its own."""
    feed(
        at(0, gpus=4),
        records=[inventory("n1", gpus=4, from_ms=BEGIN_MS), lease("red", gpus=(0, 1, 2))],
    )
    found = power(store, 0, 4000, by="tenant")
    assert {(p.tenant, p.watts, p.coverage) for p in found} == {
        ("red", 1500.0, 1.0), ("(unallocated)", 500.0, 1.0),
    }  # fmt: skip


def test_a_lease_and_a_job_of_one_tenant_expect_a_gpu_once(store, feed):
    """Tenant and workload are two axes of one use."""
    job = lease("red", source="slurm", workload="job-1", from_ms=BEGIN_MS + 1000)
    feed(at(0), records=[inventory("n1", from_ms=BEGIN_MS), lease("red"), job])
    found = power(store, 0, 4000, by="tenant")
    assert {(p.tenant, p.watts, p.coverage) for p in found} == {("red", 1000.0, 1.0)}


def test_gpus_that_several_claim_leave_nobody_a_negative_share(store, feed):
    """Three claims on one GPU: the other one is still expected of nobody else."""
    claims = [lease(t, gpus=(0,)) for t in ("red", "blue", "green")]
    feed(at(0), records=[inventory("n1", from_ms=BEGIN_MS), *claims])
    found = {p.tenant: p for p in power(store, 0, 4000, by="tenant")}
    assert set(found) == {"(shared)", "(unallocated)"}
    assert found["(unallocated)"].coverage == 1.0


def test_a_corrected_claim_counts_as_corrected(store, feed):
    """An end that was asserted later ends what is expected."""
    feed(
        records=[
            inventory("n1", from_ms=BEGIN_MS), lease("red", asserted_at_ms=BEGIN_MS),
            lease("red", until_ms=BEGIN_MS + 2000, asserted_at_ms=BEGIN_MS + 5),
        ]
    )  # fmt: skip
    feed(at(0))
    found = power(store, 0, 4000, by="tenant")
    assert [(p.tenant, p.coverage) for p in found] == [("red", 1.0)] * 2 + [
        ("(unallocated)", 1.0)
    ] * 2


def test_a_site_can_be_asked_for_alone(store, feed):
    """By its name; one without rows has none."""
    feed(at(0), records=[inventory("n1", from_ms=BEGIN_MS)])
    assert len(power(store, 0, 4000, site=SITE)) == 4
    assert power(store, 0, 4000, site="elsewhere") == []


def test_a_long_range_is_read_from_minutes_and_says_the_same(store, feed):
    """Seven hours in steps of an hour."""
    feed(at(0, 0), at(6 * 3600, 1), records=[inventory("n1", from_ms=BEGIN_MS)])
    short = power(store, 0, 3_600_000, "1m")
    long = power(store, 0, 7 * 3_600_000, "1m")
    assert long[0].watts == pytest.approx(1000 * 4 / 60)
    assert short[0].watts == pytest.approx(long[0].watts)
    assert len(long) == 2


def test_an_empty_store_has_no_watts_and_a_status(store):
    """Nothing is divided by zero."""
    assert power(store, 0, 60_000) == []
    found = queries.status(store, BEGIN_MS)
    assert (found.rows, found.newest_sample, found.age_s, found.gpus_seen) == (0, None, None, 0)


def test_the_status_says_what_came_and_what_is_missing(store, feed):
    """Counts, age, gaps, duplicates, dead letters."""
    feed(at(0, 0), at(8, 2), at(0, 0), b"junk", records=[inventory("n1", gpus=3)])
    found = queries.status(store, BEGIN_MS + 20_000)
    assert (found.rows, found.gpus_seen, found.gpus_expected) == (16, 2, 3)
    assert (found.duplicates, found.gaps, found.dead_letters) == (1, 1, 1)
    assert found.age_s == 9.0
    assert found.first_sample == queries.iso(BEGIN_MS, UTC)


def test_energy_is_text_and_the_same_in_every_table(store, feed):
    """Millijoules beyond 2^53 would not survive JSON as a number."""
    feed(at(0, 0), at(4, 1))
    Minutes(store).fill(FAR_MS, None)
    tables: tuple[queries.EnergyTable, ...] = (
        "gpu_samples", "power_seconds", "tenant_minutes", "gpu_minutes",
    )  # fmt: skip
    assert {queries.energy_mj(store, table) for table in tables} == {str(16 * 500_000)}


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-03-29T01:59:59", BERLIN, "2026-03-29T00:59:59+00:00"),
        ("2026-03-29T03:00:00", BERLIN, "2026-03-29T01:00:00+00:00"),
        ("2026-10-25T02:30:00", BERLIN, "2026-10-25T00:30:00+00:00"),
        ("2026-10-25T03:00:00", BERLIN, "2026-10-25T02:00:00+00:00"),
        ("2026-10-25", BERLIN, "2026-10-24T22:00:00+00:00"),
        ("2026-10-25T02:30:00Z", BERLIN, "2026-10-25T02:30:00+00:00"),
        ("2026-10-25T02:30:00+05:30", UTC, "2026-10-24T21:00:00+00:00"),
        ("2026-01-01 12:00", UTC, "2026-01-01T12:00:00+00:00"),
        ("1795000000123", BERLIN, "2026-11-18T11:06:40.123000+00:00"),
    ],
)
def test_times_are_read_in_the_sites_zone(text, zone, expected):
    """ISO 8601 with its own offset or the site's, across both clock changes; or epoch ms."""
    found = queries.parse_time(text, 0, zone)
    assert found == round(dt.datetime.fromisoformat(expected).timestamp() * 1000)


def test_a_day_of_the_clock_change_has_23_or_25_hours():
    """From midnight to midnight where the site is."""
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        next_day = (dt.date.fromisoformat(day) + dt.timedelta(1)).isoformat()
        begin, end = (queries.parse_time(d, 0, BERLIN) for d in (day, next_day))
        assert end - begin == hours * 3_600_000


def test_distances_count_back_from_now():
    """Exact hours, whatever the zone does in between."""
    assert queries.parse_time("now", BEGIN_MS, BERLIN) == BEGIN_MS
    for text, ms in (
        ("-24h", 86_400_000),
        ("-90s", 90_000),
        ("-2d", 172_800_000),
        ("-5m", 300_000),
    ):
        assert queries.parse_time(text, BEGIN_MS, BERLIN) == BEGIN_MS - ms


@pytest.mark.parametrize("text", ["", "-", "yesterday", "-24", "-²h", "²" * 13, "12:00", "24h"])
def test_what_is_no_time_is_refused_with_what_would_be(text):
    """One sentence with the bad value in it."""
    with pytest.raises(Refuse, match="is not understood: give ISO 8601, epoch milliseconds"):
        queries.parse_time(text, BEGIN_MS, UTC)


@pytest.mark.parametrize("text", ["9" * 30, "0001-01-01", "-99999999999d", "1969-12-31"])
def test_times_that_no_row_has_are_refused(text):
    """No overflow further down."""
    with pytest.raises(Refuse, match="is not between 1970 and 2100"):
        queries.parse_time(text, BEGIN_MS, UTC)


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_refused(text):
    """Never another exception."""
    with contextlib.suppress(Refuse):
        assert 0 <= queries.parse_time(text, BEGIN_MS, BERLIN) < queries.LATEST_MS


@given(st.integers(0, queries.LATEST_MS - 1), st.sampled_from((UTC, BERLIN)))
def test_a_printed_time_is_read_back(ms, zone):
    """What a table shows can be given to --from."""
    assert queries.parse_time(queries.iso(ms, zone), 0, UTC) == ms
