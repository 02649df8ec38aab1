"""An alert: a rule that is broken by one set of labels, from its first hit to its resolution."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from alerts.rule import Severity

State = Literal["pending", "firing", "resolved"]
Told = Literal["", "firing", "resolved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Times are UTC milliseconds of evaluations, 0 for never.

    labels: what tells it from the rule's other alerts, without the rule's name; never the value.
    version: of the rule: another query or threshold begins anew.
    """

    rule: str
    version: str
    severity: Severity
    labels: Mapping[str, str]
    state: State
    value: float
    active_ms: int
    fired_ms: int = 0
    missed_ms: int = 0
    """Since when it is not broken any more, while keep_firing_for still holds it."""
    resolved_ms: int = 0
    sent_ms: int = 0
    told: Told = ""
    """The last state that somebody has been told, at sent_ms."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> int:
        """64 bits of the rule's name and its labels, whatever their order."""
        return fingerprint(self.rule, self.labels)


def fingerprint(rule: str, labels: Mapping[str, str]) -> int:
    """64 bits of a name and labels, whatever their order."""
    text = "\0".join((rule, *(f"{k}\1{labels[k]}" for k in sorted(labels))))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
