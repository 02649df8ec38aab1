"""A message says what was put into it, and anything else is refused with a reason."""

import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import decode, wire
from pipeline.catalog import FAST
from pipeline.errors import Reject
from pipeline.holders import NOBODY
from pipeline.wire import CRC_FROM, HEADER, LAYOUT, Column, Layout
from tests.messages import message
from tests.random_messages import random_message

seeds = st.integers(0, 2**32)


@given(seeds)
def test_what_was_encoded_is_decoded(seed):
    """Header, ids, every column, and instances, for any shape and values."""
    sent = random_message(random.Random(seed))
    assert wire.decode(wire.encode(sent)) == sent


@given(seeds)
def test_the_size_follows_from_the_shape(seed):
    """So a reader knows from the header alone whether a message is whole."""
    sent = random_message(random.Random(seed))
    head = sent.header
    assert len(wire.encode(sent)) == LAYOUT.size(head.ticks, head.gpus, head.slices)


@given(seeds, st.data())
def test_a_damaged_message_is_refused(seed, data):
    """Any flipped bit but those of the lane and the reserved bytes is noticed."""
    raw = bytearray(wire.encode(random_message(random.Random(seed))))
    at = data.draw(st.integers(0, len(raw) - 1).filter(lambda i: i not in (5, 6, 7)))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Reject):
        wire.decode(bytes(raw))


@given(seeds, st.data())
def test_a_truncated_or_overlong_message_is_refused(seed, data):
    """Each length but the right one."""
    raw = wire.encode(random_message(random.Random(seed)))
    cut = data.draw(st.integers(0, len(raw) - 1))
    for bad in (raw[:cut], raw + bytes(cut + 1)):
        with pytest.raises(Reject):
            wire.decode(bad)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(raw):
    """Never another exception."""
    with pytest.raises(Reject):
        wire.decode(raw)


@given(seeds, st.binary(min_size=HEADER.size - CRC_FROM, max_size=HEADER.size - CRC_FROM))
def test_a_hostile_header_with_a_right_checksum_is_refused_or_read(seed, fields):
    """Somebody who can compute a checksum cannot crash a reader."""
    raw = wire.encode(random_message(random.Random(seed)))
    with pytest.raises(Reject):
        wire.decode(sealed(raw[:CRC_FROM] + fields + raw[HEADER.size :]))


def sealed(raw: bytes) -> bytes:
    """The message with a checksum that fits it."""
    return raw[:8] + zlib.crc32(raw[CRC_FROM:]).to_bytes(4, "little") + raw[CRC_FROM:]


def test_the_lane_is_set_on_shipping_and_breaks_no_checksum():
    """A spooled message is marked as backlog without being encoded again."""
    late = wire.with_lane(message(), 1)
    assert wire.read_header(late).lane == 1
    assert wire.with_lane(late, 0) == message()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "truncated: 0 bytes, a header alone has 88"),
        (b"{}" * 50, r"not a Megawatch message: begins with b'{}{}'"),
        (message()[:4] + b"\x07" + message()[5:], "unknown version 7, this build reads version"),
        (message()[:-1], "truncated"),
        (message()[:-1] + b"\xfe", "corrupt: the checksum does not match"),
    ],
)
def test_the_reason_names_what_is_wrong(raw, reason):
    """The dead letter's reason is read by a person."""
    with pytest.raises(Reject, match=reason):
        wire.read_header(raw)


names = st.text("abcdefghij_", min_size=1, max_size=8)
storages = st.sampled_from(("u1", "u2", "u4", "u8", "i2", "i4"))
columns = st.builds(Column, names, storages, st.integers(0, 6), st.just(""))
blocks = st.lists(columns, max_size=5, unique_by=lambda c: c.name).map(tuple)


@given(blocks, blocks, blocks)
def test_a_layout_is_known_by_its_description(fast, slow, slices):
    """The description that is published gives the very layout, and so the hash."""
    layout = Layout(wire.ROW + fast, slow, slices)
    again = wire.parse_layout(layout.describe())
    assert again == layout
    assert again.hash == layout.hash


of_catalogue = st.one_of(
    st.sampled_from(LAYOUT.fast + LAYOUT.slow + LAYOUT.slices),
    st.builds(
        Column, st.sampled_from(("power_w", "power_instant_w", "temp_gpu_c", "dt_ms", "x")),
        storages, st.integers(0, 3), st.sampled_from(("", *wire.BASES)),
    ),
)  # fmt: skip
mixed = st.lists(of_catalogue, max_size=6).map(tuple)


@given(mixed, mixed, mixed, seeds)
def test_any_layout_that_is_accepted_can_be_read(fast, slow, slices, seed):
    """Announced by whomever: refused when it is announced, or its messages are rows."""
    try:
        layout = wire.parse_layout(Layout(wire.ROW + fast, slow, slices).describe())
    except Reject:
        return
    sent = random_message(random.Random(seed), layout)
    raw = wire.encode(sent, layout)
    assert wire.decode(raw, layout) == sent
    layouts = {layout.hash: layout}
    checked = decode.check([raw], [sent.header.t0_ms], layouts)
    assert not checked.rejects
    found = decode.decode([raw], checked.headers, layouts, NOBODY)
    if found.samples:
        assert {m.name for m in FAST} < set(found.samples)


@given(st.one_of(st.text(), st.text("fast=low;slice:u1,0_", max_size=60)))
def test_what_is_not_a_layout_is_refused(text):
    """Inventory carries layouts written by others."""
    with pytest.raises(Reject):
        wire.parse_layout(text)


def test_a_layout_without_the_row_columns_is_refused():
    """Rows without dt_ms cannot be stored, and a row of no bytes has no bound on its number."""
    for fast in ((), LAYOUT.fast[1:], (LAYOUT.fast[1], LAYOUT.fast[0], LAYOUT.fast[2])):
        with pytest.raises(Reject, match="does not begin with dt_ms, flags, energy_kind"):
            wire.parse_layout(Layout(fast, LAYOUT.slow, LAYOUT.slices).describe())


def test_columns_that_do_not_fit_the_header_are_a_programming_error():
    """An agent never sends what nobody can read."""
    sent = random_message(random.Random(1))
    with pytest.raises(AssertionError):
        wire.encode(replace(sent, slow=(sent.slow[0] + b"\0", *sent.slow[1:])))
