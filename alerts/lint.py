"""`megawatch alerts lint`: names the known mistakes in anybody's Prometheus rules for GPU metrics.

It speaks of what it knows and is silent about the rest: other metrics, names it has never seen.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from alerts import lint_files
from alerts.lint_checks import CHECKS
from alerts.lint_metrics import GPU_NAME
from alerts.lint_rule import Fault, Rule, Seen, selectors
from alerts.lint_tokens import NotUnderstood
from alerts.promql import Aggregate, Node, Selector, parse, walk
from pipeline.errors import Refuse


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake at a place: what is wrong, why, and the form to write instead."""

    file: str
    line: int
    group: str
    rule: str
    check: str
    what: str
    why: str
    correct: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came out: rules_n read, findings, and a sentence for all that could not be read."""

    rules_n: int
    findings: tuple[Finding, ...]
    unread: tuple[str, ...]

    @property
    def status(self) -> int:
        """The exit status: 2 if something was not read, else 1 with findings, else 0."""
        if self.unread:
            return 2
        return 1 if self.findings else 0


def run(files: Sequence[str], as_json: bool) -> int:
    """Lint files and say what was found; with as_json, as the last line of standard output."""
    report = lint_paths([Path(name) for name in files])
    out = sys.stderr if as_json else sys.stdout
    for finding in report.findings:
        print(_told(finding), end="\n\n", file=out)
    for sentence in report.unread:
        print(f"megawatch: {sentence}", file=sys.stderr)
    print(
        f"{report.rules_n} rules, {len(report.findings)} findings, {len(report.unread)} not read",
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps(asdict(report)))
    return report.status


def lint_paths(paths: Iterable[Path]) -> Report:
    """A report on several files; one that cannot be read does not hide the others."""
    rules_n, findings, unread = 0, list[Finding](), list[str]()
    for path in paths:
        try:
            read = lint_files.read(path)
        except Refuse as error:
            unread.append(str(error))
            continue
        one = lint(read)
        rules_n += one.rules_n
        findings += one.findings
        unread += one.unread
    return Report(rules_n, tuple(findings), tuple(unread))


def lint(rules: Sequence[Rule]) -> Report:
    """A report on the rules of one file. Expressions without a metric of the exporters pass."""
    trees: list[tuple[Rule, Node]] = []
    unread: list[str] = []
    for rule in rules:
        if not any(name in rule.expr for name in GPU_NAME):
            continue
        try:
            trees.append((rule, parse(rule.expr)))
        except NotUnderstood as error:
            unread.append(f"{rule.file}:{rule.line}: {rule.name}: not understood: {error}")
    metrics = frozenset(s.name for _, tree in trees for s in selectors(tree))
    has_mig = any(_names_mig(tree) for _, tree in trees)
    findings = [
        _finding(rule, check, fault)
        for rule, tree in trees
        for check, examine in CHECKS.items()
        for fault in examine(Seen(rule, tree, metrics, has_mig))
    ]
    return Report(len(rules), tuple(findings), tuple(unread))


def _names_mig(tree: Node) -> bool:
    for node in walk(tree):
        labels: tuple[str, ...] = ()
        if isinstance(node, Selector):
            labels = tuple(matcher.label for matcher in node.matchers)
        elif isinstance(node, Aggregate) and node.grouping:
            labels = node.grouping.names
        if any(label.startswith("GPU_I_") for label in labels):
            return True
    return False


def _finding(rule: Rule, check: str, fault: Fault) -> Finding:
    correct = fault.correct if "#" in fault.correct else " ".join(fault.correct.split())
    return Finding(
        rule.file, rule.for_line if fault.at_for else rule.line, rule.group, rule.name, check,
        fault.what, fault.why, correct,
    )  # fmt: skip


def _told(finding: Finding) -> str:
    return (
        f"{finding.file}:{finding.line}: {finding.group}/{finding.rule}: {finding.what} "
        f"[{finding.check}]\n  why: {finding.why}\n  use: {finding.correct}"
    )
