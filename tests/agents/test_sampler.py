"""Ticks, flushes and what goes into the spool."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agents.sampler import DROPS_EVERY_MS, INVENTORY_EVERY_MS, MAX_BACK_MS, Sampler
from pipeline.clock import ManualClock
from pipeline.outbox import Outbox, Stored
from pipeline.records import Event, Inventory, MeterReading, Record, id64
from pipeline.settings import AgentSettings, Settings, Site
from pipeline.spool import Spool
from pipeline.topics import INVENTORY, decode_record
from pipeline.wire import LAYOUT, Message, decode, parse_layout
from tests.agents.tiny_source import ENERGY_COUNTER_AT, POWER, TinySource, power

START = 1_790_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START + 137)


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", 64 << 20, clock)
    yield spool
    spool.close()


def make(source: TinySource, spool: Spool, clock: ManualClock, **agent: int) -> Sampler:
    settings = Settings(
        site=Site(name="test", node="node-0"), agent=msgspec.convert(agent, AgentSettings)
    )
    return Sampler(source, spool, settings, clock)


def run_for(sampler: Sampler, clock: ManualClock, seconds: float) -> None:
    """Let the sampler's loop turn on a clock that jumps to wherever it wants to be."""
    end = clock.ms + round(seconds * 1000)
    while True:
        due = sampler.step()
        assert due > clock.ms
        if due >= end:
            clock.ms = end
            return
        clock.ms = due


def stored(spool: Spool) -> list[Stored]:
    box = Outbox(spool)
    ids = box.records(10**6) + box.live(0, 10**6)
    found = [box.fetch(i) for i in sorted(ids)]
    box.close()
    return [m for m in found if m is not None]


def messages(spool: Spool) -> list[Message]:
    return [decode(m.payload) for m in stored(spool) if m.topic == "samples"]


def records(spool: Spool) -> list[Record]:
    return [decode_record(m.topic, m.payload) for m in stored(spool) if m.topic != "samples"]


def column(message: Message, at: int) -> list[int]:
    storage = LAYOUT.fast[at].storage
    width, signed = int(storage[1]), storage[0] == "i"
    raw = message.fast[at]
    return [
        int.from_bytes(raw[i : i + width], "little", signed=signed)
        for i in range(0, len(raw), width)
    ]


def ticks_of(message: Message) -> list[int]:
    """Ticks of a message at which something was sampled."""
    head = message.header
    dt = column(message, 0)
    return [
        head.t0_ms + i * head.period_ms
        for i in range(head.ticks)
        if any(dt[i * head.gpus : (i + 1) * head.gpus])
    ]


def test_ticks_are_aligned_and_come_once_per_period(spool: Spool, clock: ManualClock) -> None:
    """Every tick is a multiple of the period, none is missed, none comes twice."""
    source = TinySource()
    run_for(make(source, spool, clock), clock, 20)
    assert source.reads == list(range(START + 1000, START + 21000, 1000))


def test_ticks_do_not_drift_when_the_sleep_is_always_late(spool: Spool, clock: ManualClock) -> None:
    """Waking 30 ms late each time leaves the ticks where they were."""
    source = TinySource()
    sampler = make(source, spool, clock)
    for _ in range(50):
        clock.ms = sampler.step() + 30
    sampler.step()
    assert all(tick % 1000 == 0 for tick in source.reads)
    assert len(source.reads) == (source.reads[-1] - source.reads[0]) // 1000 + 1
    assert 0.02 < sampler.stats.lateness_s / sampler.stats.ticks < 0.04


def test_every_value_of_a_flush_period_is_in_one_message(spool: Spool, clock: ManualClock) -> None:
    """Steady state: one message per four ticks with all values, at the node's phase."""
    source = TinySource(gpus=2)
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 30)
    whole = messages(spool)[1:]
    assert len(whole) >= 6
    for message in whole:
        assert message.header.ticks == 4
        assert message.header.gpus == 2
        ticks = ticks_of(message)
        assert column(message, POWER) == [power(t, g) for t in ticks for g in range(2)]
        phase = id64("test", "node-0") % 4000
        assert 0 <= (phase - ticks[-1]) % 4000 < 1000
    seqs = [m.header.seq for m in messages(spool)]
    assert seqs == list(range(len(seqs)))


def test_the_header_says_who_and_since_when(spool: Spool, clock: ManualClock) -> None:
    """Site, node, GPU ids, epochs and the period are those of the source and the settings."""
    run_for(make(TinySource(), spool, clock, period_ms=500, flush_ms=2000), clock, 9)
    message = messages(spool)[-1]
    head = message.header
    assert (head.site, head.node) == (id64("test"), id64("test", "node-0"))
    assert message.gpu_ids == (id64("test", "GPU-0-0"), id64("test", "GPU-0-1"))
    assert (head.boot_epoch, head.driver_epoch, head.period_ms) == (11, 22, 500)


