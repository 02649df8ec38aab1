"""A dashboard as data: pages of panels, each with a question, a query and a unit.

The shapes of results are a closed dialect, which Grafana and the console both draw:

| kind | columns of the result |
|---|---|
| timeseries | `time`, then either a text column named by `label` and one value, or values only |
| stat, gauge | one row; every column is a value with the column's name; of a stat also text, and units by column in `columns` |
| bargauge | a text column, then a value: a bar per row |
| table | any; units by column in `columns`, links by column in `links` |
| heatmap | `time`, a text column named by `label` (a row of cells each), a value |
| text | no query: Markdown in `content` |

Queries use the ClickHouse data source's macros in their documented meaning (macros.py) and
`${name:singlequote}` for variables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["timeseries", "stat", "gauge", "bargauge", "table", "heatmap", "text"]

WIDTH: Final = 24
"""Of a dashboard, in Grafana's columns."""
GOOD: Final = "#0072B2"
WARN: Final = "#E69F00"
BAD: Final = "#D55E00"
"""Blue, orange, vermilion of Okabe and Ito's palette: told apart by every kind of eye."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A question and its answer. Units are Grafana's ids (`watt`, `celsius`, `percent`)."""

    kind: Kind
    title: str
    description: str = ""
    sql: str = ""
    width: int = 12
    height: int = 8
    unit: str = "short"
    decimals: int | None = None
    min: float | None = None
    max: float | None = None
    label: str = ""
    stacked: bool = False
    thresholds: Sequence[tuple[float, str]] = ()
    """Colours from a value on; below the first it is GOOD."""
    columns: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    """Of a table: column to address, as `/d/UID?var-x=${__data.fields.x_id}`; the time goes along."""
    hidden: Sequence[str] = ()
    """Columns of a table that only links read."""
    content: str = ""
    no_value: str = "no data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """What a person chooses: the query gives values, or values and texts."""

    name: str
    label: str
    sql: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """Moments drawn over time series: the query gives `time`, `text`, and `timeEnd` if it lasts."""

    name: str
    sql: str
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A dashboard: rows of panels from top to bottom, each row as high as its highest panel."""

    uid: str
    title: str
    answers: str
    """One line at the top: what this page tells."""
    rows: Sequence[Sequence[Panel]]
    variables: Sequence[Variable] = ()
    annotations: Sequence[Annotation] = ()
    since: str = "now-1h"
    refresh: str = "10s"
