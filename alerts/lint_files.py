"""Rules from files: Prometheus rule files, and PrometheusRule resources in Kubernetes manifests.

The YAML is composed but not constructed: nodes know their lines, and no object is ever made.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from alerts.lint_rule import Rule
from alerts.lint_tokens import seconds
from pipeline.errors import Refuse

SIZE_MAX: Final = 4 << 20
RULES_MAX: Final = 20_000
_HELM: Final = (
    "is a template that Helm has not rendered: run `helm template` and lint what comes out"
)


def read(path: Path) -> list[Rule]:
    """The rules of a file. Raises Refuse: one sentence with the file, and the line if there is."""
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise Refuse(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > SIZE_MAX:
        raise Refuse(f"{path}: larger than {SIZE_MAX >> 20} MiB: split it")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Refuse(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    return rules(text, str(path))


def rules(text: str, file: str) -> list[Rule]:
    """The rules of a text. Raises Refuse."""
    try:
        composed = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        if "{{" in text:
            raise Refuse(f"{file}: {_HELM}") from error
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        raise Refuse(f"{where}: not YAML: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise Refuse(f"{file}: not YAML that a rule file needs: nested too deep") from error
    documents = [d for d in composed if not isinstance(d, yaml.ScalarNode) or d.value]
    groups = [g for d in documents for g in _groups(d, file, depth=0)]
    if documents and not groups and not any(map(_has_groups, documents)):
        raise Refuse(
            f"{file}: no rules: neither `groups:` at the top nor a PrometheusRule's `spec.groups:`"
        )
    out: list[Rule] = []
    for group in groups:
        for rule in _rules(group, file):
            if len(out) >= RULES_MAX:
                raise Refuse(f"{file}: more than {RULES_MAX} rules")
            out.append(rule)
    return out


def _has_groups(node: yaml.Node) -> bool:
    """Whether a document is of a sort that holds rules, with or without any in it."""
    keys = _keys(node)
    return "groups" in keys or _text(keys.get("kind")) in ("PrometheusRule", "List")


def _groups(document: yaml.Node, file: str, depth: int) -> Iterator[yaml.Node]:
    keys = _keys(document)
    kind = _text(keys.get("kind"))
    if kind == "List" and depth == 0:
        for item in _items(keys.get("items"), file, "items"):
            yield from _groups(item, file, depth=1)
    elif kind == "PrometheusRule":
        yield from _items(_keys(keys.get("spec")).get("groups"), file, "spec.groups")
    elif not kind:
        yield from _items(keys.get("groups"), file, "groups")


def _rules(group: yaml.Node, file: str) -> Iterator[Rule]:
    keys = _keys(group)
    name = _text(keys.get("name"))
    for node in _items(keys.get("rules"), file, "rules"):
        rule = _keys(node)
        alert, record = _text(rule.get("alert")), _text(rule.get("record"))
        expr = rule.get("expr")
        if not isinstance(expr, yaml.ScalarNode) or not (alert or record):
            raise Refuse(f"{_at(file, node)}: a rule needs `expr` and `alert` or `record`")
        pause = rule.get("for")
        if "{{" in expr.value or "{{" in _text(pause):
            raise Refuse(f"{_at(file, expr)}: {_HELM}")
        for_s = seconds(_text(pause) or "0")
        if for_s is None:
            raise Refuse(f"{_at(file, pause or node)}: `for` is not a duration like 5m")
        block = expr.style in ("|", ">")
        yield Rule(
            file=file, group=name, name=alert or record, alerts=bool(alert), expr=expr.value,
            line=expr.start_mark.line + 1 + block, for_s=for_s,
            for_line=(pause or node).start_mark.line + 1,
            severity=_text(_keys(rule.get("labels")).get("severity")),
        )  # fmt: skip


def _keys(node: yaml.Node | None) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {_text(key): value for key, value in reversed(node.value)}


def _items(node: yaml.Node | None, file: str, name: str) -> list[yaml.Node]:
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise Refuse(f"{_at(file, node)}: `{name}` is not a list")
    items: list[yaml.Node] = node.value
    return items


def _text(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _at(file: str, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"
