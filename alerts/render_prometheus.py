"""Rules that have PromQL, as Prometheus' own rule files.

Written by hand as YAML whose strings are JSON strings, which YAML reads alike.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from alerts.rule import PAGES, Rule

RUNBOOKS: Final = "alerts/runbooks"
"""Where runbooks stand: a path in this project, which has no address of its own."""
_FIELD: Final = re.compile(r"\{(\w+)\}")


def rule_file(name: str, rules: Sequence[Rule], thresholds: Mapping[str, float]) -> str:
    """One file with one group, or nothing where no rule has PromQL."""
    blocks = [_rule(rule, thresholds) for rule in rules if rule.promql]
    if not blocks:
        return ""
    return f"groups:\n  - name: megawatch-{name}\n    interval: 15s\n    rules:\n" + "".join(blocks)


def expression(rule: Rule, thresholds: Mapping[str, float]) -> str:
    """The rule's PromQL with its comparison."""
    limit = thresholds.get(rule.name, rule.threshold)
    return f"({rule.promql}) {rule.operator} {limit:g}"


def summary(rule: Rule) -> str:
    """The rule's sentence as a template of Prometheus."""

    def field(found: re.Match[str]) -> str:
        name = found[1]
        return '{{ $value | printf "%.4g" }}' if name == "value" else f"{{{{ $labels.{name} }}}}"

    return _FIELD.sub(field, rule.summary)


def labels(rule: Rule) -> dict[str, str]:
    """What every alert of the rule carries beside the labels of its series."""
    told = {"tenant_visible": "true"} if rule.tenant_visible else {}
    return {"severity": rule.severity, "scope": rule.scope, **told, **rule.labels}


def _rule(rule: Rule, thresholds: Mapping[str, float]) -> str:
    annotations = {
        "summary": summary(rule), "question": rule.question,
        "runbook_url": f"{RUNBOOKS}/{rule.runbook}", "dashboard_uid": PAGES[rule.page],
    }  # fmt: skip
    lines = [f"      - alert: {rule.name}", f"        expr: {_text(expression(rule, thresholds))}"]
    for key, seconds in (("for", rule.for_s), ("keep_firing_for", rule.keep_firing_s)):
        if seconds:
            lines.append(f"        {key}: {seconds}s")
    for key, pairs in (("labels", labels(rule)), ("annotations", annotations)):
        lines.append(f"        {key}:")
        lines += [f"          {name}: {_text(value)}" for name, value in pairs.items()]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
