"""One page for what has one cause: symptoms with a common place become a page that names it.

A place explains symptoms when enough of its GPUs are broken, and not by one of its parts alone. Of
all that explain, the one with the most symptoms is taken, the smallest where several have as many:
a rack while it is a rack, its hall when other rows of it follow. What no place explains may be
explained by the job that runs there, or by its tenant. A page that stands goes on while a fair part
of it is broken, so that recovery does not fall apart into pages of its own.

Pure: a function of the firing alerts, the topology, and the pages that stand.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from alerts.alert import Alert
from alerts.topology import Gpu, Level, Place, Spot, Topology

SHARE: Final[Mapping[Level, float]] = {
    # Half of a node, a rack or a row is more than chance: its parts fail by ones and twos.
    "node": 0.5, "rack": 0.5, "pdu": 0.5, "row": 0.5,
    # A hall that loses a third has lost a feed or its cooling, and nobody wants a page per row.
    "hall": 0.3, "site": 0.3,
    # Jobs and tenants are hit as a whole by what they do themselves.
    "job": 0.5, "tenant": 0.5,
}  # fmt: skip
"""What part of a place's GPUs must be broken, so that the place explains it."""
RELEASE: Final = 0.1
"""A page that stands is let go below this part: what is left then is told by itself."""
FEWEST: Final = 2
"""Symptoms that make a page together; and parts of a place that must be explained themselves."""
STORM: Final = 20
"""More single pages of a site than this at once are one page: nobody reads them one by one."""

_UPWARDS: Final[tuple[Level, ...]] = ("node", "rack", "pdu", "row", "hall", "site")
_HOLDERS: Final[tuple[Level, ...]] = ("job", "tenant")
_RANK: Final = {level: rank for rank, level in enumerate((*_UPWARDS, *_HOLDERS))}


@dataclass(frozen=True, slots=True)
class Damage:
    """What is broken: GPUs, the last watts of those that are silent, tenants, hardest hit first."""

    gpus: int
    lost_w: float
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A place and the symptoms that it explains. `incident` stays while the place grows.

    children: fingerprints, the first in time first; size: GPUs of the place.
    """

    place: Place
    incident: str
    children: tuple[int, ...]
    size: int
    damage: Damage


@dataclass(frozen=True, slots=True)
class Folded:
    """Every alert that was given is in exactly one page's children, or in singles."""

    pages: tuple[Page, ...] = ()
    singles: Mapping[int, Damage] = field(default_factory=dict)
    outgrown: Mapping[Place, Place] = field(default_factory=dict)
    """Places of pages that stood and are no more, by what has taken their symptoms over."""


@dataclass(slots=True)
class _Symptom:
    alert: Alert
    gpus: frozenset[Gpu]
    within: frozenset[Place]
    """Places that hold all of it."""
    site: str


def fold(alerts: Iterable[Alert], topology: Topology, standing: Mapping[Place, str]) -> Folded:
    """Pages and single alerts of alerts that fire; `standing` has the incidents of pages so far."""
    symptoms = {a.fingerprint: _symptom(a, topology) for a in alerts}
    broken = frozenset(gpu for s in symptoms.values() for gpu in s.gpus)
    chosen: dict[Place, list[int]] = {}
    left = set(symptoms)
    for explaining in (
        _explaining(broken, topology, standing), _held(broken, topology, standing),
    ):  # fmt: skip
        for place, inside in _cover(explaining, symptoms, left, topology, standing).items():
            chosen[place] = inside
            left -= set(inside)
    for place, inside in _storms(symptoms, left, standing).items():
        chosen[place] = inside
        left -= set(inside)
    outgrown = _outgrown(chosen, symptoms, standing)
    pages = []
    for place, inside in sorted(chosen.items()):
        inherited = sorted(standing[old] for old, new in outgrown.items() if new == place)
        inherited += _told_before(symptoms[f].alert for f in inside)
        incident = standing.get(place) or (inherited or [f"{place.site} {place.text}"])[0]
        pages.append(_page(place, incident, [symptoms[f] for f in inside], topology))
    return Folded(tuple(pages), {f: _damage([symptoms[f]]) for f in sorted(left)}, outgrown)


def spots(alerts: Iterable[Alert], topology: Topology) -> set[Spot]:
    """The nodes whose GPUs must be known to fold these alerts."""
    return {spot for alert in alerts for spot in topology.spots_of(alert.labels)}


def _symptom(alert: Alert, topology: Topology) -> _Symptom:
    gpus = _gpus_of(alert.labels, topology)
    if not gpus:
        return _Symptom(alert, frozenset(), frozenset(), "")
    physical = frozenset.intersection(*(spot.places() for spot in {gpu.spot for gpu in gpus}))
    return _Symptom(alert, frozenset(gpus), physical | _all_hold(gpus), gpus[0].spot.site)


def _all_hold(gpus: Sequence[Gpu]) -> frozenset[Place]:
    """Jobs and tenants that hold every one of them."""
    apart = {(g.spot.site, g.tenant, g.job): g for g in gpus}
    return frozenset.intersection(*(frozenset(g.holders()) for g in apart.values()))


def _gpus_of(labels: Mapping[str, str], topology: Topology) -> list[Gpu]:
    """The GPUs that labels name: one by its UUID or its index on a node, else all of the nodes."""
    gpus = [gpu for spot in topology.spots_of(labels) for gpu in topology.gpus.get(spot, ())]
    if one := labels.get("uuid") or labels.get("gpu"):
        return [gpu for gpu in gpus if one in (gpu.uuid, str(gpu.number))]
    return gpus