def test_slow_values_are_the_newest_but_the_energy_counter_is_the_first(
    spool: Spool, clock: ManualClock
) -> None:
    """The raw counter belongs to the message's first tick."""
    run_for(make(TinySource(), spool, clock), clock, 12)
    message = messages(spool)[1]
    raw = message.slow[ENERGY_COUNTER_AT]
    assert int.from_bytes(raw[:8], "little") == message.header.t0_ms


def test_a_tick_that_cannot_be_read_is_a_hole_with_a_reason(
    spool: Spool, clock: ManualClock
) -> None:
    """Unavailable leaves dt_ms = 0 rows in the message, and a count under its reason."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 9)
    bad = source.reads[-1] + 1000
    source.unavailable = "driver hung"
    run_for(sampler, clock, 1)
    source.unavailable = ""
    run_for(sampler, clock, 9)
    sampler.finish()
    assert sampler.stats.holes == {"driver hung": 1}
    sampled = [t for m in messages(spool) for t in ticks_of(m)]
    assert sampled == [t for t in source.reads if t != bad]


def test_reasons_of_holes_are_bounded(spool: Spool, clock: ManualClock) -> None:
    """A source that invents reasons does not fill the memory."""
    source = TinySource()
    sampler = make(source, spool, clock)
    for i in range(100):
        source.unavailable = f"reason {i}"
        clock.ms = sampler.step()
    assert len(sampler.stats.holes) <= 33
    assert sampler.stats.holes.total() >= 99


def test_a_late_tick_is_skipped_not_bunched(spool: Spool, clock: ManualClock) -> None:
    """After 3.7 s of standstill the missed ticks are counted and never read."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 5)
    before = source.reads[-1]
    clock.ms = before + 3700
    sampler.step()
    assert source.reads[-1] == before
    clock.ms = sampler.step()
    sampler.step()
    assert source.reads[-1] == before + 4000
    assert sampler.stats.skipped == {"late": 3}


def test_a_long_gap_ends_the_message_instead_of_filling_it(
    spool: Spool, clock: ManualClock
) -> None:
    """An hour of suspension does not become an hour of empty rows."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 6)
    clock.advance(3600)
    run_for(sampler, clock, 6)
    sampler.finish()
    assert max(m.header.ticks for m in messages(spool)) <= 4
    assert [t for m in messages(spool) for t in ticks_of(m)] == source.reads


def test_a_clock_that_goes_back_repeats_no_tick(spool: Spool, clock: ManualClock) -> None:
    """Ticks strictly increase; the wait is counted, said in an event, and ends."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 10)
    clock.advance(-5)
    run_for(sampler, clock, 15)
    sampler.finish()
    assert source.reads == sorted(set(source.reads))
    assert 4 <= sampler.stats.skipped["clock_back"] <= 6
    kinds = [r.kind for r in records(spool) if isinstance(r, Event)]
    assert kinds == ["clock_back"]
    assert [t for m in messages(spool) for t in ticks_of(m)] == source.reads


def test_a_clock_that_was_absurdly_ahead_does_not_silence_the_node(
    spool: Spool, clock: ManualClock
) -> None:
    """More than a day back: new streams begin, and sampling goes on."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 10)
    old = spool.streams["node-0"].id
    reads = len(source.reads)
    clock.advance(-3 * MAX_BACK_MS / 1000)
    run_for(sampler, clock, 10)
    assert len(source.reads) >= reads + 8
    assert spool.streams["node-0"].id != old


def test_a_restart_goes_on_with_the_stream_and_repeats_no_tick(
    tmp_path: Path, clock: ManualClock
) -> None:
    """The spool knows the numbers and the newest tick of the life before."""
    source = TinySource()
    spool = Spool(tmp_path / "s", 64 << 20, clock)
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 10)
    sampler.finish()
    spool.close()
    clock.advance(-3)
    spool = Spool(tmp_path / "s", 64 << 20, clock)
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 10)
    sampler.finish()
    assert source.reads == sorted(set(source.reads))
    heads = [m.header for m in messages(spool)]
    assert len({h.stream for h in heads}) == 1
    assert [h.seq for h in heads] == list(range(len(heads)))
    spool.close()


def test_a_change_of_generation_flushes_first(spool: Spool, clock: ManualClock) -> None:
    """No message mixes two driver epochs, also if the change came within a read."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 6)
    source.changes_during_read = True
    run_for(sampler, clock, 6)
    sampler.finish()
    epochs = [(t, m.header.driver_epoch) for m in messages(spool) for t in ticks_of(m)]
    change = source.reads[len(source.reads) // 2]
    assert [t for t, _ in epochs] == source.reads
    assert [e for _, e in epochs] == [22 if t < change else 23 for t, _ in epochs]


def test_a_reading_that_does_not_fit_the_inventory_is_a_hole(
    spool: Spool, clock: ManualClock
) -> None:
    """A source in the middle of a change cannot misattribute values."""
    source = TinySource(gpus=2)
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 3)
    source.gpus = 3
    run_for(sampler, clock, 2)
    assert sampler.stats.holes == {"the reading does not fit the inventory": 2}
    source.generation += 1
    run_for(sampler, clock, 6)
    assert messages(spool)[-1].header.gpus == 3


