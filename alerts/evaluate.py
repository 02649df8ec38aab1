"""One round over the store: a query per signal, at one time, and what it says of each rule."""

import datetime as dt
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from alerts import compile as compiler
from alerts.rule import PLACE, Named, Rule, Signal, by_signal
from alerts.state import Answer, Hit
from pipeline.clock import Clock
from pipeline.errors import Retry
from pipeline.store import Store

Names = dict[tuple[Named, str], str]
"""Names of ids, by view and the id as text. An id is a hash of its name: it never has another.
GPUs are not among them, since where they stand may change."""

_log: Final = logging.getLogger("megawatch.alerts")

LIMITS: Final = {
    "max_execution_time": 10, "max_memory_usage": 4 << 30, "max_threads": 1,
    "join_any_take_last_row": 1,
    **dict.fromkeys(
        (
            "optimize_and_compare_chain", "optimize_extract_common_expressions",
            "optimize_group_by_function_keys", "optimize_or_like_chain",
            "optimize_rewrite_aggregate_function_with_if", "optimize_syntax_fuse_functions",
            "use_query_condition_cache",
        ), 0,
    ),
}  # fmt: skip
"""Of one query of a signal, in seconds and bytes. Threads cost more than they save here, and so do
searches for what these queries do not have: planning them costs as much as their rows do. Of a
GPU's rows that were not merged yet, a join that takes any is to take the newest part's."""
MAX_NAMES: Final = 1 << 17
COMPARED: Final = {">": operator.gt, "<": operator.lt}
NOT_SETTLED_S: Final = 4_102_444_800
"""The view `settled` says 2105 where no pipeline is alive: then data rules have nothing new."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers by rule; None for a rule whose query failed, and why."""

    answers: dict[str, Answer | None] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Times:
    """UTC milliseconds of this round: now, and up to where seconds are complete (0: unknown)."""

    now_ms: int
    settled_ms: int

    def of(self, signal: Signal) -> int:
        """When a signal is judged; 0: it cannot be."""
        return self.now_ms if signal.clock == "wall" else self.settled_ms


def settled_ms(store: Store) -> int:
    """Up to where seconds are complete, UTC; 0 without a live pipeline. Raises Retry."""
    until_s: int = store.query("SELECT toUnixTimestamp(until) FROM settled").rows[0][0]
    return 0 if until_s > NOT_SETTLED_S else until_s * 1000


def watched(store: Store, signal: Signal, times: Times) -> float:
    """The number that a signal watches. Raises Retry."""
    at = {"at": dt.datetime.fromtimestamp(times.of(signal) // 1000, dt.UTC)}
    rows = store.query(compiler.bound(signal.watch, {}), at, **LIMITS).rows
    return float(rows[0][0])


def ask(
    store: Store, rules: Sequence[Rule], thresholds: Mapping[str, float],
    caps_w: Mapping[str, float], times: Times, clock: Clock, until_s: float, names: Names,
) -> Asked:  # fmt: skip
    """Ask what rules need at their signals' times, until the clock's `until_s` at the latest.

    A signal whose query fails is asked rule by rule, so that one bad rule does not hide the others.
    `names` learns what was looked up.
    """
    asked = Asked()
    for group in by_signal(rules).values():
        signal = group[0].signal
        at_ms = times.of(signal) if signal else 0
        if signal is None or not at_ms:
            continue
        _ask_together(store, group, thresholds, caps_w, at_ms, asked, names)
        failed = [rule for rule in group if rule.name in asked.errors]
        for rule in failed if len(group) > 1 else ():
            if clock.monotonic_s() >= until_s:
                break
            _ask_together(store, [rule], thresholds, caps_w, at_ms, asked, names)
    return asked


def _ask_together(
    store: Store, rules: Sequence[Rule], thresholds: Mapping[str, float],
    caps_w: Mapping[str, float], at_ms: int, asked: Asked, names: Names,
) -> None:  # fmt: skip
    signal = rules[0].signal
    assert signal is not None, "asked without a signal"
    at = {"at": dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)}
    try:
        text = compiler.bound(compiler.query(signal, rules, thresholds), caps_w)
        rows = store.query(text, at, **LIMITS).dicts()
        if len(rows) == compiler.MAX_ROWS:
            # A longer answer is cut at the same place every time.
            text = compiler.query(signal, rules, thresholds, ordered=True)
            rows = store.query(compiler.bound(text, caps_w), at, **LIMITS).dicts()
        for label, table in signal.names.items():
            if table == "gpus":
                _place(store, rows)
            else:
                _name(store, rows, label, table, names)
        present = True
        if any(rule.no_data != "ok" for rule in rules):
            text = compiler.bound(_presence(signal), caps_w)
            present = bool(store.query(text, at, **LIMITS).rows[0][0])
    except Retry as error:
        _log.warning("%s: %s", ", ".join(rule.name for rule in rules), error)
        for rule in rules:
            asked.answers[rule.name] = None
            asked.errors[rule.name] = str(error)
        return
    whole = len(rows) < compiler.MAX_ROWS
    for rule in rules:
        asked.errors.pop(rule.name, None)
        asked.answers[rule.name] = Answer(_hits(signal, rule, rows, thresholds), present, whole)


def _name(
    store: Store, rows: Sequence[dict[str, object]], label: str, table: Named, names: Names
) -> None:
    """Put names in place of a label's ids. Raises Retry."""
    ids = {str(row[label]) for row in rows if row[label]}
    if len(names) + len(ids) > MAX_NAMES:
        names.clear()
    unknown = sorted(int(id_) for id_ in ids if (table, id_) not in names)
    if unknown:
        found = store.query(
            f"{compiler.NAMES[table]} WHERE id IN {{ids:Array(UInt64)}} AND name != ''",
            {"ids": unknown}, **LIMITS,
        ).rows  # fmt: skip
        names.update({(table, str(id_)): name for id_, name in found})
    for row in rows:
        if id_ := str(row[label]):
            row[label] = names.get((table, id_)) or _hex(int(id_))


def _place(store: Store, rows: Sequence[dict[str, object]]) -> None:
    """Put UUIDs in place of GPUs' ids, and where they stand. Raises Retry."""
    if not rows:
        return
    ids = sorted({int(str(row["gpu"])) for row in rows})
    found = store.query(
        f"{compiler.NAMES['gpus']} WHERE gpu_id IN {{ids:Array(UInt64)}}", {"ids": ids}, **LIMITS
    ).rows  # fmt: skip
    known = {id_: dict(zip(("gpu", *PLACE), told, strict=True)) for id_, *told in found}
    for row in rows:
        id_ = int(str(row["gpu"]))
        row.update(known.get(id_) or {"gpu": _hex(id_)})


def _hex(number: int) -> str:
    """As the engine's own lower(hex(...)): whole bytes."""
    digits = f"{number:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _presence(signal: Signal) -> str:
    return f"{signal.with_} SELECT toFloat64({signal.present}) FROM {signal.source}".strip()  # noqa: S608


def _hits(
    signal: Signal,
    rule: Rule,
    rows: Sequence[Mapping[str, object]],
    thresholds: Mapping[str, float],
) -> list[Hit]:
    """What of the rows breaks this rule."""
    limit, breaks = thresholds.get(rule.name, rule.threshold), COMPARED[rule.operator]
    values = ((row, row[rule.name]) for row in rows)
    return [
        Hit({name: str(row[name] or "") for name in signal.labels}, value)
        for row, told in values
        if told is not None and breaks(value := float(str(told)), limit)
    ]
