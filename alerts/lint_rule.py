"""A rule as the linter sees it, what it says about one, and what several checks ask of a tree."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from alerts.lint_metrics import GPU_NAME, KNOWN, Dialect, Known, host_label
from alerts.promql import (
    COMPARISONS,
    Aggregate,
    Binary,
    Call,
    Negative,
    Node,
    Number,
    Selector,
    Subquery,
    walk,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a file: line is where its expression begins, for_line where its `for` stands."""

    file: str
    group: str
    name: str
    alerts: bool
    expr: str
    line: int
    for_s: float = 0.0
    for_line: int = 0
    severity: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake: what is wrong, why, and what to write instead.

    correct: the whole expression, or `for: 0s`; at_for: the mistake is in the rule's `for`.
    """

    what: str
    why: str
    correct: str
    at_for: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check looks at: a rule, its tree, and the metrics of all rules of its file."""

    rule: Rule
    tree: Node
    metrics: frozenset[str]
    has_mig: bool

    def text(self, node: Node) -> str:
        """The part of the expression that a node stands for."""
        return self.rule.expr[node.start : node.end]

    def swap(self, start: int, end: int, new: str) -> str:
        """The expression with one part replaced."""
        return self.rule.expr[:start] + new + self.rule.expr[end:]

    def put(self, node: Node, new: str) -> str:
        """The expression with a node replaced."""
        return self.swap(node.start, node.end, new)

    def labels(self, selector: Selector) -> str:
        """A selector's labels as they are written, braces included; empty without any."""
        return self.rule.expr[selector.name_end : selector.labels_end].strip()

    def instant(self, selector: Selector, name: str) -> str:
        """Another metric with a selector's labels, without its range."""
        return name + (self.labels(selector) if selector.name_end > selector.name_start else "")

    def renamed(self, selector: Selector, name: str) -> str:
        """A selector's text under another metric's name, labels and range as they were."""
        if selector.name_end == selector.name_start:
            return name
        text = self.rule.expr
        return (
            text[selector.start : selector.name_start]
            + name
            + text[selector.name_end : selector.end]
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """`of operator value`: a constant on one side, turned so that it stands on the right."""

    whole: Binary
    of: Node
    operator: str
    value: float
    constant: Node


_TURNED: Final = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "==": "==", "!=": "!="}
KEEPING: Final = frozenset(
    ("avg_over_time", "min_over_time", "max_over_time", "last_over_time", "quantile_over_time",
     "abs", "ceil", "floor", "round", "sort", "sort_desc", "clamp", "clamp_min", "clamp_max",
     "label_replace", "label_join")
)  # fmt: skip
"""Functions whose result has the unit of their vector."""
CHOOSING: Final = frozenset(("avg", "min", "max", "topk", "bottomk", "quantile"))
"""Aggregations whose result has the unit of one of their series."""
HOSTS: Final = frozenset(
    ("Hostname", "hostname", "instance", "node", "nodename", "host", "kubernetes_node",
     "exported_instance", "exported_hostname", "exported_node", "UUID", "uuid", "gpu_uuid")
)  # fmt: skip
"""Labels that tell one node, or one GPU of a site, from another."""


def constant(node: Node) -> float | None:
    """The value of an expression of numbers; None for any other."""
    match node:
        case Number():
            return node.value
        case Negative():
            inner = constant(node.of)
            return None if inner is None else -inner
        case Binary(operator="+" | "-" | "*" | "/"):
            left, right = constant(node.left), constant(node.right)
            if left is None or right is None or (node.operator == "/" and right == 0):
                return None
            return {
                "+": left + right, "-": left - right, "*": left * right,
                "/": left / (right or 1.0),
            }[node.operator]  # fmt: skip
    return None


def comparisons(tree: Node) -> Iterator[Comparison]:
    """Every comparison of something with a constant."""
    for node in walk(tree):
        if isinstance(node, Binary) and node.operator in COMPARISONS:
            left, right = constant(node.left), constant(node.right)
            if right is not None and left is None:
                yield Comparison(node, node.left, node.operator, right, node.right)
            elif left is not None and right is None:
                yield Comparison(node, node.right, _TURNED[node.operator], left, node.left)


def selectors(tree: Node) -> list[Selector]:
    """Every selector of a metric that the exporters have."""
    return [n for n in walk(tree) if isinstance(n, Selector) and n.name.startswith(GPU_NAME)]


def known(node: Node) -> Known | None:
    """What is known of a selector's metric."""
    return KNOWN.get(node.name) if isinstance(node, Selector) else None


def peeled(node: Node) -> tuple[Selector | None, list[Aggregate]]:
    """The one selector whose unit a node has, and the aggregations around it; None if not one."""
    around: list[Aggregate] = []
    while not isinstance(node, Selector):
        if isinstance(node, Aggregate) and node.name in CHOOSING:
            around.append(node)
            node = node.arguments[-1]
        elif isinstance(node, Call) and node.name in KEEPING and node.arguments:
            node = vector_of(node)
        elif isinstance(node, Subquery):
            node = node.of
        else:
            return None, around
    return node, around


def vector_of(call: Call) -> Node:
    """The argument that a function works on: quantile_over_time's second, else the first."""
    second = call.name == "quantile_over_time" and len(call.arguments) > 1
    return call.arguments[1 if second else 0]


def one_host(selector: Selector) -> bool:
    """Whether its labels already name a node or a GPU."""
    return any(m.operator == "=" and m.label in HOSTS and m.value for m in selector.matchers)


def dialect_of(tree: Node) -> Dialect:
    """The dialect that an expression is written in: new or smi if only that is seen, else old."""
    seen = {k.dialect for s in selectors(tree) if (k := known(s))} - {"both"}
    return seen.pop() if len(seen) == 1 else "old"


def host_of(tree: Node) -> str:
    """The label that names the node: the one that the expression uses, else its dialect's."""
    for node in walk(tree):
        labels: tuple[str, ...] = ()
        if isinstance(node, Aggregate) and node.grouping and node.grouping.word == "by":
            labels = node.grouping.names
        elif isinstance(node, Selector):
            labels = tuple(m.label for m in node.matchers)
        for label in ("Hostname", "hostname", "instance", "node"):
            if label in labels:
                return label
    return host_label(dialect_of(tree))


def plain(value: float) -> str:
    """A number as people write it, exact."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.12g}"
