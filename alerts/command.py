"""What `megawatch alerts` does, apart from evaluating."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from alerts import generate as generating
from alerts.rule import PAGES, Rule
from alerts.rules import RULES
from pipeline import table
from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.publishing import need_client
from pipeline.settings import Alerts, Settings


def run(args: argparse.Namespace, settings: Settings, clock: Clock) -> int:
    """The action that is asked for. Raises Refuse or Retry."""
    if args.file and args.action != "lint":
        raise Refuse(f"alerts {args.action} takes no file: leave out {args.file[0]!r}")
    if args.action == "list":
        return list_rules(settings.alerts, args.json)
    if args.action == "generate":
        return generate(settings.alerts, args.to or "", args.check)
    if args.action == "publish":
        return _publish(args, settings, clock)
    return lint(args.file, args.json)


def _publish(args: argparse.Namespace, settings: Settings, clock: Clock) -> int:
    need_client()
    from alerts.publish import publish

    return publish(args, settings.grafana, settings.alerts, clock)


def list_rules(settings: Alerts, as_json: bool) -> int:
    """Print every rule, its threshold as configured, and why it exists."""
    if as_json:
        print(json.dumps([_described(rule, settings) for rule in RULES]))
        return 0
    names = ("rule", "severity", "scope", "breaks", "for", "question")
    rows = [
        [
            rule.name,
            rule.severity,
            rule.scope,
            _breaks(rule, settings),
            f"{rule.for_s} s",
            rule.question,
        ]
        for rule in RULES
    ]
    print(table.render(names, rows))
    return 0


def generate(settings: Alerts, folder: str, check: bool) -> int:
    """Write the generated forms, or with `check` only say which differ; 1 if any do.

    The committed forms have default thresholds and no caps; into another folder the configured ones
    are written.
    """
    if check:
        stale = generating.drift()
        for name in stale:
            print(f"differs from the rules: {name}", file=sys.stderr)
        return 1 if stale else 0
    if folder:
        caps_w = {name: kw * 1000 for name, kw in settings.cap_kw.items()}
        texts = generating.documents(caps_w, settings.thresholds, settings.disabled)
        changed = generating.write(Path(folder), texts)
    else:
        changed = generating.write()
    for path in changed:
        print(path, file=sys.stderr)
    return 0


def lint(files: Sequence[str], as_json: bool) -> int:
    """Name the known mistakes in anybody's rule files. Raises Refuse."""
    if not files:
        raise Refuse("alerts lint needs a file of Prometheus rules: alerts lint rules.yaml")
    try:
        from alerts import lint as linter
    except ModuleNotFoundError as error:
        raise Refuse("reading rule files needs PyYAML: pip install 'megawatch[alerts]'") from error
    return linter.run(files, as_json)


def _described(rule: Rule, settings: Alerts) -> dict[str, object]:
    return {
        "name": rule.name, "question": rule.question, "severity": rule.severity,
        "scope": rule.scope, "operator": rule.operator, "unit": rule.unit,
        "threshold": settings.thresholds.get(rule.name, rule.threshold),
        "for_s": rule.for_s, "keep_firing_s": rule.keep_firing_s, "no_data": rule.no_data,
        "tenant_visible": rule.tenant_visible, "disabled": rule.name in settings.disabled,
        "forms": [form for form, has in (("sql", rule.signal), ("promql", rule.promql)) if has],
        "runbook": rule.runbook, "dashboard": PAGES[rule.page],
    }  # fmt: skip


def _breaks(rule: Rule, settings: Alerts) -> str:
    if rule.name in settings.disabled:
        return "disabled"
    return f"{rule.operator} {settings.thresholds.get(rule.name, rule.threshold):g} {rule.unit}".strip()
