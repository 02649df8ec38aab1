"""What `megawatch decode` prints of a message."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import wire
from pipeline.errors import Reject
from pipeline.show import show
from tests.messages import message
from tests.pipeline.test_wire import sealed


def test_a_message_is_shown_with_units_and_without_null_codes():
    """Header facts, one line per row, physical values."""
    text = show(message(seq=7))
    lines = text.split("\n")
    assert any(line.split() == ["seq", "7"] for line in lines)
    assert any(line.split() == ["first", "tick", "2026-11-18T11:06:40.000Z"] for line in lines)
    assert sum(line.startswith("1795000") for line in lines) == 8
    assert " 500.0 " in text
    assert "4294967295" not in text
    assert "-2147483648" not in text


def test_instances_are_shown_with_their_gpu():
    """MIG instances are part of a message."""
    part = wire.decode(message(instances=((1, 4, 2),)))
    text = show(wire.encode(part))
    (line,) = (
        x for x in text.split("\n") if x.startswith(f"{part.header.t0_ms}  ") and "  4  " in x
    )
    assert f"{part.gpu_ids[1]:016x}" in line


def test_a_backlog_message_says_so():
    """The lane is a word."""
    assert "backfill" in show(wire.with_lane(message(), 1))


@pytest.mark.parametrize("t0_ms", [-(2**63), -1, 10**15, 2**63 - 1])
def test_an_absurd_time_is_shown_not_choked_on(t0_ms):
    """The tool for looking at bad messages has to survive them."""
    part = wire.decode(message())
    raw = wire.encode(replace(part, header=replace(part.header, t0_ms=t0_ms)))
    assert str(t0_ms) in show(raw)


@given(st.binary(min_size=76, max_size=76))
def test_a_hostile_header_is_refused_or_shown(fields):
    """Never another exception."""
    raw = message()
    with pytest.raises(Reject):
        show(sealed(raw[:12] + fields + raw[88:]))


def test_noise_is_refused():
    """With the reason."""
    with pytest.raises(Reject, match="not a Megawatch message"):
        show(b"\x89PNG" * 40)
