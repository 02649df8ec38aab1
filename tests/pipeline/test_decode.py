"""Thousands at once read the same as one at a time, and nothing hostile gets through or crashes."""

import random
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import decode, wire
from pipeline.bench.load import Fleet
from pipeline.catalog import FAST, SLICE, SLOW
from pipeline.holders import NOBODY
from pipeline.wire import CRC_FROM, HEADER, LAYOUT, Layout, Message
from tests.messages import T0_MS, message
from tests.pipeline.test_wire import sealed
from tests.random_messages import random_message, values

LAYOUTS = {LAYOUT.hash: LAYOUT}
FAR_MS = T0_MS + 10**9
seeds = st.integers(0, 2**32)


def read(raws, layouts=LAYOUTS, at_ms=FAR_MS):
    checked = decode.check(raws, [at_ms] * len(raws), layouts)
    good = [raws[i] for i in checked.positions]
    return checked, decode.decode(good, checked.headers, layouts, NOBODY)


def table(block) -> list[tuple[int, ...]]:
    """A block as sorted rows, its columns in the order of their names."""
    return sorted(zip(*(block[name].tolist() for name in sorted(block)), strict=True))


def expected(messages):
    """The rows of messages, by the plainest code that there is."""
    samples, health, slices = [], [], []
    for m in messages:
        head = m.header
        who = {"node": head.node, "site": head.site, "stream": head.stream, "seq": head.seq}
        fast = {c.name: values(c, raw) for c, raw in zip(LAYOUT.fast, m.fast, strict=True)}
        slow = {c.name: values(c, raw) for c, raw in zip(LAYOUT.slow, m.slow, strict=True)}
        part = {c.name: values(c, raw) for c, raw in zip(LAYOUT.slices, m.slices, strict=True)}
        for tick in range(head.ticks):
            ts = head.t0_ms + tick * head.period_ms
            for g, gpu in enumerate(m.gpu_ids):
                row = {name: column[tick * head.gpus + g] for name, column in fast.items()}
                if row["dt_ms"]:
                    row["dt_ms"] = min(row["dt_ms"], 2 * head.period_ms)
                    samples.append(who | row | {"gpu": gpu, "ts": ts, "tenant": 0, "workload": 0})
            for s, (g, gi, ci) in enumerate(zip(*m.instances, strict=True)):
                if fast["dt_ms"][tick * head.gpus + g]:
                    row = {name: column[tick * head.slices + s] for name, column in part.items()}
                    slices.append(who | row | {"gpu": m.gpu_ids[g], "ts": ts, "gi": gi, "ci": ci})
        epochs = {"boot_epoch": head.boot_epoch, "driver_epoch": head.driver_epoch}
        for g, gpu in enumerate(m.gpu_ids):
            if any(fast["dt_ms"][g :: head.gpus]):
                row = {name: column[g] for name, column in slow.items()}
                health.append(who | epochs | row | {"gpu": gpu, "ts": head.t0_ms})
    return samples, health, slices


def rows_of(dicts):
    return sorted(tuple(row[name] for name in sorted(row)) for row in dicts)


@given(st.lists(seeds, max_size=12))
@settings(deadline=None)
def test_a_batch_of_any_shapes_reads_as_its_messages_do(some):
    """Value by value, null codes and holes and instances included."""
    sent = [random_message(random.Random(seed)) for seed in some]
    raws = [wire.encode(m) for m in sent]
    checked, found = read(raws)
    assert not checked.rejects
    assert [wire.decode(raw) for raw in raws] == sent
    for block, want in zip(
        (found.samples, found.health, found.slices), expected(sent), strict=True
    ):
        assert table(block) == rows_of(want)


def test_every_metric_of_the_catalogue_arrives_in_its_storage_type():
    """What the insert relies on."""
    _, found = read([message(instances=((0, 1, 0),))])
    for metrics, block in ((FAST, found.samples), (SLOW, found.health), (SLICE, found.slices)):
        for metric in metrics:
            assert block[metric.name].dtype == np.dtype(metric.storage)


def test_samples_come_in_the_order_of_the_table():
    """By GPU, then by time, holes and a stream's next message included: sorting costs no more."""
    hole = {"dt_ms": [1000, 0] * 8}
    _, found = read(
        [
            message(node, k, T0_MS + k * 4000, gpus=4, values=hole if k == 1 else {})
            for k in range(3)
            for node in ("n1", "n2", "n3")
        ]
    )
    rows = list(zip(found.samples["gpu"].tolist(), found.samples["ts"].tolist(), strict=True))
    assert rows == sorted(set(rows))
    assert len(rows) == 3 * 16 * 3 - 3 * 8


