"""Kafka without a broker: settings become options, marks become text and come back."""

import base64
import contextlib
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refuse
from pipeline.kafka import (
    MAX_CHARS,
    MAX_SPAN,
    client_options,
    codec,
    decode_mark,
    encode_mark,
    mark_fits,
)
from pipeline.kafka.consumer import consumer_options
from pipeline.kafka.producer import producer_options
from pipeline.log import Mark
from pipeline.settings import Kafka


@st.composite
def marks(draw: st.DrawFn) -> Mark:
    """Any mark that a pipeline may commit."""
    offset = draw(st.integers(0, 2**62))
    if draw(st.booleans()):
        return Mark(offset)
    span = draw(st.integers(0, 3000))
    dropped = draw(st.sets(st.integers(0, span - 1))) if span else set()
    return Mark(offset, offset + span, tuple(sorted(offset + d for d in dropped)))


@given(marks())
def test_marks_come_back_as_they_were(mark: Mark) -> None:
    """Encoding and decoding are inverse, and a broker takes the text."""
    text = encode_mark(mark)
    assert decode_mark(mark.offset, text) == mark
    assert text.isascii()
    assert mark_fits(mark)


@given(st.text() | st.from_regex(r"1:\d{0,12}(:[!-~]{0,40})?", fullmatch=True), st.integers(0, 99))
def test_any_text_is_a_mark_or_refused(text: str, offset: int) -> None:
    """Whatever lies at the broker, the answer is a mark within bounds or one sentence."""
    try:
        mark = decode_mark(offset, text)
    except Refuse as error:
        assert "commit metadata" in str(error)
        return
    assert mark.offset == offset
    if mark.end is not None:
        assert offset <= mark.end <= offset + MAX_SPAN
        assert all(offset <= d < mark.end for d in mark.dropped)
        assert list(mark.dropped) == sorted(set(mark.dropped))


def test_the_text_of_marks_is_stable() -> None:
    """What one release committed the next one reads: the bytes themselves are the contract."""
    assert encode_mark(Mark(5)) == ""
    assert encode_mark(Mark(5, 225)) == "1:220"
    assert encode_mark(Mark(100, 300, (100, 101, 150, 299))) == GOLDEN
    assert decode_mark(100, GOLDEN) == Mark(100, 300, (100, 101, 150, 299))


GOLDEN = "1:200:V_-61oWjTm00"


def test_the_worst_pattern_of_20000_messages_fits() -> None:
    """Every second message a duplicate, and duplicates at random: both fit into the metadata."""
    assert mark_fits(Mark(0, 20_000, tuple(range(0, 20_000, 2))))
    state, scattered = 1, []
    for offset in range(20_000):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        if state >> 63:
            scattered.append(offset)
    assert len(encode_mark(Mark(0, 20_000, tuple(scattered)))) <= MAX_CHARS
    assert not mark_fits(Mark(0, MAX_SPAN + 1))


def test_a_bomb_is_refused() -> None:
    """Runs that unpack to more than any range may hold are damage, and cost no memory."""
    packer = zlib.compressobj(9, wbits=-15)
    bomb = base64.b85encode(packer.compress(b"\0" * (64 << 20)) + packer.flush()).decode()
    with pytest.raises(Refuse, match="damaged"):
        decode_mark(0, f"1:10:{bomb}")


def test_plain_settings_become_options() -> None:
    """Addresses are split; nothing of TLS or SASL is set."""
    options = client_options(Kafka(bootstrap=" a:9092, b:9093 "))
    assert options["bootstrap_servers"] == ["a:9092", "b:9093"]
    assert options["security_protocol"] == "PLAINTEXT"
    assert not [name for name in options if name.startswith(("ssl", "sasl"))]


