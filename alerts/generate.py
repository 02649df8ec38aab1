"""`megawatch alerts generate`: every rule for Prometheus and Grafana, committed and checked for drift."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from alerts import render_grafana, render_prometheus
from alerts.rule import Rule
from alerts.rules import THEMES

FOLDER: Final = Path(__file__).with_name("generated")
"""What is committed: default thresholds, and no caps, since those are a site's own."""


def documents(
    caps_w: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    disabled: Sequence[str] = (),
) -> dict[str, str]:
    """Path below the folder to text, of all forms."""
    caps, limits = caps_w or {}, thresholds or {}
    out: dict[str, str] = {}
    groups: dict[str, list[Rule]] = {}
    for theme, every in THEMES.items():
        rules = [rule for rule in every if rule.name not in disabled]
        text = render_prometheus.rule_file(theme, rules, limits)
        if text:
            out[f"prometheus/{theme}.yaml"] = text
        for rule in rules:
            if rule.signal is not None:
                # A group has one interval, so that a signal is not asked more often than it is worth.
                name = f"{theme}-{render_grafana.interval_s(rule)}s"
                groups.setdefault(name, []).append(rule)
    queries = {
        rule.name: render_grafana.sql(rule, limits, caps)
        for rules in groups.values()
        for rule in rules
    }
    for name, rules in groups.items():
        body = render_grafana.api_group(name, rules, queries, limits)
        out[f"grafana/api/{name}.json"] = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    out["grafana/file/megawatch.yaml"] = render_grafana.file_groups(groups, queries, limits)
    return out


def write(folder: Path = FOLDER, wanted: Mapping[str, str] | None = None) -> list[Path]:
    """Write what differs and remove what is no rule any more; returns the files that changed."""
    texts = documents() if wanted is None else wanted
    changed = []
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    for path in _there(folder):
        if str(path.relative_to(folder)) not in texts:
            path.unlink()
            changed.append(path)
    return changed


def drift(folder: Path = FOLDER) -> list[str]:
    """Names of files that are not what the rules say."""
    wanted = documents()
    there = {str(path.relative_to(folder)): path.read_text() for path in _there(folder)}
    return sorted(n for n in {*wanted, *there} if wanted.get(n) != there.get(n))


def _there(folder: Path) -> list[Path]:
    return [p for kind in ("prometheus", "grafana") for p in sorted((folder / kind).rglob("*.*"))]