def test_an_empty_batch_is_nothing():
    """Also one whose messages are all bad."""
    for raws in ([], [b"", b"x" * 200]):
        checked, found = read(raws)
        assert len(checked.rejects) == len(raws)
        assert (found.samples, found.health, found.slices) == ({}, {}, {})


def judged(raws, at_ms=FAR_MS):
    """Reads a batch; every message is either read or rejected with a reason."""
    checked, found = read(raws, at_ms=at_ms)
    bad = {i for i, reason in checked.rejects if reason}
    assert bad | set(checked.positions) == set(range(len(raws)))
    assert not bad & set(checked.positions)
    return checked, found


@given(seeds, st.data())
@settings(deadline=None)
def test_damage_is_rejected_and_its_neighbours_are_read(seed, data):
    """Flipped bits, cuts, additions, noise."""
    good = wire.encode(random_message(random.Random(seed)))
    at = data.draw(st.integers(8, len(good) - 1))
    bad = [
        good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :],
        good[: data.draw(st.integers(0, len(good) - 1))],
        good + b"\0",
        data.draw(st.binary(max_size=200)),
    ]
    checked, found = judged([bad[0], good, *bad[1:]])
    assert checked.positions == [1]
    assert table(found.samples) == table(read([good])[1].samples)


FIELDS = {
    "version": (4, "B"), "length": (12, "<I"), "layout": (16, "<Q"), "site": (24, "<Q"),
    "node": (32, "<Q"), "stream": (40, "<Q"), "seq": (48, "<Q"), "t0_ms": (56, "<q"),
    "period_ms": (64, "<I"), "ticks": (68, "<H"), "gpus": (70, "<H"), "slices": (72, "<H"),
}  # fmt: skip
EXTREMES = {
    "B": (0, 255), "<H": (0, 1, 65535), "<I": (0, 1, 2**31, 2**32 - 1), "<Q": (0, 2**63, 2**64 - 1),
    "<q": (-(2**63), -1, 0, 253_402_300_799_999, 2**62, 2**63 - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_hostile_field_with_a_right_checksum_neither_crashes_nor_lands_in_another_age(name):
    """Extreme numbers in every field of the header."""
    offset, code = FIELDS[name]
    good = message(instances=((0, 1, 0),))
    raws = []
    for value in EXTREMES[code]:
        raw = bytearray(good)
        struct.pack_into(code, raw, offset, value)
        raws.append(sealed(bytes(raw)))
    _, found = judged([*raws, good], at_ms=2**62)
    ts = found.samples["ts"]
    assert ts.min() >= decode.OLDEST_MS
    assert ts.max() < decode.NEWEST_MS + 65536 * decode.MAX_PERIOD_MS


@given(seeds, st.lists(st.sampled_from(sorted(FIELDS)), min_size=2, max_size=2, unique=True))
@settings(deadline=None)
def test_swapped_fields_with_a_right_checksum_are_judged(seed, pair):
    """A writer that confuses fields cannot crash the reader."""
    raw = bytearray(wire.encode(random_message(random.Random(seed))))
    (a, code_a), (b, code_b) = (FIELDS[name] for name in pair)
    size = min(struct.calcsize(code_a), struct.calcsize(code_b))
    raw[a : a + size], raw[b : b + size] = raw[b : b + size], raw[a : a + size]
    judged([sealed(bytes(raw))])


@given(seeds, st.binary(min_size=HEADER.size - CRC_FROM, max_size=HEADER.size - CRC_FROM))
@settings(deadline=None)
def test_any_header_with_a_right_checksum_is_judged(seed, fields):
    """Seventy-six bytes of anything."""
    raw = wire.encode(random_message(random.Random(seed)))
    judged([sealed(raw[:CRC_FROM] + fields + raw[HEADER.size :])])


@given(seeds, st.data())
@settings(deadline=None)
def test_any_body_with_a_right_checksum_becomes_rows_that_can_be_stored(seed, data):
    """Huge dt, unknown energy kinds, instances of GPUs that are not there."""
    sent = random_message(random.Random(seed))
    raw = wire.encode(sent)
    body = random.Random(data.draw(seeds)).randbytes(len(raw) - HEADER.size)
    _, found = judged([sealed(raw[: HEADER.size] + body)])
    if found.samples:
        assert found.samples["dt_ms"].min() > 0
        assert found.samples["dt_ms"].max() <= 2 * sent.header.period_ms
        assert found.samples["energy_kind"].max() <= 2
    if found.slices:
        ids = set(np.frombuffer(body, "<u8", sent.header.gpus).tolist())
        assert set(found.slices["gpu"].tolist()) <= ids


def test_an_instance_of_a_gpu_that_is_not_there_has_no_rows():
    """Its memory is not another GPU's."""
    part = wire.decode(message(instances=((0, 1, 0), (1, 2, 0))))
    raw = wire.encode(replace(part, instances=(bytes((0, 9)), *part.instances[1:])))
    _, found = read([raw])
    assert set(found.slices["gi"].tolist()) == {1}


def test_a_message_ahead_of_the_brokers_clock_is_quarantined():
    """Five minutes are forgiven, more is not; an hour of the past is always read."""
    for ahead_s, good in ((-3600, True), (0, True), (290, True), (310, False)):
        checked, _ = read([message(t0_ms=T0_MS + ahead_s * 1000)], at_ms=T0_MS)
        assert bool(checked.positions) == good
        assert good or "s ahead of the broker's clock" in checked.rejects[0][1]


def test_unknown_columns_are_skipped_and_missing_ones_are_null():
    """A node of another version is read as far as both know the same."""
    shoe = wire.Column("shoe_size", "u2", 0)
    other = Layout((*LAYOUT.fast[:5], shoe), (), ())
    part = wire.decode(message())
    raw = wire.encode(replace(part, fast=(*part.fast[:5], bytes(16)), slow=(), slices=()), other)
    _, found = read([raw], {other.hash: other})
    assert "shoe_size" not in found.samples
    assert set(found.samples["power_w"].tolist()) == {5000}
    null = next(m for m in FAST if m.name == "util_gpu_pct").null_code
    assert set(found.samples["util_gpu_pct"].tolist()) == {null}


@pytest.mark.parametrize(("storage", "decimals"), [("i4", 0), ("i4", 3), ("i2", 1)])
def test_a_metric_of_another_type_or_scale_is_null_not_wrong(storage, decimals):
    """Five hundred watts with other decimals would be fifty or five thousand."""
    power = wire.Column("power_w", storage, decimals)
    other = Layout((*wire.ROW, power), (), ())
    part = wire.decode(message())
    size = 4 if storage == "i4" else 2
    raw = wire.encode(
        replace(part, fast=(*part.fast[:3], b"\x11" * 8 * size), slow=(), slices=()), other
    )
    _, found = read([raw], {other.hash: other})
    null = next(m for m in FAST if m.name == "power_w").null_code
    assert set(found.samples["power_w"].tolist()) == {null}


def test_a_fleets_messages_are_byte_for_byte_the_encoders():
    """So a bench measures what agents send."""
    rng = np.random.default_rng(5)
    nodes, gpus, ticks = 3, 4, 4

    class Reading:
        def __init__(self) -> None:
            count = nodes * gpus
            self.fast = [rng.integers(0, 100, count).astype(c.storage) for c in LAYOUT.fast]
            self.slow = [rng.integers(0, 100, count).astype(c.storage) for c in LAYOUT.slow]

    readings = [Reading() for _ in range(ticks)]
    ids = rng.integers(0, 2**63, (nodes, gpus), dtype=np.uint64)
    fleet = Fleet(7, np.array([11, 12, 13], np.uint64), ids)
    for seq in range(2):
        made = fleet.messages(readings, T0_MS, slice(1, 3))
        assert len(made) == 2
        for raw, node in zip(made, (1, 2), strict=True):
            head = wire.read_header(raw)
            assert (head.site, head.node, head.seq) == (7, 11 + node, seq)
            mine = slice(node * gpus, (node + 1) * gpus)
            again = Message(
                head,
                tuple(ids[node].tolist()),
                (b"", b"", b""),
                tuple(
                    b"".join(r.fast[i][mine].tobytes() for r in readings)
                    for i in range(len(LAYOUT.fast))
                ),
                tuple(readings[-1].slow[i][mine].tobytes() for i in range(len(LAYOUT.slow))),
                (b"",) * len(LAYOUT.slices),
            )
            assert wire.encode(again) == raw
