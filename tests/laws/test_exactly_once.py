"""Whatever dies, comes twice, or comes late: each message's rows are in every table exactly once."""

import functools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import native, wire
from pipeline.clock import ManualClock
from pipeline.errors import Retry
from pipeline.ingest import Ingest
from pipeline.log import Listener, LogRecord, Mark, Partition
from pipeline.minutes import Minutes
from pipeline.records import id64
from pipeline.settings import ClickHouse, Pipeline
from pipeline.store import Store
from pipeline.topics import encode_record
from pipeline.warm import warmed
from tests.memory_log import Died, MemoryLog, MemoryTopics
from tests.messages import T0_MS, inventory, message, uuid

LIVE, LATE = Partition("samples", 0), Partition("backfill", 0)
LANES = (LIVE, LATE)
BATCH = Pipeline(batch_rows=25, batch_age_ms=0, backfill_rows_per_s=10**9)  # about 3 messages


@pytest.fixture(scope="module")
def store(tmp_path_factory, migrated):
    import shutil

    folder = tmp_path_factory.mktemp("once") / "data"
    shutil.copytree(migrated, folder, symlinks=True)
    opened = Store(ClickHouse(data=str(folder)))
    yield opened
    opened.close()


class FitfulLog(MemoryLog):
    """Returns what it likes of what there is: some partitions later, some messages at a time."""

    def __init__(self, topics: MemoryTopics, listener: Listener, clock: ManualClock, seed: int,
                 **death) -> None:  # fmt: skip
        super().__init__(topics, listener, **death)
        self._clock, self._chance = clock, random.Random(seed)

    def poll(self, timeout_s: float) -> dict[Partition, list[LogRecord]]:
        self._clock.advance(0.05)
        time.sleep(0.001)  # the insert runs in a real thread
        found = super().poll(timeout_s)
        for partition, records in list(found.items()):
            keep = self._chance.randint(0, len(records))
            self._at[partition] -= len(records) - keep
            if keep:
                found[partition] = records[:keep]
            else:
                del found[partition]
        return found


class FrailStore:
    """A store whose n-th insert fails, before or after it was done: by an error, or by death."""

    def __init__(self, store: Store, fail_at: int, *, after: bool, dies: bool) -> None:
        self._store, self._left = store, [fail_at]
        self._after, self._dies = after, dies

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def another(self) -> "FrailStore":
        other = FrailStore(self._store.another(), 0, after=self._after, dies=self._dies)
        other._left = self._left
        return other

    def insert(self, table: str, columns: Mapping[str, native.Values], token: str = "") -> None:
        self._left[0] -= 1
        fails = self._left[0] == 0
        if not fails or self._after:
            self._store.insert(table, columns, token)
        if fails:
            raise Died if self._dies else Retry("the server is busy")


@dataclass(frozen=True)
class Life:
    """How far a reader gets, and with which luck in polling."""

    seed: int
    die_at: int = -1
    after: bool = True
    insert_fails_at: int = 0
    insert_after: bool = True
    insert_dies: bool = True


def live(
    topics: MemoryTopics, store: Store, life: Life, settings: Pipeline = BATCH, begun_ms: int = 0
) -> bool:
    """One reader over what the last one left; True if it drained the log."""
    clock = ManualClock(T0_MS + 10**6 + begun_ms)
    frail = FrailStore(store, life.insert_fails_at, after=life.insert_after, dies=life.insert_dies)
    reader = Ingest(
        lambda listener: FitfulLog(
            topics, listener, clock, life.seed, die_at=life.die_at, after=life.after
        ),
        frail,  # type: ignore[arg-type]
        warmed(store, T0_MS),
        settings,
        clock,
    )
    try:
        assert reader.drain(10_000)
        reader.close()
    except Died:
        reader._pool.shutdown()
        reader._writer.store.close()
        return False
    return True


