"""A GPU's minute is filled behind the watermark, again when late rows come, and counts once."""

import itertools
from datetime import UTC, datetime

import pytest

from pipeline import minutes as module
from pipeline.clock import ManualClock
from pipeline.directory import Directory
from pipeline.errors import Retry
from pipeline.ingest import Ingest
from pipeline.log import Partition
from pipeline.minutes import LOOK_BACK_MS, MINUTE_MS, OLD_MS, Minutes
from pipeline.settings import Pipeline
from tests.memory_log import MemoryLog, MemoryTopics
from tests.messages import T0_MS, message

SAMPLES, BACKFILL = Partition("samples", 0), Partition("backfill", 0)
BEGIN_MS = T0_MS // MINUTE_MS * MINUTE_MS
NOW_MS = BEGIN_MS + 10**6


@pytest.fixture
def feed(store):
    """Ingests messages of 4 s, by their number from BEGIN_MS on, as of a time."""
    topics = MemoryTopics()

    def now(*seqs: int, at_ms: int = NOW_MS, lane=SAMPLES, nodes=("n1",), **changes) -> None:
        for node in nodes:
            for seq in seqs:
                raw = message(node, seq, BEGIN_MS + seq * 4000, **changes)
                topics.add(lane, raw, at_ms)
        reader = Ingest(
            lambda listener: MemoryLog(topics, listener), store, Directory(), Pipeline(),
            ManualClock(at_ms),
        )  # fmt: skip
        assert reader.drain(20)
        reader.close()

    return now


def rows(store):
    return store.query("SELECT * FROM gpu_minutes FINAL ORDER BY gpu, ts").dicts()


def seconds(store):
    """dt of each minute, in seconds, summed over GPUs."""
    return dict(
        store.query(
            "SELECT formatDateTime(ts, '%H:%i'), intDiv(sum(dt_ms), 1000)"
            " FROM gpu_minutes FINAL GROUP BY ts ORDER BY ts"
        ).rows
    )


def minute(number: int) -> str:
    return datetime.fromtimestamp((BEGIN_MS + number * MINUTE_MS) / 1000, UTC).strftime("%H:%M")


def raw_mj(store, table):
    return store.query(f"SELECT toInt64(sum(energy_j) * 1000) FROM {table}").rows[0][0]


def test_a_minute_has_its_sums_and_extremes(store, feed):
    """Two GPUs, 15 messages: a whole minute of each."""
    feed(*range(15))
    assert Minutes(store).fill(NOW_MS, None) == 1
    found = rows(store)
    assert len(found) == 2
    for row in found:
        assert (row["rows"], row["dt_ms"], row["active_ms"]) == (60, 60_000, 60_000)
        assert float(row["energy_j"]) == 60 * 500
        assert float(row["power_w_ms"]) == 500 * 60_000
        assert float(row["power_w_max"]) == 500
        assert row["temp_gpu_c_max"] == 60


def test_the_counters_of_a_minute_are_the_first_and_the_last(store, feed):
    """Raw counters at the first tick of the first and last message whose slow columns were kept.

    Of those that say nothing new, one a minute is; else NULL.
    """
    feed(*range(14))
    feed(14, values={"pcie_replays": 1})
    feed(15, values={"energy_counter_j": 2**64 - 1})
    Minutes(store).fill(NOW_MS, None)
    firsts = {(row["energy_counter_first_j"], row["energy_counter_last_j"]) for row in rows(store)}
    assert {(float(a), float(b)) if a else (a, b) for a, b in firsts} == {
        (1000.0, 1000.014), (None, None),
    }  # fmt: skip


def test_minutes_above_the_watermark_wait(store, feed):
    """A minute is filled when everything in it has been heard, then and not before."""
    feed(*range(40))
    filler = Minutes(store)
    assert filler.fill(NOW_MS, BEGIN_MS + MINUTE_MS - 1) == 0
    assert filler.fill(NOW_MS, BEGIN_MS + 2 * MINUTE_MS + 5) == 2
    assert seconds(store) == {minute(0): 120, minute(1): 120}
    assert filler.fill(NOW_MS, BEGIN_MS + 2 * MINUTE_MS + 5) == 0
    assert filler.fill(NOW_MS, None) == 1
    assert seconds(store)[minute(2)] == 80


def test_late_rows_fill_their_minute_again(store, feed):
    """Backlog, an import: the minute then has everything, and nothing twice."""
    feed(0, 1, 5)
    filler = Minutes(store)
    filler.fill(NOW_MS, None)
    feed(2, 3, 4, at_ms=NOW_MS + 5000, lane=BACKFILL)
    assert filler.fill(NOW_MS + 6000, None) == 1
    assert seconds(store) == {minute(0): 48}
    assert raw_mj(store, "gpu_minutes FINAL") == raw_mj(store, "gpu_samples")


