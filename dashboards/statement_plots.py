"""The plots of a statement as inline SVG: the power curve, the bars of the days, the histogram.

Colours are classes of the page's style sheet. Positions are in the picture's own units.
"""

import datetime as dt
import math
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final, NamedTuple

from dashboards.statement_text import WHOLE, amount, known
from pipeline.errors import Refuse
from pipeline.formats.cells import zone
from pipeline.ledger.figures import HISTOGRAM_BINS, Point, Statement
from pipeline.queries import parse_time

QUARTER_MS: Final = 900_000
_HOUR_MS: Final = 3_600_000
_LETTER: Final = 6.0  # width of a digit of an axis
_LABELS: Final = 12  # at most, along an axis
_BAR: Final = 40.0  # at most, the width of one
_DAY_STEPS: Final = (1, 2, 4, 7, 14, 28, 61, 122, 183, 366)
_MINUTE_STEPS: Final = (15, 60, 180, 360)


class Day(NamedTuple):
    """A calendar day in the statement's time zone, as far as it lies in the period."""

    date: dt.date
    start_ms: int
    end_ms: int

    @property
    def hours(self) -> float:
        """24, but for the days when clocks change and for the ends of the period."""
        return (self.end_ms - self.start_ms) / _HOUR_MS

    @property
    def label(self) -> str:
        """Such as 3 Mar."""
        return f"{self.date.day} {self.date:%b}"


@dataclass(frozen=True, slots=True)
class Span:
    """The period, half open, in milliseconds since 1970, and the time zone of its days."""

    start_ms: int
    end_ms: int
    zone: zoneinfo.ZoneInfo

    def local(self, ms: int) -> dt.datetime:
        """That moment on the statement's clocks."""
        return dt.datetime.fromtimestamp(ms / 1000, self.zone)

    def when(self, text: str) -> str:
        """ISO 8601 as the statement's clocks show it, with their distance from UTC."""
        moment = self.local(parse_time(text, 0, self.zone))
        spec = "seconds" if moment.second else "minutes"
        return moment.isoformat(" ", spec).replace("+00:00", " UTC")

    def days(self) -> list[Day]:
        """Every calendar day that the period touches; 23 or 25 hours where clocks change."""
        first, last = self.local(self.start_ms).date(), self.local(self.end_ms - 1).date()
        dates = [first + dt.timedelta(n) for n in range((last - first).days + 2)]
        midnights = [_midnight_ms(date, self.zone) for date in dates]
        return [
            Day(date, max(start, self.start_ms), min(end, self.end_ms))
            for date, (start, end) in zip(dates, pairwise(midnights), strict=False)
        ]


def span_of(statement: Statement) -> Span:
    """The statement's period. Raises Refuse for a time or a zone that is none."""
    local = zone(statement.timezone)
    since, until = (parse_time(text, 0, local) for text in (statement.since, statement.until))
    span = Span(since, until, local)
    if span.start_ms >= span.end_ms:
        raise Refuse(
            f"The statement's period from {statement.since} to {statement.until} is empty; "
            "its end must be after its start."
        )
    return span


