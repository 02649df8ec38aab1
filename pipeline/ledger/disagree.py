"""Sources that say different things of one GPU: kept side by side, one believed, all of it shown."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.ledger.claims import Site
from pipeline.ledger.holdings import LEASE, Claim
from pipeline.records import UNALLOCATED


class Disagreement(NamedTuple):
    """Two sources name other tenants or workloads of `gpus` GPUs, for gpu_ms in all."""

    believed: str
    other: str
    gpus: int
    gpu_ms: int


def disagreements(
    site: Site, precedence: Sequence[str], from_ms: int, until_ms: int
) -> list[Disagreement]:
    """By pairs of sources, the longest first. What only one of two names is no contradiction."""
    spent: dict[tuple[int, int], int] = {}
    hit: dict[tuple[int, int], int] = {}
    known: dict[tuple[Claim, ...], dict[tuple[int, int], int]] = {}
    for claims in site.claims.values():
        said = tuple(sorted(c for c in claims if c.rank != LEASE))
        if said not in known:
            known[said] = _of_one(said, from_ms, until_ms)
        for pair, lasted_ms in known[said].items():
            spent[pair] = spent.get(pair, 0) + lasted_ms
            hit[pair] = hit.get(pair, 0) + 1
    names = [*precedence, "other sources"]
    found = [Disagreement(names[a], names[b], hit[a, b], ms) for (a, b), ms in spent.items()]
    return sorted(found, key=lambda one: -one.gpu_ms)


def _of_one(claims: Sequence[Claim], from_ms: int, until_ms: int) -> dict[tuple[int, int], int]:
    """Milliseconds by ranks (believed, other) in which they contradict each other about a GPU."""
    edges = {from_ms, until_ms}
    edges.update(t for c in claims for t in c[:2] if from_ms < t < until_ms)
    out: dict[tuple[int, int], int] = {}
    for start, stop in pairwise(sorted(edges)):
        over = [c for c in claims if c.from_ms <= start and c.until_ms >= stop]
        best = min((c.rank for c in over), default=0)
        for rank in {c.rank for c in over} - {best}:
            if _contradict(
                [c for c in over if c.rank == best], [c for c in over if c.rank == rank]
            ):
                out[best, rank] = out.get((best, rank), 0) + stop - start
    return out


def _contradict(ours: Sequence[Claim], theirs: Sequence[Claim]) -> bool:
    for name in ("tenant", "workload"):
        one, other = ({getattr(c, name) for c in side} - {UNALLOCATED} for side in (ours, theirs))
        if one and other and one != other:
            return True
    return False
