"""Who held a device when, in which parts: claims that overlap and contradict, made into pieces.

The rules, in order. A lease decides the tenant of everything under it. Of allocations, the source
that stands first in the configured precedence is believed, as long as it claims the device at all.
Several holders at once share: stated shares are taken as stated (scaled down if they exceed the
device), the others divide what is left equally. What nobody holds is the lessee's, running nothing;
without a lease it is unallocated. The parts of a piece always add up to the device.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from pipeline.records import UNALLOCATED

WHOLE: Final = 1_000_000
"""A device, in the unit of shares."""
LEASE: Final = -1
"""Rank of a lease; allocations have theirs by the precedence of their source, 0 first."""


class Claim(NamedTuple):
    """Somebody says that a device is a tenant's, or runs a workload, in [from_ms, until_ms)."""

    from_ms: int
    until_ms: int
    tenant: int
    workload: int
    rank: int
    share_ppm: int = 0  # 0: an equal part of what is left


class Part(NamedTuple):
    """A holder's part of a device."""

    tenant: int
    workload: int
    share_ppm: int


Parts = tuple[Part, ...]
NOBODY: Final[Parts] = (Part(UNALLOCATED, UNALLOCATED, WHOLE),)


class Piece(NamedTuple):
    """Parts that do not change in [from_ms, until_ms)."""

    from_ms: int
    until_ms: int
    parts: Parts


def rank(source: str, precedence: Sequence[str]) -> int:
    """Of an allocation: sources that the precedence does not name come last, all alike."""
    return precedence.index(source) if source in precedence else len(precedence)


def pieces(claims: Iterable[Claim], from_ms: int, until_ms: int) -> list[Piece]:
    """One device's time in [from_ms, until_ms), without holes or overlap."""
    inside = sorted({c for c in claims if c.from_ms < until_ms and c.until_ms > from_ms})
    edges = {from_ms, until_ms}
    edges.update(t for c in inside for t in c[:2] if from_ms < t < until_ms)
    out: list[Piece] = []
    for start, stop in pairwise(sorted(edges)):
        held = parts([c for c in inside if c.from_ms <= start and c.until_ms >= stop])
        if out and out[-1].parts == held:
            out[-1] = out[-1]._replace(until_ms=stop)
        else:
            out.append(Piece(start, stop, held))
    return out


def parts(claims: Sequence[Claim]) -> Parts:
    """The parts of a device that these claim at one instant, largest names last, adding up to it."""
    tenants = sorted({c.tenant for c in claims if c.rank == LEASE})
    running = [c for c in claims if c.rank != LEASE]
    best = min((c.rank for c in running), default=0)
    running = [c for c in running if c.rank == best]
    shares = _shares([c.share_ppm for c in running])
    left = WHOLE - sum(shares)
    held: dict[tuple[int, int], int] = {}
    for claim, share in zip(running, shares, strict=True):
        for tenant, part in _among(tenants or [claim.tenant], share):
            held[tenant, claim.workload] = held.get((tenant, claim.workload), 0) + part
    for tenant, part in _among(tenants or [UNALLOCATED], left):
        held[tenant, UNALLOCATED] = held.get((tenant, UNALLOCATED), 0) + part
    return tuple(Part(*who, share) for who, share in sorted(held.items()) if share)


def _among(tenants: Sequence[int], share: int) -> list[tuple[int, int]]:
    """Tenants that lease a device together (a conflict that was let stand) divide it equally."""
    return list(zip(tenants, apportion(share, [1] * len(tenants)), strict=True))


def _shares(stated: Sequence[int]) -> list[int]:
    """Everybody's share, those that stated none (0) dividing what the others leave."""
    asked = sum(stated)
    if asked > WHOLE:
        return apportion(WHOLE, stated)
    rest = apportion(WHOLE - asked, [int(share == 0) for share in stated])
    return [share or part for share, part in zip(stated, rest, strict=True)]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """A total in whole parts by weight, by largest remainder; the first wins a tie.

    Adds up to the total, unless every weight is 0: then to 0.
    """
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    out = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in order[: total - sum(out)]:
        out[i] += 1
    return out


def together(devices: Mapping[int, Sequence[Piece]], from_ms: int, until_ms: int) -> list[Piece]:
    """The pieces of what several devices are part of (a node), each counting the same."""
    edges = sorted(
        {from_ms, until_ms} | {p.from_ms for mine in devices.values() for p in mine}
    )  # the pieces of a device have no holes: an end is a beginning
    out: list[Piece] = []
    for start, stop in pairwise(edges):
        held: dict[tuple[int, int], int] = {}
        for mine in devices.values():
            for part in next(p for p in mine if p.from_ms <= start < p.until_ms).parts:
                who = (part.tenant, part.workload)
                held[who] = held.get(who, 0) + part.share_ppm
        names = sorted(held)
        shares = apportion(WHOLE, [held[who] for who in names])
        now = tuple(Part(*who, share) for who, share in zip(names, shares, strict=True) if share)
        if out and out[-1].parts == now:
            out[-1] = out[-1]._replace(until_ms=stop)
        else:
            out.append(Piece(start, stop, now))
    return out