def _midnight_ms(date: dt.date, zone: zoneinfo.ZoneInfo) -> int:
    return round(dt.datetime.combine(date, dt.time(), zone).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture with room for the axes' labels, and a scale of values from zero."""

    width: float
    height: float
    ticks: tuple[float, ...]  # ascending from 0

    @property
    def left(self) -> float:
        """Where the values' axis stands: beside its longest label."""
        return 10 + _LETTER * max(len(label) for label in self._labels())

    @property
    def base(self) -> float:
        """Where zero lies."""
        return self.height - 22

    def x(self, part: float) -> float:
        """Position of a part, 0 to 1, of the way from left to right."""
        return self.left + part * (self.width - 12 - self.left)

    def y(self, value: float) -> float:
        """Position of a value."""
        return self.base - value / self.ticks[-1] * (self.base - 8)

    def _labels(self) -> list[str]:
        decimals = max(0, -math.floor(math.log10(self.ticks[1])))
        return [f"{tick:,.{decimals}f}".replace(",", "\u202f") for tick in self.ticks]

    def svg(self, title: str, *parts: str) -> str:
        """The picture: lines across at the values' ticks, then the parts."""
        lines = [
            f'<line class="grid" x1="{self.left:.1f}" x2="{self.x(1):.1f}" y1="{self.y(tick):.1f}"'
            f' y2="{self.y(tick):.1f}"/>'
            f'<text class="value" x="{self.left - 5:.1f}" y="{self.y(tick) + 3.5:.1f}">{label}'
            "</text>"
            for tick, label in zip(self.ticks, self._labels(), strict=True)
        ]
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img"'
            f' aria-label="{escape(title)}">{"".join(lines)}{"".join(parts)}</svg>'
        )

    def label(self, part: float, text: str) -> str:
        """A word and a mark under the picture."""
        x = self.x(part)
        return (
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{self.base:.1f}"'
            f' y2="{self.base + 4:.1f}"/>'
            f'<text class="time" x="{x:.1f}" y="{self.base + 15:.1f}">{escape(text)}</text>'
        )


def ticks(top: float) -> tuple[float, ...]:
    """Round values from 0 to at least `top`, three to six of them."""
    top = max(top, 0.001)
    unit = 10.0 ** math.floor(math.log10(top / 4))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= top / 4 * (1 - 1e-9))
    return tuple(step * n for n in range(math.ceil(top / step - 1e-9) + 1))


