"""The life of a rule's alerts: a pure step from one evaluation to the next, as Prometheus has it.

pending at the first hit, firing when it has been hit for `for_s`, gone at once if it was only
pending, held for `keep_firing_s` after its last hit, then resolved, and kept so for a while, so
that everybody is told.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from alerts.alert import Alert, fingerprint
from alerts.rule import Rule
from pipeline.errors import Reject

RESOLVED_KEPT_MS: Final = 900_000
MAX_ACTIVE: Final = 30_000
"""Alerts of one rule: every node of a site of 220,000 GPUs has room."""


class Hit(NamedTuple):
    """A set of labels that breaks a rule, and by what value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query said of one rule. `whole` is false where it was cut: what is missing may hit."""

    hits: Sequence[Hit] = ()
    present: bool = True
    whole: bool = True


class Step(NamedTuple):
    """A rule's alerts after an evaluation, and how many new ones had no room."""

    alerts: dict[int, Alert]
    dropped: int


def version(rule: Rule, threshold: float) -> str:
    """Changes with whatever decides what is broken; another `for` or summary is no other rule."""
    signal = rule.signal
    judged = (
        () if signal is None else
        (signal.clock, *sorted(signal.labels.items()), signal.source, signal.with_)
    )  # fmt: skip
    text = repr((judged, rule.value, rule.operator, threshold))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def step(
    alerts: Mapping[int, Alert], answer: Answer | None, rule: Rule, revision: str, at_ms: int
) -> Step:
    """The rule's alerts at `at_ms`, by fingerprint; no answer (an error) leaves them as they were.

    Raises Reject when two hits have the same labels.
    """
    kept = {f: a for f, a in alerts.items() if not _is_past(a, at_ms)}
    if answer is None or not (answer.present or rule.no_data == "ok"):
        if answer is None or rule.no_data == "keep":
            return Step(kept, 0)
        assert rule.signal is not None, "only a query can find no data"
        missing = _by_fingerprint(rule, [Hit({"no_data": rule.signal.name}, 0.0)])
        return Step(kept | _hit(kept, missing, rule, revision, at_ms), 0)
    found = _by_fingerprint(rule, answer.hits)
    admitted = _admitted(kept, found, rule)
    out = _hit(kept, admitted, rule, revision, at_ms)
    for print_, alert in kept.items():
        if print_ not in out:
            missed = alert if not answer.whole else _missed(alert, rule, revision, at_ms)
            if missed is not None:
                out[print_] = missed
    return Step(out, len(found) - len(admitted))


def _is_past(alert: Alert, at_ms: int) -> bool:
    return alert.state == "resolved" and at_ms - alert.resolved_ms > RESOLVED_KEPT_MS


def _by_fingerprint(rule: Rule, hits: Sequence[Hit]) -> dict[int, Hit]:
    found: dict[int, Hit] = {}
    for hit in hits:
        # An empty label is no label, as everybody who receives alerts has it.
        labels = {name: value for name, value in hit.labels.items() if value}
        key = fingerprint(rule.name, labels)
        if key in found:
            raise Reject(f"{rule.name}: two rows with the labels {labels}")
        found[key] = Hit(labels, hit.value)
    return found


def _admitted(kept: Mapping[int, Alert], found: dict[int, Hit], rule: Rule) -> dict[int, Hit]:
    """What is active already, and the worst of the rest as far as there is room."""
    if len(found) <= MAX_ACTIVE:
        return found
    active = {f: hit for f, hit in found.items() if f in kept and kept[f].state != "resolved"}
    sign = -1 if rule.operator == ">" else 1
    new = sorted(
        (f for f in found if f not in active),
        key=lambda f: (sign * found[f].value, sorted(found[f].labels.items())),
    )
    return active | {f: found[f] for f in new[: max(0, MAX_ACTIVE - len(active))]}


def _hit(
    kept: Mapping[int, Alert], hits: Mapping[int, Hit], rule: Rule, revision: str, at_ms: int
) -> dict[int, Alert]:
    out = {}
    for print_, hit in hits.items():
        alert = kept.get(print_)
        if alert is None or alert.state == "resolved" or alert.version != revision:
            alert = Alert(
                rule=rule.name, version=revision, severity=rule.severity, labels=hit.labels,
                state="pending", value=hit.value, active_ms=at_ms,
            )  # fmt: skip
        alert = replace(alert, value=hit.value, missed_ms=0, severity=rule.severity)
        if alert.state == "pending" and at_ms - alert.active_ms >= rule.for_s * 1000:
            alert = replace(alert, state="firing", fired_ms=at_ms)
        out[print_] = alert
    return out


def _missed(alert: Alert, rule: Rule, revision: str, at_ms: int) -> Alert | None:
    if alert.state == "pending":
        return None
    if alert.state == "resolved":
        return alert
    missed_ms = alert.missed_ms or at_ms
    if alert.version == revision and at_ms - missed_ms < rule.keep_firing_s * 1000:
        return replace(alert, missed_ms=missed_ms)
    return replace(alert, state="resolved", resolved_ms=at_ms, missed_ms=missed_ms)
