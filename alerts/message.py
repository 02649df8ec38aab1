"""An alert as Alertmanager's API v2 takes it, and as a sentence: pure, and always valid."""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from alerts.alert import Alert
from alerts.rule import PAGES, Rule

MAX_TEXT: Final = 1000
"""Characters of a label's or an annotation's value."""
_BAD: Final = re.compile(r"[^a-zA-Z0-9_]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

Message = dict[str, Any]


class _Number(float):
    """A value that reads well unless a summary says how."""

    def __format__(self, spec: str, /) -> str:
        return super().__format__(spec) if spec else number(self)


class _Names(dict[str, Any]):
    """Leaves a name that it does not know as it stands: no page fails for its wording."""

    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


def number(value: float) -> str:
    """A value as a person reads it: 3 digits below 1, else at most one decimal."""
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.1f}".removesuffix(".0")


def sentence(rule: Rule, alert: Alert) -> str:
    """The rule's summary with the alert's labels and value."""
    if "no_data" in alert.labels:
        return f"{rule.name}: no data of {alert.labels['no_data']}"
    names = _Names({**rule.labels, **alert.labels, "value": _Number(alert.value)})
    try:
        return rule.summary.format_map(names)
    except (ValueError, AttributeError, LookupError, TypeError):
        return rule.summary


def annotations(rule: Rule, alert: Alert, dashboards_url: str) -> dict[str, str]:
    """What a person needs besides the labels: the sentence, and where to look."""
    variables = {
        f"var-{n}": alert.labels[n] for n in ("site", "node", "tenant") if n in alert.labels
    }
    page = f"{dashboards_url.rstrip('/')}/d/{PAGES[rule.page]}"
    return {
        "summary": sentence(rule, alert),
        "description": rule.question,
        "value": f"{number(alert.value)} {rule.unit}".strip(),
        "runbook": f"alerts/runbooks/{rule.runbook}",
        "dashboard": f"{page}?{urlencode(variables)}" if variables else page,
    }


def message(alert: Alert, extra: Mapping[str, str], ends_ms: int) -> Message:
    """What is posted; `extra` labels are the rule's own. Times are UTC milliseconds."""
    labels = {**extra, **alert.labels, "alertname": alert.rule, "severity": alert.severity}
    return {
        "labels": valid(labels),
        "annotations": valid(alert.annotations),
        "startsAt": _iso(alert.fired_ms),
        "endsAt": _iso(max(alert.fired_ms, ends_ms)),
        "generatorURL": alert.annotations.get("dashboard", ""),
    }


def valid(texts: Mapping[str, str]) -> dict[str, str]:
    """Names of letters, digits and _, values without what JSON or UTF-8 cannot carry, none empty."""
    out: dict[str, str] = {}
    for name, text in texts.items():
        clean = _BAD.sub("_", name) or "_"
        clean = f"_{clean}" if clean[0].isdigit() else clean
        while clean in out:
            clean += "_"
        if value := _CONTROL.sub("\ufffd", text)[:MAX_TEXT]:
            out[clean] = value
    return out


def _iso(ms: int) -> str:
    at = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
