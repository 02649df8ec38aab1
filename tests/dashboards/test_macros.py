"""Macros become what the data source's documentation says; values of variables stay values."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashboards.macros import Span, expand
from pipeline.errors import Refuse
from pipeline.store import Store

SPAN = Span(1_790_000_000_250, 1_790_000_060_999, 15)
HOSTILE = (
    "a'b", "'); DROP TABLE gpu_samples; --", "{site:String}", "\\", "\\N", "\\'", "a\\tb", "a\tb\r\nc",
    "é漢😀", "%s%%d", "${site:singlequote}", "$__timeFilter(ts)", "", " ", "`x`", '"x"', "/*", "--",
    "{", "}", "\x7f", "\ud7ff", "NULL", "0x41",
)  # fmt: skip


def expanded(sql: str, span: Span = SPAN, **values: str) -> str:
    return expand(sql, span, values).sql


@pytest.mark.parametrize(
    ("sql", "meaning"),
    [
        (
            "$__timeFilter(ts)",
            "ts >= toDateTime(1790000000) AND ts <= toDateTime(1790000060)",
        ),
        (
            "$__timeFilter_ms(s.ts)",
            (
                "s.ts >= fromUnixTimestamp64Milli(1790000000250)"
                " AND s.ts <= fromUnixTimestamp64Milli(1790000060999)"
            ),
        ),
        ("$__timeInterval(ts)", "toStartOfInterval(toDateTime(ts), INTERVAL 15 second)"),
        (
            "$__timeInterval_ms(ts)",
            "toStartOfInterval(toDateTime64(ts, 3), INTERVAL 15000 millisecond)",
        ),
        ("$__fromTime, $__toTime", "toDateTime(1790000000), toDateTime(1790000060)"),
        ("$__fromTime_ms", "fromUnixTimestamp64Milli(1790000000250)"),
        ("$__toTime_ms)", "fromUnixTimestamp64Milli(1790000060999))"),
        ("$__interval_s", "15"),
        ("x$__interval_s.", "x15."),
        ("($__interval_s)", "(15)"),
        ("$__fromTime (x)", "toDateTime(1790000000) (x)"),
        ("no macro: '$' and 'a$'", "no macro: '$' and 'a$'"),
    ],
)
def test_a_macro_is_what_it_is_documented_to_be(sql: str, meaning: str) -> None:
    assert expanded(sql) == meaning


def test_arguments_may_hold_parentheses_and_macros() -> None:
    assert expanded("$__timeInterval(toDateTime(min(ts)))") == (
        "toStartOfInterval(toDateTime(toDateTime(min(ts))), INTERVAL 15 second)"
    )
    assert expanded("$__timeInterval(greatest(ts, $__fromTime))") == (
        "toStartOfInterval(toDateTime(greatest(ts, toDateTime(1790000000))), INTERVAL 15 second)"
    )
    assert expanded("f($__timeFilter(g(a)) AND b(c))").endswith(
        "<= toDateTime(1790000060) AND b(c))"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "$__timeFilter", "$__timeFilter()", "$__timeFilter( )", "$__timeFilter(a", "$__timeFilter(f(a)",
        "$__dateFilter(ts)", "$__nothing", "$__interval_s_ms", "$__timeInterval_s(ts)", "$__interval",
        "$site", "${site}", "${site:csv}", "${site:raw}", "$_x", "${__from}", "${site:singlequote",
        "$__timeFilter(ts, $__what)",
    ],
)  # fmt: skip
def test_what_is_unknown_is_refused(sql: str) -> None:
    with pytest.raises(Refuse):
        expanded(f"SELECT {sql}", site="1")


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(Refuse, match="'tenant'"):
        expanded("SELECT ${tenant:singlequote}", site="1")


def test_only_variables_that_are_used_are_bound() -> None:
    query = expand("SELECT ${a:singlequote}, ${a:singlequote}", SPAN, {"a": "1", "b": "2"})
    assert query.sql == "SELECT {a:String}, {a:String}"
    assert query.parameters == {"a": "1"}


def test_a_step_is_never_below_a_second() -> None:
    assert expanded("$__interval_s", Span(0, 1, 0)) == "1"
    assert "INTERVAL 1 second" in expanded("$__timeInterval(ts)", Span(0, 1, -5))


def test_a_nul_is_refused_with_a_sentence() -> None:
    with pytest.raises(Refuse, match=r"'site' has a NUL"):
        expanded("SELECT ${site:singlequote}", site="a\0b")


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_arrives_as_it_is_and_as_nothing_else(store: Store, value: str) -> None:
    query = expand("SELECT ${v:singlequote} AS v, 1 AS one", SPAN, {"v": value})
    assert value not in query.sql or value.strip(" {}") == ""
    assert store.query(query.sql, query.parameters).rows == [(value, 1)]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_any_value_arrives_as_it_is(store: Store, value: str) -> None:
    query = expand("SELECT ${v:singlequote}", SPAN, {"v": value})
    assert query.sql == "SELECT {v:String}"
    assert store.query(query.sql, query.parameters).rows == [(value,)]
