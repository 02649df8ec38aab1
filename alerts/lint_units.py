"""Checks of units: thresholds in another unit than the metric's, and units that meet."""

from collections.abc import Iterator
from typing import Final

from alerts.lint_rule import (
    CHOOSING,
    KEEPING,
    Fault,
    Seen,
    comparisons,
    constant,
    known,
    plain,
    vector_of,
)
from alerts.promql import (
    COMPARISONS,
    Aggregate,
    Binary,
    Call,
    Negative,
    Node,
    Selector,
    Subquery,
    walk,
)
from pipeline.catalog import ABSURD_POWER_W

_PER_SECOND: Final = {"mJ": "mW", "J": "W", "ns": "ns/s"}

_MIB: Final = 1048576
# unit: (thresholds from, to, that were meant times a factor, what the metric is, what was meant)
_IMPLAUSIBLE: Final[dict[str, tuple[float, float, float, str, str]]] = {
    "ratio": (1.0001, 100, 0.01, "a ratio from 0 to 1", "percents"),
    "fraction": (50, 100, 0.01, "a quotient from 0 to 1", "percents"),
    "percent": (0.0001, 0.9999, 100, "in percents", "a ratio from 0 to 1"),
    "MiB": (1e7, 1e15, 1 / _MIB, "in MiB", "bytes"),
    "B": (100, 999_999, _MIB, "in bytes", "MiB"),
    "W": (ABSURD_POWER_W, 1e7, 1e-3, "in watts", "milliwatts"),
    "mW": (10, ABSURD_POWER_W, 1e3, "in mJ, so that its rate is in milliwatts", "watts"),
    "MHz": (1e6, 1e11, 1e-6, "in MHz", "hertz"),
    "Hz": (100, 99_999, 1e6, "in hertz", "MHz"),
    "ns/s": (1e-6, 1, 1e9, "in ns, so that its rate is in ns per second", "a share of the time"),
}
# How the right-hand side of a pair becomes the unit of the left-hand side.
_SCALED: Final = {
    ("percent", "ratio"): "100 * {}", ("ratio", "percent"): "{} / 100",
    ("percent", "fraction"): "100 * {}", ("fraction", "percent"): "{} / 100",
    ("MiB", "B"): "{} / 1048576", ("B", "MiB"): "{} * 1048576",
    ("MHz", "Hz"): "{} / 1000000", ("Hz", "MHz"): "{} * 1000000",
    ("mJ", "J"): "{} * 1000", ("J", "mJ"): "{} / 1000",
    ("mW", "W"): "{} * 1000", ("W", "mW"): "{} / 1000",
}  # fmt: skip


def unit_of(node: Node) -> str:
    """The unit of an expression as far as it can be told, else nothing.

    "fraction" is a quotient of two things of one unit, "sum X" a sum over series in X.
    """
    unit = ""
    match node:
        case Selector():
            found = known(node)
            unit = found.unit if found else ""
        case Call():
            unit = _of_call(node)
        case Subquery() | Negative():
            unit = unit_of(node.of)
        case Aggregate():
            inner = unit_of(node.arguments[-1])
            if node.name == "sum" and inner:
                unit = inner if inner.startswith("sum ") else f"sum {inner}"
            elif node.name in CHOOSING:
                unit = inner
        case Binary():
            unit = _of_binary(node)
    return unit


def _of_call(node: Call) -> str:
    if not node.arguments:
        return ""
    unit = unit_of(vector_of(node))
    if node.name in KEEPING:
        return unit
    return _PER_SECOND.get(unit, "") if node.name in ("rate", "irate") else ""


def _of_binary(node: Binary) -> str:
    left, right = unit_of(node.left), unit_of(node.right)
    a, b = constant(node.left), constant(node.right)
    unit = ""
    match node.operator:
        case "/" if left and left == right:
            unit = "fraction"
        case "/" if left == "percent" and b == 100:
            unit = "ratio"
        case "*" if 100 in (a, b) and left + right in ("ratio", "fraction"):
            unit = "percent"
        case "+" | "-" if a is not None or b is not None or left == right:
            unit = left or right
        case "or" if left == right:
            unit = left
        case "and" | "unless":
            unit = left
    return unit


def threshold_unit(seen: Seen) -> Iterator[Fault]:
    """A threshold that makes sense only in another unit than the metric's."""
    for one in comparisons(seen.tree):
        unit = unit_of(one.of)
        if unit not in _IMPLAUSIBLE or one.operator in ("==", "!="):
            continue
        low, high, factor, is_in, meant = _IMPLAUSIBLE[unit]
        if not low <= one.value <= high or (unit == "percent" and _may_be_small(one.of)):
            continue
        right = plain(one.value * factor)
        yield Fault(
            f"`{seen.text(one.of)}` is {is_in}, and is compared with "
            f"{plain(one.value)}, which looks like {meant}",
            "the comparison is always true or never true, whatever the GPUs do",
            seen.put(one.constant, right),
        )


def _may_be_small(node: Node) -> bool:
    """Whether an average may well be a fraction of a percent: idleness is tested like that."""
    return any(isinstance(n, Call | Aggregate) and n.name.startswith("avg") for n in walk(node))


def units_meet(seen: Seen) -> Iterator[Fault]:
    """Two things of one dimension in different units added, compared, or put in each other's place."""
    for node in walk(seen.tree):
        if not isinstance(node, Binary) or node.operator not in (*COMPARISONS, "+", "-", "or"):
            continue
        left, right = unit_of(node.left), unit_of(node.right)
        scale = _SCALED.get((left, right))
        if scale:
            yield Fault(
                f"`{seen.text(node.left)}` ({left}) and `{seen.text(node.right)}` ({right}) meet "
                f"in `{node.operator}`",
                "the units differ, so that the result or the threshold after it is wrong for one "
                "of the two",
                seen.put(node.right, scale.format(seen.text(node.right))),
            )
