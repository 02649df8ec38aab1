"""A strict reader of Prometheus' text format 0.0.4: what an exporter's page says, or Reject."""

import re
from typing import Final, NamedTuple

from pipeline.errors import Reject

MAX_SAMPLES: Final = 500_000
MAX_LABELS: Final = 100

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(
    r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\[\\"n])*)"[ \t]*'
)
_VALUE: Final = re.compile(
    r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf|nan)", re.IGNORECASE
)
_TIME: Final = re.compile(r"-?\d{1,19}")
_ESCAPE: Final = re.compile(r"\\(.)")
_ESCAPED: Final = {"n": "\n", "\\": "\\", '"': '"'}
_SHOWN: Final = 60


class Sample(NamedTuple):
    """One line: a metric's value, with its labels; `ts_ms` where the exporter gives one."""

    name: str
    labels: dict[str, str]
    value: float
    ts_ms: int | None


def parse(page: bytes) -> list[Sample]:
    """The samples of a page, in its order. Raises Reject, which names the line.

    A page that does not end with a line's end has been cut off.
    """
    try:
        text = page.decode()
    except UnicodeDecodeError as error:
        raise Reject(f"byte {error.start} is not UTF-8") from error
    if text and not text.endswith("\n"):
        raise Reject("the page is cut off: its last line has no end")
    samples: list[Sample] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(" \t\r")
        if not line or line[0] == "#":
            continue
        if len(samples) == MAX_SAMPLES:
            raise Reject(f"line {number}: more than {MAX_SAMPLES} samples")
        try:
            samples.append(_sample(line))
        except Reject as reason:
            raise Reject(f"line {number}: {reason}: {line[:_SHOWN]!r}") from None
    return samples


def _sample(line: str) -> Sample:
    name = _NAME.match(line)
    if name is None:
        raise Reject("no metric name")
    at = name.end()
    while at < len(line) and line[at] in " \t":
        at += 1
    labels: dict[str, str] = {}
    if line[at : at + 1] == "{":
        labels, at = _labels(line, at + 1)
    elif at == name.end():
        raise Reject("no space after the name")
    words = line[at:].split()
    if not 1 <= len(words) <= 2:
        raise Reject("a value, and perhaps a timestamp, must follow")
    if not _VALUE.fullmatch(words[0]):
        raise Reject("no value")
    if len(words) == 2 and not _TIME.fullmatch(words[1]):
        raise Reject("no timestamp")
    return Sample(name[0], labels, float(words[0]), int(words[1]) if len(words) == 2 else None)


def _labels(line: str, at: int) -> tuple[dict[str, str], int]:
    """Labels from behind the opening brace, and where the closing one ends."""
    labels: dict[str, str] = {}
    while True:
        found = _LABEL.match(line, at)
        if found is None:
            break
        key, value = found.groups()
        if key in labels:
            raise Reject(f"label {key} stands twice")
        if len(labels) == MAX_LABELS:
            raise Reject(f"more than {MAX_LABELS} labels")
        labels[key] = _ESCAPE.sub(lambda m: _ESCAPED[m[1]], value) if "\\" in value else value
        at = found.end()
        if line[at : at + 1] != ",":
            break
        at += 1
    while line[at : at + 1] in (" ", "\t"):
        at += 1
    if line[at : at + 1] != "}":
        raise Reject("labels are not closed")
    return labels, at + 1
