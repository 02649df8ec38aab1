"""From the log to the store: what is kept, what is refused, what is said of it."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.directory import Directory
from pipeline.errors import Retry
from pipeline.ingest import Ingest
from pipeline.ledger import contract_store, contracts
from pipeline.log import Partition
from pipeline.records import (
    FLAG_ABSURD_ENERGY,
    FLAG_ABSURD_POWER,
    FLAG_CLOCK_SUSPECT,
    FLAG_NEGATIVE_POWER,
    Allocation,
    id64,
)
from pipeline.settings import Pipeline
from pipeline.topics import encode_record
from pipeline.writer import CONTRACTS_EVERY_MS
from tests.memory_log import MemoryLog, MemoryTopics
from tests.messages import SITE, T0_MS, inventory, message, uuid

SAMPLES = Partition("samples", 0)
BACKFILL = Partition("backfill", 0)


@pytest.fixture
def topics():
    return MemoryTopics()


def ingest(topics, store, **changes) -> Ingest:
    return Ingest(
        lambda listener: MemoryLog(topics, listener),
        store,
        changes.pop("directory", Directory()),
        Pipeline(),
        changes.pop("clock", None) or ManualClock(T0_MS + 10_000),
    )


def run(topics, store, **changes) -> Ingest:
    """Everything in the log, through a new reader."""
    reader = ingest(topics, store, **changes)
    assert reader.drain(20)
    reader.close()
    return reader


def one(store, sql: str):
    return store.query(sql).rows[0][0]


def test_a_message_becomes_rows_with_units_and_nulls(topics, store):
    """4 ticks of 2 GPUs are 8 rows; what was not reported is NULL."""
    topics.add(SAMPLES, message(), T0_MS + 5000)
    run(topics, store)
    row = store.query(
        "SELECT * FROM gpu_samples ORDER BY gpu, ts LIMIT 1", asterisk_include_alias_columns=1
    ).dicts()[0]
    assert one(store, "SELECT count() FROM gpu_samples") == 8
    assert float(row["power_w"]) == 500.0
    assert float(row["energy_j"]) == 500.0
    assert row["energy_kind"] == "counter"
    assert row["temp_mem_c"] is None
    assert one(store, "SELECT count() FROM gpu_health") == 2
    assert float(one(store, "SELECT any(energy_counter_j) FROM gpu_health")) == 1000.0


def test_rollups_have_the_same_energy_as_the_rows(topics, store):
    """Conservation, to the millijoule, over messages that begin at any second."""
    for seq in range(30):
        values = {"energy_j": [123_457 + seq * 31 + i for i in range(8)]}
        topics.add(
            SAMPLES, message(seq=seq, t0_ms=T0_MS + seq * 4000, values=values), T0_MS + 10**6
        )
    run(topics, store)
    raw = one(store, "SELECT sum(energy_j) FROM gpu_samples")
    assert raw == one(store, "SELECT sum(energy_j) FROM power_seconds")
    assert raw == one(store, "SELECT sum(energy_j) FROM tenant_minutes")


def test_rows_that_were_not_sampled_do_not_exist(topics, store):
    """dt_ms = 0 marks a hole."""
    topics.add(SAMPLES, message(values={"dt_ms": [1000, 0] * 4}), T0_MS + 5000)
    run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 4
    assert one(store, "SELECT uniqExact(gpu) FROM gpu_health") == 1


def test_a_long_row_is_spread_over_the_seconds_that_it_stands_for(topics, store):
    """After a missed tick dt is 2 s: both seconds show the watts, none shows them twice."""
    topics.add(SAMPLES, message(ticks=2, gpus=1, values={"dt_ms": [1000, 1000]}), T0_MS + 5000)
    late = message(
        seq=1, t0_ms=T0_MS + 3000, ticks=1, gpus=1, values={"dt_ms": 2000, "energy_j": 999}
    )
    topics.add(SAMPLES, late, T0_MS + 5000)
    run(topics, store)
    rows = store.query(
        "SELECT toUnixTimestamp(ts), toFloat64(sum(power_w_ms)) / 1000, toFloat64(sum(energy_j)) * 1000, sum(rows)"
        " FROM power_seconds GROUP BY ts ORDER BY ts"
    ).rows
    assert [r[0] - T0_MS // 1000 for r in rows] == [0, 1, 2, 3]
    assert [r[1] for r in rows] == [500.0] * 4
    assert [r[2] for r in rows] == [500_000, 500_000, 499, 500]
    assert sum(r[3] for r in rows) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda m: m[:50], "truncated: 50 bytes"),
        (lambda m: m[:-3], "truncated"),
        (lambda m: m[:300] + bytes([m[300] ^ 1]) + m[301:], "corrupt: the checksum"),
        (lambda m: b"", "truncated: 0 bytes"),
        (lambda m: b"GET / HTTP/1.1" + m, "not a Megawatch message"),
        (lambda m: m[:4] + b"\x09" + m[5:], "unknown version 9"),
    ],
)
def test_a_poisoned_message_is_a_dead_letter_and_its_neighbours_are_kept(
    topics, store, damage, reason
):
    """The good ones around it are in; the bad one is kept whole, with the reason."""
    topics.add(SAMPLES, message(seq=0), T0_MS + 5000)
    bad = damage(message(seq=1, t0_ms=T0_MS + 4000))
    topics.add(SAMPLES, bad, T0_MS + 9000, b"n1")
    topics.add(SAMPLES, message(seq=2, t0_ms=T0_MS + 8000), T0_MS + 12_000)
    reader = run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 16
    letter = store.query("SELECT reason, hex(payload), hex(key) FROM dead_letters").rows[0]
    assert reason in letter[0]
    assert bytes.fromhex(letter[1]) == bad
    assert bytes.fromhex(letter[2]) == b"n1"
    assert reader.totals.rejected == 1


def test_an_unknown_layout_is_a_dead_letter(topics, store):
    """A column of another length of life is not guessed at."""
    from dataclasses import replace

    from pipeline import wire

    short = wire.Layout(wire.LAYOUT.fast[:5], (), ())
    part = wire.decode(message())
    value = wire.encode(replace(part, fast=part.fast[:5], slow=(), slices=()), short)
    topics.add(SAMPLES, value, T0_MS + 5000)
    run(topics, store)
    assert "unknown layout" in one(store, "SELECT reason FROM dead_letters")


def test_an_announced_layout_is_read_and_its_unknown_columns_skipped(topics, store):
    """A node of another version is understood by the layout in its inventory."""
    from dataclasses import replace

    from pipeline import wire

    extra = wire.Column("shoe_size", "u2", 0)
    other = wire.Layout((*wire.LAYOUT.fast[:4], extra), (), ())
    part = wire.decode(message())
    value = wire.encode(replace(part, fast=(*part.fast[:4], bytes(16)), slow=(), slices=()), other)
    topics.add(
        Partition("inventory", 0), encode_record(inventory("n1", layout=other.describe())), T0_MS
    )
    run(topics, store)
    topics.add(SAMPLES, value, T0_MS + 5000)
    reader = ingest(topics, store)
    from pipeline.warm import warmed

    reader.directory.layouts.update(warmed(store, T0_MS).layouts)
    assert reader.drain(20)
    reader.close()
    assert one(store, "SELECT sum(power_w) FROM gpu_samples") == 4000
    assert one(store, "SELECT count(util_gpu_pct) FROM gpu_samples") == 0


def test_a_clock_an_hour_ahead_is_quarantined(topics, store):
    """Live rows more than five minutes ahead of the broker are dead letters."""
    topics.add(SAMPLES, message(t0_ms=T0_MS + 3_600_000), T0_MS)
    run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 0
    assert "clock: samples 3604 s ahead" in one(store, "SELECT reason FROM dead_letters")


def test_a_clock_an_hour_behind_is_kept_and_flagged(topics, store):
    """ts is never shifted."""
    topics.add(SAMPLES, message(), T0_MS + 3_600_000)
    run(topics, store)
    flags = store.query("SELECT DISTINCT flags FROM gpu_samples").rows
    assert flags == [(FLAG_CLOCK_SUSPECT,)] or list(flags[0]) == [FLAG_CLOCK_SUSPECT]
    assert one(store, "SELECT toUnixTimestamp64Milli(min(ts)) FROM gpu_samples") == T0_MS


def test_negative_and_absurd_watts_are_kept_flagged_and_out_of_sums(topics, store):
    """A reading that cannot be is not repaired, and not paid for."""
    power = [5000, -20, 5000, 200_000, 5000, 5000, 5000, 5000]
    energy = [500_000] * 7 + [4_000_000_000]
    topics.add(SAMPLES, message(values={"power_w": power, "energy_j": energy}), T0_MS + 5000)
    run(topics, store)
    flags = {r[0] for r in store.query("SELECT flags FROM gpu_samples").rows}
    assert flags == {0, FLAG_NEGATIVE_POWER, FLAG_ABSURD_POWER, FLAG_ABSURD_ENERGY}
    assert one(store, "SELECT min(power_w) FROM gpu_samples") == -2
    assert one(store, "SELECT max(power_w) FROM gpu_samples") == 20_000
    assert float(one(store, "SELECT sum(power_w_ms) FROM power_seconds")) == 6 * 500 * 1000
    assert float(one(store, "SELECT sum(energy_j) FROM gpu_samples")) == 7 * 500


def test_the_same_message_twice_is_one_message(topics, store):
    """Within a batch, across batches, and across a restart that remembers nothing."""
    topics.add(SAMPLES, message(seq=0), T0_MS + 5000)
    topics.add(SAMPLES, message(seq=0), T0_MS + 5000)
    run(topics, store)
    topics.add(SAMPLES, message(seq=0), T0_MS + 6000)
    reader = run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 8
    assert reader.totals.duplicates == 1


def test_a_message_that_comes_again_by_the_other_lane_is_one_message(topics, store):
    """The agent did not see the acknowledgement, and sent it again later as backlog."""
    topics.add(SAMPLES, message(seq=0), T0_MS + 5000)
    topics.add(BACKFILL, message(seq=0), T0_MS + 90_000)
    topics.add(BACKFILL, message(seq=1, t0_ms=T0_MS + 4000), T0_MS + 90_000)
    run(topics, store)
    topics.add(SAMPLES, message(seq=1, t0_ms=T0_MS + 4000), T0_MS + 91_000)
    run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 16


def test_gaps_are_counted(topics, store):
    """Missing numbers of a stream are said, not guessed."""
    for seq in (0, 1, 5):
        topics.add(SAMPLES, message(seq=seq, t0_ms=T0_MS + seq * 4000), T0_MS + 60_000)
    assert run(topics, store).totals.gaps == 3
    assert one(store, "SELECT sum(gaps) FROM ingest_log") == 3


def test_rows_are_stamped_with_who_held_the_gpu_at_that_tick(topics, store):
    """Also where the holder changes within a message, and where two hold it at once."""
    inv = inventory("n1", gpus=3)
    topics.add(Partition("inventory", 0), encode_record(inv), T0_MS)

    def claim(tenant: str, gpus: tuple[int, ...], since: int, until: int | None) -> None:
        record = Allocation(
            site=SITE, source="t", tenant=tenant, workload=f"{tenant}-job", node="n1",
            gpus=gpus, from_ms=T0_MS + since, until_ms=None if until is None else T0_MS + until,
        )  # fmt: skip
        topics.add(Partition("allocations", 0), encode_record(record), T0_MS)

    claim("a", (0,), 0, 2000)
    claim("b", (0,), 2000, None)
    claim("a", (1,), 0, None)
    claim("b", (1,), 0, None)
    directory = Directory()
    run(topics, store, directory=directory)
    topics.add(SAMPLES, message(gpus=3), T0_MS + 5000)
    run(topics, store, directory=directory)
    rows = store.query(
        "SELECT gpu, groupArray(tenant) FROM (SELECT * FROM gpu_samples ORDER BY gpu, ts) GROUP BY gpu"
    ).rows
    found = {gpu: list(tenants) for gpu, tenants in rows}
    a, b = id64("", "a"), id64("", "b")
    assert found[id64(SITE, uuid("n1", 0))] == [a, a, b, b]
    assert found[id64(SITE, uuid("n1", 1))] == [1] * 4
    assert found[id64(SITE, uuid("n1", 2))] == [0] * 4


def test_a_contract_that_is_imported_meanwhile_stamps_what_comes(topics, store):
    """Within half a minute: contracts reach a running pipeline through the store."""
    topics.add(Partition("inventory", 0), encode_record(inventory("n1", gpus=1)), T0_MS)
    clock = ManualClock(T0_MS + 10_000)
    reader = ingest(topics, store, clock=clock)
    topics.add(SAMPLES, message(gpus=1), T0_MS + 5000)
    assert reader.drain(20)
    text = (Path(__file__).parents[2] / "deploy/contracts.example.toml").read_text()
    example = contracts.parse(text, "example", SITE, T0_MS)[0]
    everywhere = (contracts.Selector(node=("*",)),)
    lease = replace(example, tenant="a", site=SITE, selectors=everywhere, from_ms=0, until_ms=None)
    contract_store.write(store, [lease])
    clock.advance(CONTRACTS_EVERY_MS / 1000)
    topics.add(SAMPLES, message(gpus=1, seq=1, t0_ms=T0_MS + 4000), T0_MS + 9000)
    assert reader.drain(20)
    reader.close()
    found = store.query("SELECT DISTINCT seq, tenant FROM gpu_samples ORDER BY seq").rows
    assert found == [(0, 0), (1, id64("", "a"))]


def test_claims_that_ended_long_ago_are_forgotten(topics, store):
    """Jobs come and go for months: what no raw row can need does not gather in memory."""
    directory = Directory()
    day_ms = 86_400_000
    for tenant, until in (("old", T0_MS - 9 * day_ms), ("recent", T0_MS - 7 * day_ms)):
        record = Allocation(
            site=SITE, source="t", tenant=tenant, node="n1", from_ms=T0_MS - 20 * day_ms,
            until_ms=until,
        )  # fmt: skip
        topics.add(Partition("allocations", 0), encode_record(record), T0_MS)
    run(topics, store, directory=directory)
    assert [claim.tenant for claim in directory.claims(SITE, "n1")] == ["recent"]


def test_mig_instances_have_rows_of_their_own(topics, store):
    """Power stays with the device, once."""
    topics.add(SAMPLES, message(instances=((0, 1, 0), (0, 2, 0), (1, 1, 0))), T0_MS + 5000)
    run(topics, store)
    assert one(store, "SELECT count() FROM slice_samples") == 12
    assert one(store, "SELECT count() FROM gpu_samples") == 8
    assert one(store, "SELECT uniqExact(gpu, gi, ci) FROM slice_samples") == 3


def test_live_goes_before_backfill(topics, store):
    """A backlog does not keep live watts waiting."""
    for seq in range(50):
        topics.add(BACKFILL, message("old", seq, T0_MS - 10**6 + seq * 4000), T0_MS)
    topics.add(SAMPLES, message("n1"), T0_MS + 5000)
    reader = ingest(topics, store)
    reader.step(0)
    reader._hurry()
    while not reader.totals.inserts:
        reader.step(0.01)
    assert set(reader.totals.by_topic) == {"samples"}
    assert reader.drain(20)
    reader.close()
    assert reader.totals.rows == 8 + 50 * 8


def test_a_broken_record_is_a_dead_letter(topics, store):
    """JSON topics are as hostile as the others."""
    for value in (b"{", b"[]", b'{"site": 1}', b"\xff\xfe", b"null"):
        topics.add(Partition("events", 0), value, T0_MS)
    reader = run(topics, store)
    assert reader.totals.rejected == 5
    assert one(store, "SELECT count() FROM dead_letters") == 5


def test_without_a_broker_an_end_waits_for_it_once(topics, store):
    """What is in flight then is given up after one commit, and repeated by whoever comes next."""

    class Away(MemoryLog):
        tries = 0

        def commit(self, marks):
            if self.tries or any(mark.end is None for mark in marks.values()):
                self.tries += 1
                raise Retry("the broker is away, for a test")
            super().commit(marks)

    topics.add(SAMPLES, message(), T0_MS + 5000)
    clock = ManualClock(T0_MS + 10_000)
    logs = []

    def opened(listener):
        logs.append(Away(topics, listener))
        return logs[0]

    reader = Ingest(opened, store, Directory(), Pipeline(), clock)
    reader.step(0)
    clock.advance(2)
    reader.step(0)
    reader.finish()
    reader.close()
    assert logs[0].tries == 1
    assert topics.marks[SAMPLES].end == 1
    run(topics, store)
    assert one(store, "SELECT count() FROM gpu_samples") == 8
    assert topics.marks[SAMPLES].end is None


def test_run_stops_when_told(topics, store):
    """The loop ends, with nothing in flight."""
    topics.add(SAMPLES, message(), T0_MS + 5000)
    reader = ingest(topics, store)
    stop = threading.Event()
    thread = threading.Thread(target=reader.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    reader.close()
