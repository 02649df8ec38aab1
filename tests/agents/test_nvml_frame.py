"""Frames between the agent and its NVML child."""

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import nvml_frame as frames

kinds = st.integers(frames.IDENTITY, frames.PROBLEM)
said = st.lists(st.tuples(kinds, st.binary(max_size=200)), max_size=8)
numbers = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=40)


@given(said, st.integers(1, 64))
def test_frames_come_out_as_they_went_in_however_the_pipe_cuts_them(
    sent: list[tuple[int, bytes]], portion: int
) -> None:
    stream = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    buffer = bytearray()
    heard: list[tuple[int, bytes]] = []
    for at in range(0, len(stream), portion):
        buffer += stream[at : at + portion]
        heard += frames.split(buffer)
    assert heard == sent
    assert not buffer


@given(st.binary(max_size=100))
def test_noise_is_refused_or_waited_for_but_never_a_surprise(noise: bytes) -> None:
    buffer = bytearray(noise)
    try:
        heard = frames.split(buffer)
    except ValueError:
        return
    assert sum(frames.FRAME.size + len(payload) for _, payload in heard) <= len(noise)


@pytest.mark.parametrize("head", [(1 << 30, frames.READING), (0, 0), (0, 99)])
def test_a_frame_too_large_or_of_no_kind_is_refused(head: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no frame"):
        frames.split(bytearray(frames.FRAME.pack(*head)))


@given(st.integers(0, 1 << 62), st.binary(max_size=16), numbers, numbers)
def test_a_reading_survives_the_way(
    tick_ms: int, status: bytes, fast: list[int], slices: list[int]
) -> None:
    payload = frames.pack_reading(tick_ms, status, array("q", fast), array("q", slices))
    assert frames.unpack_reading(payload) == (tick_ms, status, array("q", fast), array("q", slices))


def test_a_reading_is_laid_out_as_written_down() -> None:
    payload = frames.pack_reading(5, b"\x00\x0f", array("q", [1, -1]), array("q", [7]))
    assert payload == struct.pack("<qHHBBqqq", 5, 2, 1, 0, 15, 1, -1, 7)


def test_a_wish_survives_the_way() -> None:
    wish = frames.Wish(["a", "b"], ["c"], [], 1000, 10_000)
    again = frames.Wish.parse(wish.line())
    assert wish.line().count(b"\n") == 1
    assert [getattr(again, name) for name in frames.Wish.__slots__] == [
        getattr(wish, name) for name in frames.Wish.__slots__
    ]