def curve(points: Sequence[Point], span: Span, contracted_kw: float | None) -> str:
    """Power in kW by quarter of an hour: GPUs, nodes if metered, what is contracted.

    Where there is no value there is no line; quarters measured in part are shaded.
    """
    inside = _inside(points, span)
    gpu = [(p.ts_ms, known(p.gpu_kw)) for p in inside]
    node = [(p.ts_ms, known(p.node_kw)) for p in inside]
    values = [v for _, v in gpu + node if v is not None]
    frame = Frame(720, 210, ticks(max([*values, contracted_kw or 0.0])))
    length = span.end_ms - span.start_ms

    def part(ms: int) -> float:
        return (min(ms, span.end_ms) - span.start_ms) / length

    shades = [
        f'<rect class="shade" x="{frame.x(part(a)):.1f}" y="8" height="{frame.base - 8:.1f}"'
        f' width="{max(0.6, frame.x(part(b)) - frame.x(part(a))):.1f}"/>'
        for a, b in _partial(inside)
    ]
    paths = [
        f'<path class="{name}" d="{_steps(line, frame, span)}"/>'
        for name, line in (("node", node), ("gpu", gpu))
        if any(v is not None for _, v in line)
    ]
    if contracted_kw is not None:
        y = f"{frame.y(contracted_kw):.1f}"
        x1, x2 = frame.left, frame.x(1)
        paths.append(f'<line class="limit" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
    labels = [frame.label(part(ms), text) for ms, text in _times(span)]
    return frame.svg("Power by quarter of an hour, in kW", *shades, *paths, *labels)


def _inside(points: Sequence[Point], span: Span) -> list[Point]:
    held = (p for p in points if span.start_ms <= p.ts_ms < span.end_ms)
    return sorted(held, key=lambda p: p.ts_ms)


def is_partial(point: Point) -> bool:
    """Whether a quarter in which GPUs were held is measured in part or not at all."""
    if point.coverage is None:
        return point.gpu_hours > 0
    return point.coverage < WHOLE


def _partial(points: Sequence[Point]) -> Iterator[tuple[int, int]]:
    """Stretches of such quarters."""
    start = end = None
    for ts_ms in (p.ts_ms for p in points if is_partial(p)):
        if ts_ms != end:
            if start is not None and end is not None:
                yield start, end
            start = ts_ms
        end = ts_ms + QUARTER_MS
    if start is not None and end is not None:
        yield start, end


def _steps(line: Sequence[tuple[int, float | None]], frame: Frame, span: Span) -> str:
    """A mean holds for its whole quarter, so the line goes in steps; it is not drawn over holes."""
    length, out, reached = span.end_ms - span.start_ms, [], None
    for ts_ms, value in line:
        if value is None:
            continue
        x, y = frame.x((ts_ms - span.start_ms) / length), frame.y(value)
        until = min(ts_ms + QUARTER_MS, span.end_ms)
        out.append(f"V{y:.1f}" if ts_ms == reached else f"M{x:.1f} {y:.1f}")
        out.append(f"H{frame.x((until - span.start_ms) / length):.1f}")
        reached = ts_ms + QUARTER_MS
    return "".join(out)


def _times(span: Span) -> list[tuple[int, str]]:
    """Moments to name under the curve: midnights, or times of the day in a short period."""
    days = span.days()
    if len(days) > 3:
        step = _day_step(len(days), _LABELS)
        return [(d.start_ms, d.label) for n, d in enumerate(days) if not n % step]
    first = -(-span.start_ms // QUARTER_MS) * QUARTER_MS
    moments = [(ms, span.local(ms)) for ms in range(first, span.end_ms, QUARTER_MS)]
    for step in _MINUTE_STEPS:
        named = [(ms, m) for ms, m in moments if not (60 * m.hour + m.minute) % step]
        if len(named) <= _LABELS + 1:
            break
    return [(ms, f"{m:%H:%M}" if m.hour or m.minute else f"{m.day} {m:%b}") for ms, m in named]


def _day_step(count: int, labels: int) -> int:
    return next((s for s in _DAY_STEPS if count <= s * labels), -(-count // labels))


def by_day(points: Sequence[Point], span: Span) -> str:
    """GPU-hours of each calendar day of the statement's time zone, as bars."""
    hours = dict.fromkeys(span.days(), 0.0)
    of_date = {day.date: day for day in hours}
    for point in _inside(points, span):
        hours[of_date[span.local(point.ts_ms).date()]] += known(point.gpu_hours) or 0.0
    frame = Frame(430, 150, ticks(max(hours.values())))
    step = _day_step(len(hours), 7)
    bars = [
        _bar(frame, n, len(hours), value, f"{day.date}: {amount(value)} GPU-hours")
        + (frame.label((n + 0.5) / len(hours), day.label) if not n % step else "")
        for n, (day, value) in enumerate(hours.items())
    ]
    return frame.svg("GPU-hours by day", *bars)


def odd_days(span: Span) -> list[str]:
    """Days of other than 24 hours: `2026-03-29: 23 h`."""
    return [f"{d.date}: {d.hours:.4g} h" for d in span.days() if d.hours != 24]


def histogram(hours: Sequence[float]) -> str:
    """GPU-hours by mean utilisation, a bar per ten percent."""
    frame = Frame(280, 150, ticks(max(known(h) or 0.0 for h in hours)))
    width = 100 / HISTOGRAM_BINS
    bars = [
        _bar(frame, n, len(hours), value,
             f"{n * width:g} to {(n + 1) * width:g} %: {amount(value)} GPU-hours")
        for n, value in enumerate(hours) if known(value) is not None
    ]  # fmt: skip
    edges = [frame.label(n / 5, f"{20 * n}") for n in range(6)]
    return frame.svg("GPU-hours by mean utilisation in percent", *bars, *edges)


def _bar(frame: Frame, number: int, count: int, value: float, title: str) -> str:
    middle, half = frame.x((number + 0.5) / count), 0.4 * (frame.x(1 / count) - frame.x(0))
    half = min(half, _BAR / 2)
    top = frame.y(max(0.0, value))
    return (
        f'<rect class="bar" x="{middle - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}"'
        f' height="{frame.base - top:.1f}"><title>{escape(title)}</title></rect>'
    )
