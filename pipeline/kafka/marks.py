"""Marks as text: the metadata that Kafka keeps beside a committed offset.

    ""              everything below the offset is in the store
    "1:220"         version 1: an insert of [offset, offset + 220) may have happened
    "1:220:<runs>"  the same, without the messages that were found to be duplicates

Runs are lengths, kept and dropped in turn from the offset on, as LEB128 varints, deflated, in
base 85. That is at most about 1.4 bits a message whatever the pattern, so that a range of 20,000
messages always fits into what a broker accepts.
"""

import base64
import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from pipeline.errors import Refuse
from pipeline.leb128 import leb128
from pipeline.log import Mark

VERSION: Final = "1"
MAX_CHARS: Final = 4096
"""The broker's default of offset.metadata.max.bytes."""
MAX_SPAN: Final = 1 << 20
"""Messages of one insert, at most: what a reader unpacks is bounded by it."""

_DEFLATE: Final = -15  # raw deflate, without header and checksum


def encode_mark(mark: Mark) -> str:
    """The metadata of a mark; `dropped` is sorted and lies in [offset, end)."""
    if mark.end is None:
        return ""
    span = mark.end - mark.offset
    assert 0 <= span <= MAX_SPAN, f"a range of {span} messages"
    head = f"{VERSION}:{span}"
    if not mark.dropped:
        return head
    packer = zlib.compressobj(9, wbits=_DEFLATE)
    runs = b"".join(leb128(run) for run in _runs(mark.offset, mark.dropped))
    return f"{head}:{base64.b85encode(packer.compress(runs) + packer.flush()).decode()}"


def mark_fits(mark: Mark) -> bool:
    """Whether a broker takes the mark; if not, insert a shorter range."""
    if mark.end is not None and mark.end - mark.offset > MAX_SPAN:
        return False
    return len(encode_mark(mark)) <= MAX_CHARS


def decode_mark(offset: int, text: str) -> Mark:
    """The mark of a committed offset. Raises Refuse on what this version did not write."""
    if not text:
        return Mark(offset)
    version, _, rest = text.partition(":")
    if version != VERSION:
        raise Refuse(f"commit metadata {text[:40]!r} is not of version {VERSION}")
    span_text, _, runs = rest.partition(":")
    if not (span_text.isascii() and span_text.isdigit() and len(span_text) < 10):
        raise Refuse(f"commit metadata {text[:40]!r} has no length of a range")
    span = int(span_text)
    if span > MAX_SPAN:
        raise Refuse(f"commit metadata {text[:40]!r} spans more than {MAX_SPAN} messages")
    try:
        dropped = tuple(_dropped(offset, span, _unpack(runs))) if runs else ()
    except (ValueError, zlib.error) as error:
        raise Refuse(f"commit metadata {text[:40]!r} is damaged: {error}") from error
    return Mark(offset, offset + span, dropped)


def _runs(start: int, dropped: Iterable[int]) -> Iterator[int]:
    """Lengths of kept and dropped runs in turn."""
    at = start
    # Consecutive offsets keep their distance to their index.
    for _, group in itertools.groupby(enumerate(dropped), lambda pair: pair[1] - pair[0]):
        run = [offset for _, offset in group]
        assert run[0] >= at, "dropped offsets are sorted and lie in the range"
        yield run[0] - at
        yield len(run)
        at = run[-1] + 1


def _dropped(offset: int, span: int, runs: Iterable[int]) -> Iterator[int]:
    at, end = offset, offset + span
    for run, is_dropped in zip(runs, itertools.cycle((False, True)), strict=False):
        if at + run > end:
            raise ValueError("runs are longer than the range")
        if is_dropped:
            yield from range(at, at + run)
        at += run


def _unpack(text: str) -> Iterator[int]:
    unpacker = zlib.decompressobj(wbits=_DEFLATE)
    packed = unpacker.decompress(base64.b85decode(text), 2 * MAX_SPAN)
    if not unpacker.eof:
        raise ValueError("cut off")
    value = shift = 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if shift > 35:
            raise ValueError("a run is too long")
        if byte < 128:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("the last run is cut off")
