"""Rules that have SQL, as Grafana-managed alert rules: for its provisioning API, and for its files.

The two forms are not interchangeable. In both a rule is a chain: A asks ClickHouse (a table whose
texts become labels), B reduces it to its last value, C compares. Only macros that the data source
expands in its backend stand in the SQL, since nothing else runs in alerting. What is not broken has
no row, so that a site of a million GPUs does not become a million series; a rule for which silence
is an alarm asks for all of its rows.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from alerts import compile as compiler
from alerts.render_prometheus import RUNBOOKS, labels
from alerts.rule import PAGES, NoData, Rule
from pipeline.publishing import PLUGIN, SOURCE_UID

FOLDER_UID: Final = "megawatch-alerts"
FOLDER_TITLE: Final = "Megawatch alerts"
SCHEDULER_S: Final = 10
"""Grafana refuses the interval of a group that is no multiple of it."""
PLUGIN_VERSION: Final = "4.20.0"
NOW: Final = "toDateTime($__toTime, 'UTC')"
SETTLED: Final = f"toDateTime(least({NOW}, (SELECT until FROM settled)), 'UTC')"  # noqa: S608
NO_DATA: Final[Mapping[NoData, Literal["OK", "Alerting", "KeepLast"]]] = {
    "ok": "OK", "alerting": "Alerting", "keep": "KeepLast",
}  # fmt: skip
_EXPRESSIONS: Final = {"type": "__expr__", "uid": "__expr__"}
_FIELD: Final = re.compile(r"\{(\w+)\}")

Json = dict[str, object]


def uid(rule: Rule) -> str:
    """Stable, and at most 40 characters, which is all that Grafana takes."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", rule.name).lower()
    whole = f"mw-{name}"
    return whole if len(whole) <= 40 else f"{whole[:31]}-{_digest(rule.name)}"


def sql(rule: Rule, thresholds: Mapping[str, float], caps_w: Mapping[str, float]) -> str:
    """What A asks: labels, and one number."""
    assert rule.signal is not None, f"{rule.name} has no SQL"
    # Where silence is an alarm every row, broken or not: no row at all means that nothing is heard.
    text = compiler.query(rule.signal, [rule], thresholds, every=rule.no_data != "ok", ordered=True)
    text = compiler.named(rule.signal, rule, text)
    at = NOW if rule.signal.clock == "wall" else SETTLED
    return compiler.bound(text, caps_w, at)


def api_group(
    name: str, rules: Sequence[Rule], queries: Mapping[str, str], limits: Mapping[str, float]
) -> Json:
    """The body of PUT /api/v1/provisioning/folder/{folderUid}/rule-groups/{group}."""
    return {
        "title": f"megawatch-{name}",
        "folderUid": FOLDER_UID,
        "interval": interval_s(rules[0]),
        "rules": [
            _rule(rule, queries[rule.name], limits)
            | {"orgID": 1, "folderUID": FOLDER_UID, "ruleGroup": f"megawatch-{name}"}
            for rule in rules
        ],
    }


def file_groups(
    groups: Mapping[str, Sequence[Rule]], queries: Mapping[str, str], limits: Mapping[str, float]
) -> str:
    """A file under conf/provisioning/alerting/: YAML that is also JSON."""
    listed = [
        {
            "orgId": 1,
            "name": f"megawatch-{name}",
            "folder": FOLDER_TITLE,
            "interval": f"{interval_s(rules[0])}s",
            "rules": [_rule(rule, queries[rule.name], limits) for rule in rules],
        }
        for name, rules in groups.items()
    ]
    return json.dumps({"apiVersion": 1, "groups": listed}, indent=2, ensure_ascii=False) + "\n"


def interval_s(rule: Rule) -> int:
    """How often it is asked: as its signal, in whole steps of Grafana's scheduler."""
    assert rule.signal is not None, f"{rule.name} has no SQL"
    return -(-rule.signal.every_s // SCHEDULER_S) * SCHEDULER_S


def _rule(rule: Rule, query: str, limits: Mapping[str, float]) -> Json:
    kind = "gt" if rule.above is not None else "lt"
    limit = limits.get(rule.name, rule.threshold)
    return {
        "uid": uid(rule),
        "title": rule.name,
        "condition": "C",
        "data": [
            _node("A", SOURCE_UID, {
                "refId": "A", "datasource": {"type": PLUGIN, "uid": SOURCE_UID},
                "pluginVersion": PLUGIN_VERSION, "editorType": "sql", "rawSql": query, "format": 1,
                "queryType": "table", "meta": {}, "intervalMs": 1000, "maxDataPoints": 43200,
            }),
            _node("B", "__expr__", {
                "refId": "B", "datasource": _EXPRESSIONS, "type": "reduce", "expression": "A",
                "reducer": "last",
            }),
            _node("C", "__expr__", {
                "refId": "C", "datasource": _EXPRESSIONS, "type": "threshold", "expression": "B",
                "conditions": [{"evaluator": {"type": kind, "params": [limit]}}],
            }),
        ],
        "noDataState": NO_DATA[rule.no_data],
        "execErrState": "KeepLast",
        "for": f"{rule.for_s}s",
        "keep_firing_for": f"{rule.keep_firing_s}s",
        "labels": labels(rule),
        "annotations": _annotations(rule),
        "isPaused": False,
    }  # fmt: skip


def _annotations(rule: Rule) -> dict[str, str]:
    def field(found: re.Match[str]) -> str:
        name = found[1]
        return (
            '{{ printf "%.4g" $values.B.Value }}'
            if name == "value"
            else f"{{{{ $labels.{name} }}}}"
        )

    return {
        "summary": _FIELD.sub(field, rule.summary),
        "question": rule.question,
        "runbook_url": f"{RUNBOOKS}/{rule.runbook}",
        "dashboard_uid": PAGES[rule.page],
    }


def _node(ref: str, source: str, model: Json) -> Json:
    return {
        "refId": ref, "queryType": "", "relativeTimeRange": {"from": 300, "to": 0},
        "datasourceUid": source, "model": model,
    }  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
