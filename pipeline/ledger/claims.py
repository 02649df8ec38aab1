"""What the store knows of a site's devices: where GPUs were, who leased them, who ran on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.holders import FOREVER_MS
from pipeline.ledger import contract_store
from pipeline.ledger.contracts import Place, leases
from pipeline.ledger.holdings import LEASE, Claim, Piece, pieces, rank, together
from pipeline.records import id64
from pipeline.store import Store

_LATEST: Final = """
SELECT tenant_id, workload_id, source, node_id, gpus,
    toUnixTimestamp64Milli(from_ts) AS since,
    -- In a tuple, since argMax passes over a bare NULL, which here means: until further notice.
    toUnixTimestamp64Milli(argMax(tuple(until_ts), asserted_at).1) AS until,
    argMax(share_ppm, asserted_at) AS share
FROM allocations WHERE site_id = {site:UInt64} AND from_ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')
GROUP BY tenant_id, workload_id, source, node_id, gpus, from_ts
HAVING until IS NULL OR until > {since:Int64}
"""
_WIDTHS: Final = """
SELECT node_id, toInt64(max(arrayMax(gpus))) + 1 FROM allocations
WHERE site_id = {site:UInt64} AND notEmpty(gpus) GROUP BY node_id
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Devices of a site that matter to a range of time, by their 64-bit ids.

    stays: when each GPU was expected; nodes, names: the GPUs that were on each node, and its name;
    claims: of GPUs, and of what stands for them on nodes that have none in the inventory.
    """

    stays: Mapping[int, Sequence[tuple[int, int]]]
    nodes: Mapping[int, Sequence[int]]
    names: Mapping[int, str]
    claims: Mapping[int, Sequence[Claim]]
    _known: dict[tuple[tuple[Claim, ...], int, int], list[Piece]] = field(default_factory=dict)

    def pieces(self, device: int, from_ms: int, until_ms: int) -> list[Piece]:
        """Who held a device when."""
        # Thousands of GPUs are in the same hands: each distinct set of claims is worked out once.
        key = (tuple(self.claims.get(device, ())), from_ms, until_ms)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = pieces(key[0], from_ms, until_ms)
        return found

    def node_pieces(self, node: int, from_ms: int, until_ms: int) -> list[Piece]:
        """Who held a node when: each of its GPUs counts the same."""
        gpus = self.nodes.get(node)
        if not gpus:
            return self.pieces(node, from_ms, until_ms)
        mine = {gpu: self.pieces(gpu, from_ms, until_ms) for gpu in gpus}
        first = mine[gpus[0]]
        if all(found is first for found in mine.values()):
            return first
        return together(mine, from_ms, until_ms)

    def expected_ms(self, device: int, from_ms: int, until_ms: int) -> int:
        """How long a GPU was expected in [from_ms, until_ms)."""
        return sum(
            max(0, min(until, until_ms) - max(since, from_ms))
            for since, until in self.stays.get(device, ())
        )


def load(store: Store, site: str, precedence: Sequence[str], from_ms: int, until_ms: int) -> Site:
    """What holds between two times."""
    places = [
        place
        for place in contract_store.places(store, site)
        if place.from_ms < until_ms and (place.until_ms or FOREVER_MS) > from_ms
    ]
    claims: dict[int, list[Claim]] = {}
    for lease in leases(contract_store.read(store, site), places):
        if lease.from_ms < until_ms and lease.until_ms > from_ms:
            claim = Claim(lease.from_ms, lease.until_ms, id64("", lease.tenant), 0, LEASE)
            claims.setdefault(lease.gpu, []).append(claim)
    at = _by_node(site, places)
    wide = {row[0]: row[1] for row in store.query(_WIDTHS, {"site": id64(site)}).rows}
    seats: dict[int, list[Place]] = {}
    for tenant, workload, source, node, gpus, since, until, share in store.query(
        _LATEST, {"site": id64(site), "since": from_ms, "until": until_ms}
    ).rows:
        end = FOREVER_MS if until is None else until
        claim = Claim(since, end, tenant, workload, rank(source, precedence), share)
        if node not in at:
            seats.setdefault(node, _seats(node, wide.get(node, 1)))
        for device, held in _claimed(claim, at.get(node) or seats[node], gpus):
            claims.setdefault(device, []).append(held)
    stays: dict[int, list[tuple[int, int]]] = {}
    names = {node: on_node[0].node for node, on_node in at.items()}
    nodes = {node: [place.gpu for place in on_node] for node, on_node in seats.items()}
    for node, on_node in at.items():
        for place in on_node:
            stays.setdefault(place.gpu, []).append((place.from_ms, place.until_ms or FOREVER_MS))
            nodes.setdefault(node, []).append(place.gpu)
    return Site(stays, {n: sorted(set(g)) for n, g in nodes.items()}, names, claims)


def _by_node(site: str, places: Iterable[Place]) -> dict[int, list[Place]]:
    out: dict[int, list[Place]] = {}
    ids: dict[str, int] = {}
    for place in places:
        if place.node not in ids:
            ids[place.node] = id64(site, place.node)
        out.setdefault(ids[place.node], []).append(place)
    return out


def _seats(node: int, count: int) -> list[Place]:
    """Stand-ins for the GPUs of a node that has only a meter: as many as anybody ever claimed."""
    return [
        Place("", "", "", "", "", i, id64(f"{node:016x}", str(i)), 0, None) for i in range(count)
    ]


def _claimed(
    claim: Claim, places: Sequence[Place], gpus: Sequence[int]
) -> Iterable[tuple[int, Claim]]:
    """A claim on a node's GPUs, each for as long as it was there."""
    for place in places:
        if not gpus or place.gpu_index in gpus:
            since = max(claim.from_ms, place.from_ms)
            until = min(claim.until_ms, place.until_ms or FOREVER_MS)
            if since < until:
                yield place.gpu, claim._replace(from_ms=since, until_ms=until)