def _explaining(
    broken: Collection[Gpu], topology: Topology, standing: Mapping[Place, str]
) -> list[Place]:
    """Places that explain what is broken in them, from nodes upwards."""
    count = Counter[Place]()
    above: dict[Place, set[Place]] = defaultdict(set)
    for spot, hit in Counter(gpu.spot for gpu in broken).items():
        for place in spot.places():
            count[place] += hit
        for below, over in spot.links():
            above[below].add(over)
    parts, out = Counter[Place](), list[Place]()
    for place in sorted(count, key=lambda p: _RANK[p.level]):
        size = max(1, topology.sizes.get(place, 0))
        share = count[place] / size
        made_of = size if place.level == "node" else topology.parts.get(place, 0)
        explained = count[place] if place.level == "node" else parts[place]
        enough = share >= SHARE[place.level] and explained >= min(FEWEST, max(1, made_of))
        if enough or (place in standing and share >= RELEASE):
            out.append(place)
            for over in above[place]:
                parts[over] += 1
    return out


def _held(
    broken: Collection[Gpu], topology: Topology, standing: Mapping[Place, str]
) -> list[Place]:
    """Jobs and tenants that are hit as a whole, on more than one node."""
    count = Counter[Place]()
    nodes: dict[Place, set[Spot]] = defaultdict(set)
    for (spot, tenant, job), some in Counter((g.spot, g.tenant, g.job) for g in broken).items():
        for place in Gpu(spot, 0, "", tenant, job).holders():
            count[place] += some
            nodes[place].add(spot)
    out = []
    for place, hit in count.items():
        share = hit / max(1, topology.sizes.get(place, 0))
        wide = share >= SHARE[place.level] and len(nodes[place]) >= FEWEST
        if wide or (place in standing and share >= RELEASE):
            out.append(place)
    return out


def _cover(
    places: Iterable[Place], symptoms: Mapping[int, _Symptom], left: Collection[int],
    topology: Topology, standing: Mapping[Place, str],
) -> dict[Place, list[int]]:  # fmt: skip
    """Greedily the place that holds the most symptoms that are left; the smallest of equals."""
    wanted = set(places)
    inside: dict[Place, set[int]] = defaultdict(set)
    for print_ in left:
        for place in symptoms[print_].within & wanted:
            inside[place].add(print_)
    heap = [
        (-len(found), topology.sizes.get(place, 0), _RANK[place.level], place)
        for place, found in inside.items()
        if len(found) >= FEWEST or place in standing
    ]
    heapq.heapify(heap)
    out: dict[Place, list[int]] = {}
    taken: set[int] = set()
    while heap:
        most, size, rank, place = heapq.heappop(heap)
        free = inside[place] - taken
        if len(free) < -most:  # others took some since: it waits for its turn
            if free:
                heapq.heappush(heap, (-len(free), size, rank, place))
            continue
        out[place] = sorted(free)
        taken |= free
    return out


def _storms(
    symptoms: Mapping[int, _Symptom], left: Collection[int], standing: Mapping[Place, str]
) -> dict[Place, list[int]]:
    by_site: dict[str, list[int]] = defaultdict(list)
    for print_ in sorted(left):
        if site := symptoms[print_].site:
            by_site[site].append(print_)
    out = {}
    for site, found in by_site.items():
        place = Place("storm", site, "", site)
        if len(found) > (STORM // 2 if place in standing else STORM):
            out[place] = found
    return out


def _outgrown(
    chosen: Mapping[Place, Sequence[int]], symptoms: Mapping[int, _Symptom],
    standing: Mapping[Place, str],
) -> dict[Place, Place]:  # fmt: skip
    """Places of standing pages whose symptoms are in another page now, by that page's place."""
    out: dict[Place, Place] = {}
    for new, inside in sorted(chosen.items()):
        for old in {place for f in inside for place in symptoms[f].within}:
            if old in standing and old not in chosen:
                out.setdefault(old, new)
    return out


def incident_of(alert: Alert) -> str:
    """The incident of an alert that is told by itself: the smallest place that its labels name."""
    labels = alert.labels
    for level in ("gpu", "node", "rack", "pdu", "row", "hall"):
        if name := labels.get(level):
            return f"{labels.get('site', '')} {level} {name}".strip()
    return alert.rule


def _told_before(alerts: Iterable[Alert]) -> list[str]:
    """Incidents that people know of already: a page that grows from one of them is no new one."""
    told = [alert for alert in alerts if alert.told == "firing"]
    return [incident_of(a) for a in sorted(told, key=lambda a: (a.fired_ms, a.fingerprint))]


def _page(place: Place, incident: str, children: Sequence[_Symptom], topology: Topology) -> Page:
    ordered = sorted(children, key=lambda s: (s.alert.active_ms, s.alert.fingerprint))
    return Page(
        place=place,
        incident=incident,
        children=tuple(s.alert.fingerprint for s in ordered),
        size=topology.sizes.get(place, 0),
        damage=_damage(children),
    )


def _damage(symptoms: Iterable[_Symptom]) -> Damage:
    gpus = {gpu for symptom in symptoms for gpu in symptom.gpus}
    return Damage(
        gpus=len(gpus),
        lost_w=sum(gpu.watts for gpu in sorted(gpus) if gpu.silent),
        tenants=_by_count(gpu.tenant for gpu in gpus),
    )


def _by_count(names: Iterable[str]) -> tuple[str, ...]:
    count = Counter(name for name in names if name)
    return tuple(sorted(count, key=lambda name: (-count[name], name)))
