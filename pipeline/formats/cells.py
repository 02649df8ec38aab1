"""One cell of a recorded file: a time, a number, a name, as people and tools write them.

Standard library only, so that an agent can replay what the pipeline imports.
"""

import math
import re
import zoneinfo
from datetime import UTC, datetime
from typing import Final

from pipeline.errors import Refuse

BAD_TIME: Final = -(1 << 63)
OLDEST_MS: Final = 1_262_304_000_000
"""2010: no GPU before it is worth a watt."""
NEWEST_MS: Final = 4_102_444_800_000
"""2100: the hours of a partition end soon after."""

NOT_REPORTED: Final = ("", "N/A", "[N/A]", "NULL", "null", "-")
_WORDS: Final = {
    "disabled": 0, "enabled": 1, "no": 0, "yes": 1, "not active": 0, "active": 1, "none": 0,
    "gpu reset": 1, "reset": 1, "node reboot": 2, "reboot": 2, "drain p2p": 3, "drain and reset": 4,
    "false": 0, "true": 1,
}  # fmt: skip
UNIT_SIGNS: Final = {
    "pct": "%", "mhz": "MHz", "mib": "MiB", "w": "W", "c": "C", "j": "J", "ms": "ms",
}  # fmt: skip
_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z%]*)")
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?"
)
_NAME_MAX: Final = 255
MAX_INDEX: Final = 1023
DATE_DIGITS: Final = 8  # 20250924 is a date to some, and no number of milliseconds


def zone(name: str) -> zoneinfo.ZoneInfo:
    """A time zone by its name. Raises Refuse."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Refuse(f"no such time zone {name!r}: write one as Europe/Berlin or UTC") from error


def time_ms(text: str, local: zoneinfo.ZoneInfo) -> int:
    """UTC milliseconds of ISO 8601, nvidia-smi's form or epoch ms; BAD_TIME if it is none.

    A time without a zone is local; one that happens twice or never there is bad.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) > DATE_DIGITS:
        return int(text) if len(text) < 19 else BAD_TIME
    text = text.replace("/", "-").replace(",", ".")
    if not _TIME.fullmatch(text):
        return BAD_TIME
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return BAD_TIME
    if when.tzinfo is None:
        when = when.replace(tzinfo=local)
        if when.utcoffset() != when.replace(fold=1).utcoffset():
            return BAD_TIME
    try:
        since = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:
        return BAD_TIME
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def number(text: str, unit: str) -> float:
    """A number as tools write it: with its unit sign, as a bitmask, a P-state, a word.

    NaN is not reported. Raises ValueError where it is none.
    """
    if not text or (text[0] == "[" and text[-1] == "]") or text in NOT_REPORTED:
        return math.nan
    if text[:2].lower() == "0x":
        return float(int(text, 16))
    if text[0] == "P" and text[1:].isdecimal():
        return float(text[1:])
    if text.lower() in _WORDS:
        return float(_WORDS[text.lower()])
    if text.lower() in ("nan", "inf", "-inf"):
        return float(text)
    found = _NUMBER.fullmatch(text)
    if not found or found[2] not in ("", unit):
        raise ValueError(text)
    return float(found[1])


def is_name(text: str) -> bool:
    """Whether a text may name a node, GPU, meter or tenant: short, printable, sound UTF-8."""
    return len(text) <= _NAME_MAX and text.isprintable() and "\ufffd" not in text


def is_index(text: str) -> bool:
    """Whether a text is the index of a GPU on its node."""
    return text.isascii() and text.isdecimal() and len(text) < 9 and int(text) <= MAX_INDEX