def energies(store: Store, site: int) -> dict[str, int]:
    """Millijoules of a site in every table that keeps energy."""
    return {
        table: store.query(
            f"SELECT toInt64(sum(energy_j) * 1000) FROM {table} WHERE site = {{site:UInt64}}",
            {"site": site},
        ).rows[0][0]
        for table in ("gpu_samples", "power_seconds", "tenant_minutes", "gpu_minutes FINAL")
    }


def sent(site: int, stream: int, seq: int, **changes) -> bytes:
    """A message whose energy tells it from every other one."""
    raw = message(
        f"n{stream % 7}", seq, T0_MS + seq * 4000, ticks=2, gpus=2, stream=stream,
        values={"energy_j": 1000 * (seq + 1) + stream % 97}, **changes,
    )  # fmt: skip
    part = wire.decode(raw)
    ids = tuple(id64(f"{site}", f"{stream}-{i}") for i in range(2))
    return wire.encode(replace(part, header=replace(part.header, site=site), gpu_ids=ids))


lives = st.lists(
    st.one_of(
        st.builds(Life, st.integers(0, 99), st.integers(1, 8), st.booleans()),
        st.builds(
            Life, st.integers(0, 99), st.just(-1), st.just(True),
            st.integers(1, 14), st.booleans(), st.booleans(),
        ),
    ),
    max_size=3,
)  # fmt: skip
deliveries = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from(LANES)), min_size=1, max_size=14
)
sites = iter(range(10, 10**9))


@given(deliveries, lives, st.integers(0, 9))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_message_is_stored_once_whatever_happens(store, arrivals, deaths, more):
    """Duplicates, either lane, any order, deaths at any commit or insert, errors, restarts."""
    site, topics = next(sites), MemoryTopics()
    begun_ms = site * 10**6
    half = len(arrivals) // 2
    for stream, seq, lane in arrivals[:half]:
        topics.add(lane, sent(site, site * 10 + stream, seq), T0_MS + 10**6)
    for life in deaths:
        live(topics, store, life, begun_ms=begun_ms)
    for stream, seq, lane in arrivals[half:]:
        topics.add(lane, sent(site, site * 10 + stream, seq), T0_MS + 10**6)
    for life in deaths[:1]:
        live(topics, store, life, begun_ms=begun_ms)
    assert live(topics, store, Life(seed=more), begun_ms=begun_ms)
    unique = {(stream, seq) for stream, seq, _ in arrivals}
    found = store.query(
        "SELECT stream, seq, count(), uniqExact(gpu, ts) FROM gpu_samples"
        " WHERE site = {site:UInt64} GROUP BY stream, seq",
        {"site": site},
    ).rows
    assert sorted((s - site * 10, q, n, u) for s, q, n, u in found) == [
        (stream, seq, 4, 4) for stream, seq in sorted(unique)
    ]
    # Of slow columns a stream's first message is kept at least, and none twice.
    health = (
        "SELECT count() - uniqExact(stream, seq, gpu), uniqExact(stream, gpu)"
        " FROM gpu_health WHERE site = {site:UInt64}"
    )
    streams = len({stream for stream, _ in unique})
    assert store.query(health, {"site": site}).rows[0] == (0, 2 * streams)
    Minutes(store).fill(T0_MS + begun_ms + 15 * 10**5, None)
    energy = sum(4 * (1000 * (seq + 1) + (site * 10 + stream) % 97) for stream, seq in unique)
    assert set(energies(store, site).values()) == {energy}