def test_tls_and_sasl_become_options_and_the_secret_stays_hidden(tmp_path: Path) -> None:
    """The password is read from its file and does not show in a printed option."""
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    (tmp_path / "password").write_text("hunter2\n")
    kafka = Kafka(
        bootstrap="a:9093",
        security_protocol="SASL_SSL",
        ssl_cafile=str(tmp_path / "ca.pem"),
        ssl_certfile=str(tmp_path / "cert.pem"),
        ssl_keyfile=str(tmp_path / "key.pem"),
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="agent",
        sasl_password_file=str(tmp_path / "password"),
    )
    options = client_options(kafka)
    assert options["ssl_cafile"] == str(tmp_path / "ca.pem")
    assert options["ssl_check_hostname"] is True
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["sasl_plain_username"] == "agent"
    assert options["sasl_plain_password"] == "hunter2"
    assert "hunter2" not in repr(options)
    assert "hunter2" not in f"{options}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bootstrap": ""}, "bootstrap is empty"),
        ({"security_protocol": "TLS"}, "security_protocol='TLS': valid are PLAINTEXT, SSL"),
        ({"security_protocol": "SSL", "ssl_cafile": "/no/such"}, "ssl_cafile: there is no file"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism='': valid are PLAIN"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_password": "x"},
            "sasl_username is empty",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "x"},
            "sasl_password_file is empty",
        ),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict[str, str], sentence: str) -> None:
    """Refuse names the key, the value and what is valid."""
    with pytest.raises(Refuse, match=r"\[kafka\]") as caught:
        client_options(msgspec.convert({"bootstrap": "a:9092"} | settings, Kafka))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    """Half of a client certificate is a mistake."""
    (tmp_path / "key.pem").write_text("x")
    with pytest.raises(Refuse, match="ssl_keyfile is given without ssl_certfile"):
        client_options(
            Kafka(bootstrap="a", security_protocol="SSL", ssl_keyfile=str(tmp_path / "key.pem"))
        )


def test_what_exactly_once_rests_on_is_set() -> None:
    """Durable, idempotent, compressed sending; commits and positions only of our own making."""
    kafka = Kafka(bootstrap="a:9092", session_timeout_ms=9000)
    sending = producer_options(kafka, "agent", 30.0)
    assert (sending["acks"], sending["enable_idempotence"]) == ("all", True)
    assert (sending["compression_type"], sending["linger_ms"]) == ("zstd", 0)
    reading = consumer_options(kafka, "pipeline")
    assert reading["enable_auto_commit"] is False
    assert reading["auto_offset_reset"] == "none"
    assert reading["heartbeat_interval_ms"] * 3 <= reading["session_timeout_ms"] == 9000
    for options in (sending, reading):
        assert options["allow_auto_create_topics"] is False


@given(st.binary(max_size=5000))
def test_batches_survive_compression(content: bytes) -> None:
    """Ours and those of clients that stream, without a length in the header, are read alike."""
    assert codec.decompress(codec.compress(content)) == content
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    assert codec.decompress(streamed) == content


@given(st.binary(max_size=200))
def test_damaged_batches_are_told(packed: bytes) -> None:
    """Any bytes are content or a CorruptRecordError."""
    from kafka.errors import CorruptRecordError

    with contextlib.suppress(CorruptRecordError):
        assert isinstance(codec.decompress(packed), bytes)


def test_a_batch_that_claims_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a claimed nor a hidden length makes a reader take more memory than the bound."""
    from kafka.errors import CorruptRecordError

    monkeypatch.setattr(codec, "MAX_UNPACKED_BYTES", 10_000)
    for with_size in (True, False):
        packer = zstandard.ZstdCompressor(write_content_size=with_size)
        with pytest.raises(CorruptRecordError, match="more than 10000"):
            codec.decompress(packer.compress(bytes(10_001)))


def test_the_client_compresses_with_kept_contexts() -> None:
    """Guards the replacement against a client that calls its codec by another name."""
    from kafka.record import MemoryRecords, MemoryRecordsBuilder, default_records

    builder = MemoryRecordsBuilder(2, 4, 1 << 16)
    builder.append(None, b"key", bytes(1000), [])
    builder.close()
    used: list[int] = []

    def counted(payload: bytes) -> bytes:
        used.append(len(payload))
        return codec.decompress(payload)

    assert default_records.zstd_decode is codec.decompress
    assert default_records.zstd_encode is codec.compress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default_records, "zstd_decode", counted)
        records = [r for batch in MemoryRecords(bytes(builder.buffer())) for r in batch]
    assert [r.value for r in records] == [bytes(1000)]
    assert len(used) == 1