def test_a_late_row_does_not_replace_a_minute_whose_raw_rows_are_gone(store, feed):
    """Retention took them: what is left of the minute is the fuller one."""
    feed(*range(14))
    filler = Minutes(store)
    filler.fill(NOW_MS, None)
    later_ms = NOW_MS + OLD_MS + MINUTE_MS
    store.command("TRUNCATE TABLE gpu_samples")
    feed(14, 15, at_ms=later_ms, lane=BACKFILL)
    assert filler.fill(later_ms + 1000, None) == 2
    assert seconds(store) == {minute(0): 112, minute(1): 8}


def test_an_old_minute_that_grows_is_filled_again(store, feed):
    """A backlog of days, in pieces: each makes the minute fuller."""
    later_ms = NOW_MS + OLD_MS + MINUTE_MS
    filler = Minutes(store)
    for piece in ((0, 1), (2, 3, 4), (5,)):
        feed(*piece, at_ms=later_ms, lane=BACKFILL)
        later_ms += 5000
        assert filler.fill(later_ms, None) == 1
    assert seconds(store) == {minute(0): 48}
    assert raw_mj(store, "gpu_minutes FINAL") == raw_mj(store, "gpu_samples")


def test_a_restart_continues_where_the_last_life_was(store, feed):
    """A new filler knows from the table what is open; filling again changes nothing."""
    feed(*range(40))
    Minutes(store).fill(NOW_MS, BEGIN_MS + MINUTE_MS)
    before = rows(store)
    again = Minutes(store)
    assert again.fill(NOW_MS + 1, None) == 3
    assert raw_mj(store, "gpu_minutes FINAL") == raw_mj(store, "gpu_samples")
    kept = [r for r in rows(store) if r["ts"] == before[0]["ts"]]
    assert [r | {"version": 0} for r in kept] == [r | {"version": 0} for r in before]


def test_nothing_old_is_filled_again_after_a_restart(store, feed):
    """What was complete longer ago than log rows take to be seen is not read anew."""
    feed(*range(15))
    Minutes(store).fill(NOW_MS + 2 * LOOK_BACK_MS, None)
    assert Minutes(store).fill(NOW_MS + 3 * LOOK_BACK_MS, None) == 0


def test_pieces_by_id_give_the_same_as_one(store, feed, monkeypatch):
    """Ranges of ids cover every GPU once."""
    feed(0, 1, nodes=[f"n{n}" for n in range(6)])
    Minutes(store).fill(NOW_MS, None)
    whole = [r | {"version": 0} for r in rows(store)]
    store.command("TRUNCATE TABLE gpu_minutes")
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    filler = Minutes(store)
    assert filler.fill(NOW_MS, None) == 1
    ranges = filler._id_ranges(BEGIN_MS, BEGIN_MS + MINUTE_MS)
    assert len(ranges) > 5
    assert (ranges[0][0], ranges[-1][1]) == (0, 2**64)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert [r | {"version": 0} for r in rows(store)] == whole


def test_a_fill_that_failed_is_done_the_next_time(store, feed, monkeypatch):
    """The server was busy: the minute is not taken for filled."""
    feed(*range(15))
    filler = Minutes(store)
    with monkeypatch.context() as broken:
        broken.setattr(
            module,
            "fill_statement",
            lambda *_, **__: "INSERT INTO gpu_minutes (gpu) SELECT throwIf(1)",
        )
        with pytest.raises(Retry):
            filler.fill(NOW_MS, None)
    assert filler.fill(NOW_MS, None) == 1
    assert seconds(store) == {minute(0): 120}


def test_a_clock_that_was_set_back_hides_nothing(store, feed):
    """What is inserted at an earlier time than the last fill is filled, and its rows count."""
    feed(0, 1)
    filler = Minutes(store)
    filler.fill(NOW_MS, None)
    back_ms = NOW_MS - 700_000
    feed(2, 20, at_ms=back_ms)
    assert filler.fill(back_ms + 1000, None) == 2
    assert seconds(store) == {minute(0): 24, minute(1): 8}
    feed(3, at_ms=back_ms + 2000)
    assert Minutes(store).fill(back_ms + 3000, None) >= 1
    assert seconds(store) == {minute(0): 32, minute(1): 8}


def test_long_runs_are_filled_an_hour_at_a_time():
    """Memory is bounded by what one statement reads."""
    assert module._runs([1, 2, 3, 7, 8, 20]) == [(1, 4), (7, 9), (20, 21)]
    runs = module._runs(list(range(150)))
    assert [stop - start for start, stop in runs] == [60, 60, 30]