def test_a_replay_goes_before_what_the_other_lane_brings(store):
    """The intent of the dead reader covers a message that also waits on the other lane."""
    for waiting in LANES:
        site, topics = next(sites), MemoryTopics()
        other = LATE if waiting is LIVE else LIVE
        topics.add(waiting, sent(site, site, 0), T0_MS + 10**6)
        assert not live(topics, store, Life(0, die_at=1))
        assert topics.marks[waiting].end == 1
        topics.add(other, sent(site, site, 0), T0_MS + 10**6)
        clock = ManualClock(T0_MS + 10**6)

        class OtherFirst(MemoryLog):
            polls = 0

            def poll(self, timeout_s, waiting=waiting, clock=clock):
                clock.advance(0.05)
                time.sleep(0.001)
                found = super().poll(timeout_s)
                self.polls += 1
                if self.polls < 20 and waiting in found:
                    self._at[waiting] -= len(found.pop(waiting))
                return found

        reader = Ingest(
            functools.partial(OtherFirst, topics), store, warmed(store, T0_MS), BATCH, clock
        )
        assert reader.drain(10_000)
        reader.close()
        count = "SELECT count() FROM gpu_samples WHERE site = {site:UInt64}"
        assert store.query(count, {"site": site}).rows[0][0] == 4


def test_a_replay_that_retention_took_away_holds_nothing_up(store):
    """Its messages are gone for good: what comes after them is read."""
    site, topics = next(sites), MemoryTopics()
    topics.add(LIVE, b"", T0_MS)
    del topics.records[LIVE][0]
    topics.marks[LIVE] = Mark(0, 3)
    topics.add(LATE, sent(site, site, 0), T0_MS + 10**6)
    assert live(topics, store, Life(3))
    count = "SELECT count() FROM gpu_samples WHERE site = {site:UInt64}"
    assert store.query(count, {"site": site}).rows[0][0] == 4


def test_an_intent_larger_than_the_present_batches_is_still_repeated(store):
    """Somebody configured smaller batches between two lives."""
    site, topics = next(sites), MemoryTopics()
    for seq in range(60):
        topics.add(LIVE, sent(site, site, seq), T0_MS + 10**6)
    topics.marks[LIVE] = Mark(0, 60)
    assert live(topics, store, Life(5), replace_rows(5))
    count = "SELECT count() FROM gpu_samples WHERE site = {site:UInt64}"
    assert store.query(count, {"site": site}).rows[0][0] == 240


def replace_rows(rows: int) -> Pipeline:
    return Pipeline(batch_rows=rows, batch_age_ms=0, backfill_rows_per_s=10**9)


@pytest.mark.parametrize("after", [True, False])
def test_inventory_is_stored_though_its_insert_failed_at_first(store, after):
    """What the directory has learnt already must still reach the table."""
    topics, name = MemoryTopics(), f"retry-{after}"
    topics.add(Partition("inventory", 0), encode_record(inventory(name)), T0_MS)
    life = Life(1, insert_fails_at=1, insert_after=after, insert_dies=False)
    assert live(topics, store, life)
    stored = store.query("SELECT uuid FROM inventory WHERE node = {n:String}", {"n": name}).rows
    assert sorted(r[0] for r in stored) == [uuid(name, 0), uuid(name, 1)]


def test_giving_up_one_lane_keeps_the_other_alive(store):
    """A rebalance may take the live partition and leave the backlog."""
    site, topics = next(sites), MemoryTopics()
    clock = ManualClock(T0_MS + 10**6)
    topics.add(LIVE, sent(site, site, 0), T0_MS + 10**6)
    topics.add(LATE, sent(site, site, 1), T0_MS + 10**6)
    reader = Ingest(
        lambda listener: FitfulLog(topics, listener, clock, 1), store, warmed(store, T0_MS),
        BATCH, clock,
    )  # fmt: skip
    assert reader.drain(10_000)
    reader.revoked([LIVE])
    topics.add(LATE, sent(site, site, 2), T0_MS + 10**6)
    topics.add(LATE, sent(site, site, 0), T0_MS + 10**6)
    assert reader.drain(10_000)
    reader.close()
    count = "SELECT count() FROM gpu_samples WHERE site = {site:UInt64}"
    assert store.query(count, {"site": site}).rows[0][0] == 12
