"""Record batches, read by ours as the client reads them; whatever is broken is told."""

import struct
from collections.abc import Sequence

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.produce import record_batch
from pipeline.kafka.batches import batches
from pipeline.log import LogRecord

Message = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]
_headers = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=2)
_messages = st.lists(
    st.tuples(
        st.integers(0, 2**41),
        st.none() | st.binary(max_size=300),
        st.none() | st.binary(max_size=20_000),
        _headers,
    ),
    min_size=1,
    max_size=6,
)


def built(messages: Sequence[Message], codec: int, offset: int = 0) -> bytes:
    """A batch as the client makes it."""
    from kafka.record import MemoryRecordsBuilder

    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=1 << 24,
                                   offset=offset)  # fmt: skip
    for at_ms, key, value, headers in messages:
        builder.append(timestamp=at_ms, key=key, value=value, headers=headers)
    builder.close()
    return bytes(builder.buffer())


def by_client(raw: bytes) -> list[LogRecord]:
    """What the client itself reads."""
    from kafka.record import MemoryRecords

    out, records = [], MemoryRecords(raw)
    while (batch := records.next_batch()) is not None:
        assert batch.validate_crc()
        out += [LogRecord(r.offset, r.timestamp, r.key or b"", r.value or b"") for r in batch]
    return out


@given(st.lists(_messages, min_size=1, max_size=3), st.sampled_from([0, 1, 3, 4]))
def test_both_readers_agree(groups: list[list[Message]], codec: int) -> None:
    """Null and empty are the same to us, headers are skipped, in every codec that is installed."""
    raw, offset = b"", 0
    for group in groups:
        raw += built(group, codec, offset)
        offset += len(group)
    assert [r for b in batches(raw) for r in b.records] == by_client(raw)
    assert [b.next_offset for b in batches(raw)][-1] == offset


@given(_messages, st.integers(0, 200))
def test_a_batch_that_is_cut_off_comes_with_the_next_fetch(group: list[Message], cut: int) -> None:
    """What a fetch could not hold is neither an error nor half a batch."""
    whole, torn = built(group, 4), built(group, 4, len(group))
    assert [len(b.records) for b in batches(whole + torn[: min(cut, len(torn) - 1)])] == [
        len(group)
    ]


@given(_messages, st.data())
def test_a_flipped_bit_is_told(group: list[Message], data: st.DataObject) -> None:
    """Everything behind the frame and the leader's epoch is under the checksum."""
    from kafka.errors import CorruptRecordError

    raw = bytearray(built(group, 4))
    at = data.draw(st.integers(16, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptRecordError):
        list(batches(bytes(raw)))


@given(st.binary(max_size=400), st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(-2, 1000))
def test_hostile_batches_with_a_good_checksum(body: bytes, codec: int, count: int) -> None:
    """A reader may refuse them, with the one error that the client knows."""
    from kafka.errors import CorruptRecordError

    checked = struct.pack(">hiqqqhii", codec, 0, 0, 0, -1, -1, -1, count) + body
    rest = struct.pack(">ibI", 0, 2, crc32c(checked)) + checked
    try:
        found = list(batches(struct.pack(">qi", 7, len(rest)) + rest))
    except CorruptRecordError as error:
        assert "offset 7" in str(error)
    else:
        assert len(found) == 1


@pytest.mark.parametrize("magic", [0, 1, 3])
def test_other_formats_are_told(magic: int) -> None:
    """A broker of our time keeps nothing else."""
    from kafka.errors import CorruptRecordError

    raw = bytearray(built([(1, b"k", b"v", [])], 0))
    raw[16] = magic
    with pytest.raises(CorruptRecordError, match=f"message format {magic}, not 2"):
        list(batches(bytes(raw)))


def test_control_batches_are_stepped_over() -> None:
    """The marks of transactions take an offset, and say nothing."""
    checked = struct.pack(">hiqqqhii", 0x30, 0, 5, 5, 9, 0, 0, 1) + b"\x10\0\0\0\x08\0\0\0\0\0\0"
    rest = struct.pack(">ibI", 3, 2, crc32c(checked)) + checked
    assert list(batches(struct.pack(">qi", 7, len(rest)) + rest)) == [(8, 3, [])]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(min_size=1)), min_size=1))
def test_the_benchs_batches_are_kafkas(pairs: list[tuple[bytes, bytes]]) -> None:
    """What the fleet writes by hand, the client reads."""
    raw = record_batch([k for k, _ in pairs], [v for _, v in pairs], 1_790_000_000_000)
    expected = [LogRecord(i, 1_790_000_000_000, k, v) for i, (k, v) in enumerate(pairs)]
    assert by_client(raw) == expected == [r for b in batches(raw) for r in b.records]
