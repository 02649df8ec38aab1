"""The words of PromQL: text to tokens, durations, numbers and strings."""

import re
from dataclasses import dataclass
from typing import Final

from pipeline.errors import Reject


class NotUnderstood(Reject):
    """The expression is outside of what is understood here; the message says where and why."""


_SECONDS: Final = {
    "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000,
}  # fmt: skip
_PART: Final = re.compile(r"(\d+)(ms|[smhdwy])")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
    |(?P<duration>(?:\d+(?:ms|[smhdwy]))+(?![\w.]))
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<word>[A-Za-z_][\w:]*|:[A-Za-z_:][\w:]*)
    |(?P<sign>=~|!~|==|!=|>=|<=|[-+*/%^<>=(){}\[\],@:])""",
    re.ASCII | re.VERBOSE,
)


def seconds(text: str) -> float | None:
    """`1h30m` in seconds, also a bare 0; None where it is not a duration."""
    text = text.strip()
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(count) * _SECONDS[unit] for count, unit in _PART.findall(text))


@dataclass(frozen=True, slots=True)
class Token:
    """A word, number, duration, string or sign, and where it stands; the last is the end."""

    kind: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """Every token, without space and comments. Raises NotUnderstood."""
    out: list[Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise NotUnderstood(f"what is {text[at]!r} at character {at + 1}")
        if found.lastgroup != "space":
            out.append(Token(found.lastgroup, found[0], at, found.end()))
        at = found.end()
    return [*out, Token("end", "", len(text), len(text))]


def number(text: str) -> float:
    """The value of a number token."""
    try:
        return float(int(text, 16)) if text[:2] in ("0x", "0X") else float(text.replace("_", ""))
    except OverflowError:
        return float("inf")


_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


def unquoted(text: str) -> str:
    """What a string token stands for."""
    if text[0] == "`":
        return text[1:-1]
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text[1:-1])
