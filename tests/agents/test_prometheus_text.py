"""The text format 0.0.4: what is it, what is not, and nothing but Reject for the latter."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.prometheus_text import Sample, parse
from pipeline.errors import Reject


def test_every_form_of_a_line() -> None:
    """Labels, escapes, spaces, trailing comma, timestamps, infinities, comments."""
    page = (
        b'# HELP a b {} " \\\n# TYPE a gauge\n\n# anything\r\n'
        b"a 1\n"
        b"a{} -2.5e3 1758682623946\r\n"
        b'\ta:b_c { x = "y" , z="q\\"u\\\\o\\nte{}," , }\t+Inf \n'
        b'a{x=""} NaN -1\n'
        b"a .5\n"
    )
    found = parse(page)
    assert found[:3] == [
        Sample("a", {}, 1.0, None),
        Sample("a", {}, -2500.0, 1758682623946),
        Sample("a:b_c", {"x": "y", "z": 'q"u\\o\nte{},'}, math.inf, None),
    ]
    assert math.isnan(found[3].value)
    assert found[4].value == 0.5
    assert parse(b"") == []


@pytest.mark.parametrize(
    "line",
    [
        "a", "a ", "1a 1", "a 1 2 3", "a x", "a 1 x", "a 1 1.5", "a{ 1", 'a{x="y" 1', "a{x=y} 1",
        'a{x="y",x="z"} 1', 'a{x="\\t"} 1', "a{,} 1", 'a{x="y"z="w"} 1', "a 1_000", "a 0x10", "é 1",
        'a{x="y"}', 'a{x="y\n"} 1', "a 1e", "a infinity1", '{x="y"} 1',
    ],
)  # fmt: skip
def test_what_is_no_line(line: str) -> None:
    """Named by its number, quoted short."""
    with pytest.raises(Reject, match="line 2: "):
        parse(f"b 1\n{line}\n".encode())


def test_pages_that_are_none() -> None:
    """Cut off, not UTF-8, far too many labels."""
    with pytest.raises(Reject, match="cut off"):
        parse(b"a 1\na 2")
    with pytest.raises(Reject, match="not UTF-8"):
        parse(b'a{x="\xff"} 1\n')
    with pytest.raises(Reject, match="more than 100 labels"):
        parse(("a{" + ",".join(f'l{i}="x"' for i in range(101)) + "} 1\n").encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_rejected(data: bytes) -> None:
    """No other exception."""
    try:
        parse(data)
    except Reject as reason:
        assert str(reason)


PIECE = st.sampled_from(["a", "{", "}", '"', "=", ",", " ", "\\", "n", "1", "#", "\n", ".", "NaN"])


@given(st.lists(PIECE, max_size=40))
def test_near_misses_are_parsed_or_rejected(pieces: list[str]) -> None:
    """Made of the format's own characters."""
    try:
        parse("".join(pieces).encode())
    except Reject as reason:
        assert str(reason)


LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True), st.text())


@given(st.from_regex(r"[a-z_:]{1,9}", fullmatch=True), LABELS,
       st.floats(allow_nan=False), st.none() | st.integers(-(1 << 60), 1 << 60))  # fmt: skip
def test_what_is_written_is_read(
    name: str, labels: dict[str, str], value: float, ts_ms: int | None
) -> None:
    """Any label value, escaped as the format says."""

    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inside = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
    stamp = "" if ts_ms is None else f" {ts_ms}"
    if any("\ud800" <= c <= "\udfff" for text in labels.values() for c in text):
        return
    line = f"{name}{{{inside}}} {value!r}{stamp}\n"
    assert parse(line.encode()) == [Sample(name, labels, value, ts_ms)]
