"""Alerts in the store: each change of state for people, and where all stand for the next start."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, get_args

from alerts.alert import Alert, State
from pipeline.store import Store

TOLERANCE_MS: Final = 3_600_000
"""After a longer outage nothing is restored: what is still broken is told anew."""
_ALIVE: Final = ("", 0)
_STATES: Final = {"gone": 0} | {name: n for n, name in enumerate(get_args(State), 1)}
_NUMBERS: Final = ("value", "active_ms", "fired_ms", "missed_ms", "resolved_ms", "sent_ms")

Alerts = Mapping[int, Alert]


def save(store: Store, before: Alerts, after: Alerts, now_ms: int) -> None:
    """Write what has changed; a failure leaves `before` true, so that it can be said again.

    The states go first: a story told twice is better than a page sent twice. Raises Retry.
    """
    changed = [a for f, a in after.items() if not _is_same(before.get(f), a)]
    gone = [a for f, a in before.items() if f not in after]
    if after or gone:
        states: list[Mapping[str, object]] = [_state(a, now_ms) for a in changed]
        states += [_state(a, now_ms) | {"state": _STATES["gone"]} for a in gone]
        states.append(_alive(now_ms))
        store.insert("alert_state", _columns(states))
    told = [a for a in changed if before.get(a.fingerprint, a) is a or _turned(before, a)]
    if told:
        store.insert("alert_history", _columns([_line(a, now_ms) for a in told]))


def restore(store: Store, now_ms: int) -> dict[int, Alert]:
    """The alerts of an evaluator that lived until lately, by fingerprint. Raises Retry."""
    rows = store.query(
        "SELECT *, toUnixTimestamp64Milli(saved_at) AS saved_ms FROM alert_state FINAL"
        " WHERE state != 'gone' OR rule = ''"
    ).dicts()
    alive_ms = max((r["saved_ms"] for r in rows if not r["rule"]), default=0)
    if now_ms - alive_ms > TOLERANCE_MS:
        return {}
    alerts = (_alert(row) for row in rows if row["rule"])
    return {alert.fingerprint: alert for alert in alerts}


def _is_same(old: Alert | None, new: Alert) -> bool:
    """Whether nothing is lost if the new one is not written: values and repetitions come again."""
    if old is None:
        return False
    return replace(
        new, value=old.value, sent_ms=old.sent_ms, annotations=old.annotations
    ) == old  # fmt: skip


def _turned(before: Alerts, alert: Alert) -> bool:
    old = before[alert.fingerprint]
    return (old.state, old.active_ms) != (alert.state, alert.active_ms)


def _state(alert: Alert, now_ms: int) -> dict[str, object]:
    return {
        "rule": alert.rule, "fingerprint": alert.fingerprint, "saved_at": now_ms,
        "version": alert.version, "state": _STATES[alert.state], "severity": alert.severity,
        "labels": _json(alert.labels), "annotations": _json(alert.annotations),
        "told": alert.told, **{name: getattr(alert, name) for name in _NUMBERS},
    }  # fmt: skip


def _alive(now_ms: int) -> dict[str, object]:
    texts = dict.fromkeys(("version", "severity", "labels", "annotations", "told"), "")
    rule, print_ = _ALIVE
    return {
        "rule": rule, "fingerprint": print_, "saved_at": now_ms, "state": _STATES["gone"],
        **texts, **dict.fromkeys(_NUMBERS, 0),
    }  # fmt: skip


def _line(alert: Alert, now_ms: int) -> dict[str, object]:
    begun_ms = {"pending": alert.active_ms, "firing": alert.fired_ms}
    return {
        "at": begun_ms.get(alert.state, alert.resolved_ms) or now_ms, "rule": alert.rule,
        "fingerprint": alert.fingerprint, "state": _STATES[alert.state],
        "severity": alert.severity, "labels": _json(alert.labels),
        "annotations": _json(alert.annotations), "value": alert.value,
    }  # fmt: skip


def _columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _json(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(labels.items())))


def _alert(row: Mapping[str, object]) -> Alert:
    fields = {name: row[name] for name in ("rule", "version", "state", "severity", "told")}
    texts = {name: json.loads(str(row[name])) for name in ("labels", "annotations")}
    numbers = {name: row[name] for name in _NUMBERS}
    return Alert(**fields, **texts, **numbers)  # type: ignore[arg-type]
