"""Which GPUs stand where, whose they are, and what they drew last: what folding looks at.

Every place is counted; single GPUs are loaded for the nodes that alerts name.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from pipeline.store import Store

Level = Literal["node", "rack", "pdu", "row", "hall", "site", "job", "tenant", "storm"]
LIMITS: Final = {"max_execution_time": 10, "max_memory_usage": 4 << 30}


class Place(NamedTuple):
    """What a page can name. `hall` tells racks apart that are numbered within their hall."""

    level: Level
    site: str
    hall: str
    name: str

    @property
    def text(self) -> str:
        """As a person says it."""
        return f"{self.level} {self.name}"


class Spot(NamedTuple):
    """Where a node stands; "" where the inventory does not say."""

    site: str
    hall: str
    row: str
    rack: str
    pdu: str
    node: str

    def places(self) -> frozenset[Place]:
        """Everything that the node is part of, and itself."""
        return _places(self)

    def links(self) -> tuple[tuple[Place, Place], ...]:
        """What is part of what: node, rack, row, hall, site, as far as known; racks also of PDUs."""
        return _links(self)


@lru_cache(maxsize=1 << 15)
def _chain(spot: Spot) -> tuple[Place, ...]:
    every: tuple[tuple[Level, str, str], ...] = (
        ("node", "", spot.node), ("rack", spot.hall, spot.rack), ("row", spot.hall, spot.row),
        ("hall", "", spot.hall), ("site", "", spot.site),
    )  # fmt: skip
    return tuple(Place(level, spot.site, hall, name) for level, hall, name in every if name)


@lru_cache(maxsize=1 << 15)
def _links(spot: Spot) -> tuple[tuple[Place, Place], ...]:
    chain = _chain(spot)
    links = tuple(pairwise(chain))
    if not spot.pdu:
        return links
    fed = chain[1] if spot.rack else chain[0]
    return (*links, (fed, Place("pdu", spot.site, spot.hall, spot.pdu)))


@lru_cache(maxsize=1 << 15)
def _places(spot: Spot) -> frozenset[Place]:
    return frozenset({*_chain(spot), *(above for _, above in _links(spot))})


class Gpu(NamedTuple):
    """A GPU, its holder, and the watts of its newest tick."""

    spot: Spot
    number: int
    uuid: str
    tenant: str = ""
    job: str = ""
    watts: float = 0.0
    silent: bool = False

    def holders(self) -> list[Place]:
        """Its job and its tenant."""
        site, levels = self.spot.site, (("job", self.job), ("tenant", self.tenant))
        return [Place(level, site, "", name) for level, name in levels if name]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Topology:
    """`sizes`: GPUs of every place; `parts`: how many places of the next level it is made of.

    `spots`: nodes by a level and a name of that level.
    """

    spots: Mapping[tuple[str, str], Sequence[Spot]] = field(default_factory=dict)
    sizes: Mapping[Place, int] = field(default_factory=dict)
    parts: Mapping[Place, int] = field(default_factory=dict)
    gpus: Mapping[Spot, Sequence[Gpu]] = field(default_factory=dict)

    def spots_of(self, labels: Mapping[str, str]) -> Sequence[Spot]:
        """The nodes of the smallest place that labels name; a site, or a hall, may be left out."""
        site, hall = labels.get("site", ""), labels.get("hall", "")
        for level in ("node", "rack", "pdu", "row", "hall"):
            if name := labels.get(level, ""):
                found = self.spots.get((level, name), ())
                return [
                    spot for spot in found
                    if site in ("", spot.site) and (level == "node" or hall in ("", spot.hall))
                ]  # fmt: skip
        return ()


def count(spots: Iterable[tuple[Spot, int]], held: Mapping[Place, int]) -> Topology:
    """A topology of nodes with so many GPUs each; `held` are the sizes of jobs and tenants."""
    sizes, parts = Counter[Place](), Counter[Place]()
    named: dict[tuple[str, str], list[Spot]] = {}
    linked: set[tuple[Place, Place]] = set()
    for spot, gpus in spots:
        for place in spot.places():
            sizes[place] += gpus
            if place.level != "site":
                named.setdefault((place.level, place.name), []).append(spot)
        for link in spot.links():
            if link not in linked:
                linked.add(link)
                parts[link[1]] += 1
    return Topology(named, {**sizes, **held}, parts)


def load(store: Store) -> Topology:
    """Every node and holder, no single GPU yet: some 50 ms at 27,500 nodes. Raises Retry."""
    spots = store.query(
        "SELECT site, hall, row, rack, pdu, node, count() FROM gpus"
        " GROUP BY site, hall, row, rack, pdu, node",
        None, **LIMITS,
    ).rows  # fmt: skip
    held: dict[Place, int] = {}
    for level, column, names in (("job", "workload", "workloads"), ("tenant", "tenant", "tenants")):
        rows = store.query(
            f"SELECT s.name, n.name, count() FROM gpu_latest AS l FINAL"  # noqa: S608
            f" JOIN sites AS s ON s.id = l.site JOIN {names} AS n ON n.id = l.{column}"
            f" WHERE l.{column} > 1 GROUP BY s.name, n.name",
            None, **LIMITS,
        ).rows  # fmt: skip
        held |= {Place(level, site, "", name): size for site, name, size in rows}  # type: ignore[arg-type]
    return count(((Spot(*row[:6]), row[6]) for row in spots), held)


def with_gpus(store: Store, topology: Topology, spots: Collection[Spot], at_ms: int) -> Topology:
    """The same with the GPUs of some nodes: holders, newest watts, silent at `at_ms` or not.

    `at_ms` is behind the watermark, so that what is not there is missing. Raises Retry.
    """
    nodes = sorted({spot.node for spot in spots})
    rows = store.query(_GPUS, {"nodes": nodes, "at": at_ms}, **LIMITS).rows if nodes else []
    gpus: dict[Spot, list[Gpu]] = {}
    for *where, index, uuid, tenant, job, watts, due_ms in rows:
        spot = Spot(*where)
        gpus.setdefault(spot, []).append(
            Gpu(spot, index, uuid, tenant or "", job or "", watts, silent=due_ms < at_ms)
        )
    return Topology(topology.spots, topology.sizes, topology.parts, gpus)


# A GPU is due again two periods after its newest tick; gpu_latest keeps the watts of one long gone.
_GPUS: Final = """
WITH fromUnixTimestamp64Milli({at:Int64}, 'UTC') AS until,
chosen AS (SELECT * FROM gpus WHERE node IN {nodes:Array(String)})
SELECT g.site, g.hall, g.row, g.rack, g.pdu, g.node, g.gpu_index, g.uuid, t.name, w.name,
    toFloat64(ifNull(l.power_w, 0)), s.due_ms
FROM chosen AS g
LEFT JOIN (SELECT * FROM gpu_latest FINAL) AS l ON l.gpu = g.gpu_id
LEFT JOIN (SELECT * FROM tenants WHERE id > 1) AS t ON t.id = l.tenant
LEFT JOIN workloads AS w ON w.id = l.workload
LEFT JOIN
(
    SELECT gpu, toUnixTimestamp64Milli(max(gpu_samples.ts)) + 2 * argMax(dt_ms, gpu_samples.ts) AS due_ms
    FROM gpu_samples
    WHERE gpu IN (SELECT gpu_id FROM chosen) AND ts <= until AND ts > until - INTERVAL 1 MINUTE
    GROUP BY gpu
) AS s ON s.gpu = g.gpu_id
ORDER BY g.node, g.gpu_index
"""