def test_the_inventory_is_announced_when_it_changes_and_every_ten_minutes(
    spool: Spool, clock: ManualClock
) -> None:
    """With the layout that the node's messages use."""
    source = TinySource()
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 2)
    source.generation += 1
    run_for(sampler, clock, 2)
    assert len(records(spool)) == 2
    for _ in range(2):
        clock.advance(INVENTORY_EVERY_MS / 1000)
        run_for(sampler, clock, 2)
    assert len(records(spool)) == 4
    first = records(spool)[0]
    assert isinstance(first, Inventory)
    assert parse_layout(first.layout).hash == LAYOUT.hash
    assert stored(spool)[0].topic == INVENTORY


def test_records_of_the_source_go_to_their_topics(spool: Spool, clock: ManualClock) -> None:
    """Events and meters under the key of their node or meter."""
    source = TinySource()
    event = Event(site="test", node="node-0", ts_ms=START, kind="xid", uuid="GPU-0-0", code=79)
    meter = MeterReading(site="test", meter="pdu-1", kind="pdu", ts_ms=START, watts=1.5)
    source.waiting = [event, meter]
    run_for(make(source, spool, clock), clock, 2)
    kept = {m.topic: (m.key, decode_record(m.topic, m.payload)) for m in stored(spool)}
    assert kept["events"] == ("node-0", event)
    assert kept["meters"] == ("pdu-1", meter)


def test_many_nodes_are_cut_apart_and_spread_over_the_flush_period(
    spool: Spool, clock: ManualClock
) -> None:
    """Each node gets its own values, at one of the ticks of the period."""
    source = TinySource(nodes=40, gpus=3)
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 21)
    sampler.finish()
    by_node: dict[int, dict[int, list[int]]] = {}
    for message in messages(spool):
        for tick, at in zip(ticks_of(message), range(message.header.ticks), strict=True):
            node = message.header.node
            by_node.setdefault(node, {})[tick] = column(message, POWER)[at * 3 : at * 3 + 3]
    assert len(by_node) == 40
    for n in range(40):
        mine = by_node[id64("test", f"node-{n}")]
        assert list(mine) == source.reads
        assert all(v == [power(t, 3 * n + g) for g in range(3)] for t, v in mine.items())
    last = {m.header.node: ticks_of(m)[-1] % 4000 for m in messages(spool)[:-40]}
    assert len(set(last.values())) == 4


def test_instances_travel_with_their_values(spool: Spool, clock: ManualClock) -> None:
    """MIG: (GPU, gi, ci) and one value per instance and tick; a change ends the message."""
    source = TinySource(gpus=1)
    source.instances = ((0, 1, 0), (0, 2, 0))
    sampler = make(source, spool, clock)
    run_for(sampler, clock, 2)
    source.instances = ((0, 1, 0),)
    run_for(sampler, clock, 2)
    sampler.finish()
    shapes = [(m.header.slices, m.instances[1]) for m in messages(spool)]
    assert set(shapes) == {(2, b"\x01\x02"), (1, b"\x01")}
    assert [t for m in messages(spool) for t in ticks_of(m)] == source.reads


def test_drops_are_reported_once_a_minute_as_events(tmp_path: Path, clock: ManualClock) -> None:
    """An event per reason with the number of messages since the last one."""
    spool = Spool(tmp_path / "s", 1 << 20, clock)
    source = TinySource(gpus=64)
    sampler = make(source, spool, clock, period_ms=1000, flush_ms=1000)
    seen: dict[int, Event] = {}
    for _ in range(45):
        run_for(sampler, clock, 10)
        seen |= {r.ts_ms: r for r in records(spool) if isinstance(r, Event)}
    events = list(seen.values())
    assert {e.kind for e in events} == {"spool_overflow"}
    assert 2 <= len(events) <= 1 + 450_000 // DROPS_EVERY_MS
    dropped = spool.drops["overflow"]
    assert 0 < sum(e.count for e in events) <= dropped
    assert messages(spool)[-1].header.dropped > 0
    spool.close()


def test_stopping_flushes_what_was_read(spool: Spool, clock: ManualClock) -> None:
    """The loop ends with everything in the spool."""
    source = TinySource()
    sampler = make(source, spool, clock)
    stop = threading.Event()
    source.on_read = lambda: stop.set() if len(source.reads) == 7 else None
    sampler.run(stop)
    assert [t for m in messages(spool) for t in ticks_of(m)] == source.reads
    assert len(source.reads) == 7
