"""The tree says what Prometheus means; anything else is refused quickly, in one sentence."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.lint_tokens import NotUnderstood, seconds
from alerts.promql import (
    Aggregate,
    Binary,
    Call,
    Negative,
    Node,
    Number,
    Selector,
    Subquery,
    Text,
    children,
    parse,
    walk,
)


def shown(node: Node) -> str:
    """A tree with every parenthesis."""
    match node:
        case Number():
            return f"{node.value:g}"
        case Selector():
            return node.name
        case Text():
            return repr(node.value)
        case Negative():
            return f"(-{shown(node.of)})"
        case Binary():
            return f"({shown(node.left)} {node.operator} {shown(node.right)})"
        case Subquery():
            return f"{shown(node.of)}[{node.range_s:g}:]"
        case _:
            return f"{node.name}({', '.join(map(shown, children(node)))})"


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1 + 2 * 3", "(1 + (2 * 3))"),
        ("(1 + 2) * 3", "((1 + 2) * 3)"),
        ("2 ^ 3 ^ 2", "(2 ^ (3 ^ 2))"),
        ("-2 ^ 2", "(-(2 ^ 2))"),
        ("2 ^ -1", "(2 ^ (-1))"),
        ("-a * b", "((-a) * b)"),
        ("a - b - c", "((a - b) - c)"),
        ("a or b and c unless d", "(a or ((b and c) unless d))"),
        ("a > 1 and b < 2", "((a > 1) and (b < 2))"),
        ("a + 1 > b % 2", "((a + 1) > (b % 2))"),
        ("a AND ON (x) b", "(a and b)"),
        ("a > bool 1", "(a > 1)"),
        ("a * on (x, y,) group_left (z) b", "(a * b)"),
        ("a / ignoring (x) group_right b", "(a / b)"),
        ("sum by (x) (a) + SUM(a) without (y)", "(sum(a) + sum(a))"),
        ("quantile(0.9, a)", "quantile(0.9, a)"),
        ("rate(a[5m])", "rate(a)"),
        ("max_over_time(rate(a[5m])[1h:1m])", "max_over_time(rate(a)[3600:])"),
        ("a offset -5m @ 12 # said", "a"),
        ("a @ start()", "a"),
        ("0x1F + 1_000 + .5 + 1e3", "(((31 + 1000) + 0.5) + 1000)"),
        ("+a", "a"),
        ("inf > NaN", "(inf > nan)"),
        ("sum", "sum"),
        ("time() - a", "(time() - a)"),
        ('label_replace(a, "x", `\\1`, "y", "\\"b\\"")', "label_replace(a, 'x', '\\\\1', 'y', '\"b\"')"),
        ("job:a:sum5m", "job:a:sum5m"),
    ],
)  # fmt: skip
def test_operators_bind_as_in_prometheus(text, tree):
    assert shown(parse(text)) == tree


def test_a_selector_keeps_its_labels_range_and_places():
    text = " (up{job=~\"a}|b[\", x!='\\''} [1h30m] offset 5m)"
    found = parse(text)
    assert isinstance(found, Selector)
    assert [(m.label, m.operator, m.value) for m in found.matchers] == [
        ("job", "=~", "a}|b["), ("x", "!=", "'"),
    ]  # fmt: skip
    assert (found.range_s, found.offset_s) == (5400, 300)
    assert text[found.start : found.end] == text.strip()
    assert text[found.name_start : found.name_end] == "up"
    assert text[found.name_end : found.labels_end].endswith("'}")


@pytest.mark.parametrize("text", ['{__name__="up"}', '{"up"}', '{"up", a="b"}'])
def test_a_name_may_stand_among_the_labels(text):
    found = parse(text)
    assert isinstance(found, Selector)
    assert found.name == "up"
    assert found.name_start == found.name_end


def test_grouping_and_matching_have_their_places():
    text = "sum by (a) (x) > on (b) y"
    found = parse(text)
    assert isinstance(found, Binary)
    assert isinstance(found.left, Aggregate)
    grouping, matching = found.left.grouping, found.matching
    assert grouping is not None
    assert matching is not None
    assert text[grouping.start : grouping.end] == "by (a)"
    assert text[matching.start : matching.end] == "on (b)"


@pytest.mark.parametrize(
    "text",
    ["", "(", "a b", "a[5m", "a{", 'a{x="y}', "a{x}", "sum()", "a if b", "a[$__interval]", "(a)[",
     "f(a)[5m]", "a[5m][5m]", "1 offset 5m", "a > > b", "a ~ b", "by (x) a", "a @", "5m", "rate(a,",
     "a{x=1}", "}", "a\x00", "a & 8", "sum by a (b)", "WITH (x = 1) x", "a default 0", "1a"],
)  # fmt: skip
def test_the_rest_is_not_understood(text):
    with pytest.raises(NotUnderstood):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["(" * 9000, "a" + "+a" * 4000, "-" * 9000, "sum(" * 4000, "a^" * 9000, "a[" * 9000, "{" * 9000,
     "a " + "offset 5m " * 1900, '"' * 9999, "\\" * 9999, "1" * 19999, "0x" + "f" * 19000, "9e" * 9000,
     "1m" * 9999, "a{" + 'a="b",' * 3000, "#" * 19999, "a" * 30000, "`" * 9999, "'\\" * 9000,
     "(" * 60 + "a" + "+a" * 60 + ")" * 60],
    ids=lambda text: f"{text[:4]} x {len(text)}",
)  # fmt: skip
def test_hostile_text_costs_little(text):
    started = time.process_time()
    try:
        parse(text)
    except NotUnderstood as error:
        assert len(str(error)) < 20_100
    assert time.process_time() - started < 2


PIECES = [
    "up", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_XID_ERRORS", "sum", "rate", "by", "on", "(", ")",
    "[5m]", "[1h:]", "{", "}", 'a="b"', ",", ">", "==", "and", "or", "unless", "+", "-", "/", "%",
    "^", "5", "0.5", "1e9", "bool", "offset", "5m", "@", "inf", "group_left", "gpu", '"x"', "#", "\n",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))
)
def test_any_text_is_a_tree_or_not_understood(text):
    try:
        tree = parse(text)
    except NotUnderstood:
        return
    for node in walk(tree):
        assert 0 <= node.start < node.end <= len(text)
        for child in children(node):
            assert node.start <= child.start <= child.end <= node.end
    parse(text[tree.start : tree.end])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5m", 300), ("1h30m", 5400), ("0", 0), ("0s", 0), (" 1d ", 86400), ("100ms", 0.1), ("1w", 604800),
     ("5", None), ("m", None), ("", None), ("5 m", None), ("-5m", None), ("5M", None), ("٥m", None)],
)  # fmt: skip
def test_durations(text, expected):
    assert seconds(text) == expected


def test_a_call_is_not_case_sensitive_in_our_eyes():
    found = parse("RATE(a[5m])")
    assert isinstance(found, Call)
    assert found.name == "rate"
