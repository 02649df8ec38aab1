"""Pages that folding makes, as alerts of their own: identity, wording, and who belongs to whom."""

import datetime as dt
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final, get_args

from alerts.alert import Alert
from alerts.fold import Damage, Page
from alerts.rule import Rule, Scope, Severity
from alerts.state import Hit
from alerts.topology import Level, Place, Topology

NAME: Final = "Incident"
REVISION: Final = "1"
FOLDED_SCOPES: Final[tuple[Scope, ...]] = ("gpu", "node", "rack", "pdu", "row", "hall")
"""What stands somewhere; a site's, a tenant's or a service's alert is told by itself."""
FOLDED: Final[tuple[Severity, ...]] = ("page", "ticket")
"""Severities are folded apart: a ticket of last week is not hidden behind tonight's page."""
NAMED: Final = 10
"""Symptoms and tenants that a page lists by name."""


def rule(severity: Severity) -> Rule:
    """What a folded page is an alert of."""
    return Rule(
        name=NAME, question="What has broken at once, and where?", severity=severity,
        scope="site", summary="", above=0.0, unit="GPUs",
    )  # fmt: skip


def place_of(labels: Mapping[str, str]) -> Place | None:
    """The place that the labels of a page name; None if they name none."""
    level = labels.get("scope", "")
    if level not in get_args(Level):
        return None
    hall = labels.get("hall", "") if level in ("rack", "row", "pdu") else ""
    name = labels.get("site" if level == "storm" else level, "")
    return Place(level, labels.get("site", ""), hall, name)  # type: ignore[arg-type]


def hit(page: Page, severity: Severity, topology: Topology, stands: Collection[Alert]) -> Hit:
    """What the state of a page follows; a page that stands keeps its labels to the letter."""
    for alert in stands:
        if place_of(alert.labels) == page.place:
            return Hit(alert.labels, float(page.damage.gpus))
    place = page.place
    labels = {
        "incident": page.incident, "severity": severity, "scope": place.level, "site": place.site,
        "hall": place.hall,
    }  # fmt: skip
    if place.level != "storm":
        labels[place.level] = place.name
    # What it stands in, so that a larger page can mute it.
    around = ("hall", "row", "pdu", "rack")[: {"node": 4, "rack": 3}.get(place.level, 0)]
    for spot in topology.spots_of(labels)[:1] if around else ():
        labels |= {level: getattr(spot, level) for level in around}
    return Hit({name: text for name, text in labels.items() if text}, float(page.damage.gpus))


def worded(alert: Alert, page: Page, children: Mapping[int, Alert], dashboard: str) -> Alert:
    """The page with what a person needs to know first."""
    inside = [children[f] for f in page.children if f in children]
    symptoms = Counter(child.rule for child in inside)
    listed = [_named(child) for child in inside[:NAMED]]
    if len(inside) > NAMED:
        listed.append(f"and {len(inside) - NAMED} more")
    of = f" of {page.size:,}" if page.size else ""
    where = page.place.text if page.place.level != "storm" else f"many places of {page.place.name}"
    first = _named(inside[0]) if inside else ""
    damage = damages(page.damage)
    return replace(alert, annotations={
        "summary": f"{where}: {page.damage.gpus:,}{of} GPUs, {damage['lost']} lost,"
        f" tenants {damage['tenants']}; first {first}",
        **damage,
        "first": f"{first} at {_iso(inside[0].active_ms)}" if inside else "",
        "symptoms": ", ".join(f"{name} {count}" for name, count in symptoms.most_common()),
        "children": "; ".join(listed),
        "runbook": "alerts/runbooks/Incident.md",
        "dashboard": dashboard,
    })  # fmt: skip


def damages(damage: Damage) -> dict[str, str]:
    """What is broken, as annotations."""
    tenants = ", ".join(damage.tenants[:NAMED]) or "none"
    if len(damage.tenants) > NAMED:
        tenants += f" and {len(damage.tenants) - NAMED} more"
    lost = f"{damage.lost_w / 1e6:.3f} MW"
    return {"gpus": str(damage.gpus), "lost": lost, "tenants": tenants}


def damaged(alert: Alert, damage: Damage) -> Alert:
    """An alert told by itself, with what is broken; said once for each wording of the rule."""
    if not damage.gpus or "gpus" in alert.annotations:
        return alert
    more = damages(damage)
    summary = alert.annotations.get("summary", "")
    told = f"{summary} ({damage.gpus:,} GPUs, {more['lost']} lost, tenants {more['tenants']})"
    return replace(alert, annotations={**alert.annotations, **more, "summary": told})


def _named(alert: Alert) -> str:
    labels = alert.labels
    where = " ".join(labels[n] for n in ("rack", "node", "gpu") if n in labels)
    return f"{alert.rule} {where}".strip()


def _iso(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms // 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
