"""Who held a GPU at a time: intervals laid out so that a whole batch is looked up at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.ledger.holdings import Claim, pieces
from pipeline.records import SHARED, UNALLOCATED

FOREVER_MS: Final = (1 << 43) - 1
_TIME_BITS: Final = 43


class Held(NamedTuple):
    """A GPU is a tenant's, and runs a workload, in [from_ms, until_ms)."""

    from_ms: int
    until_ms: int
    tenant: int
    workload: int


def stamps(claims: Iterable[Claim]) -> list[Held]:
    """Who holds a GPU when, by the ledger's rules, without overlap: SHARED stands for several."""
    out = []
    for piece in pieces(claims, 0, FOREVER_MS):
        tenant = _agreed({part.tenant for part in piece.parts} - {UNALLOCATED})
        workload = _agreed({part.workload for part in piece.parts} - {UNALLOCATED})
        if tenant != UNALLOCATED or workload != UNALLOCATED:
            out.append(Held(piece.from_ms, piece.until_ms, tenant, workload))
    return out


def _agreed(names: set[int]) -> int:
    if len(names) > 1:
        return SHARED
    return names.pop() if names else UNALLOCATED


@dataclass(frozen=True, slots=True)
class Holders:
    """An index over intervals that do not overlap per GPU."""

    gpus: NDArray[np.uint64]  # distinct, sorted
    keys: NDArray[np.int64]  # dense GPU number and from_ms in one integer, sorted
    until_ms: NDArray[np.int64]
    tenant: NDArray[np.uint64]
    workload: NDArray[np.uint64]

    @classmethod
    def of(cls, table: NDArray[np.uint64]) -> "Holders":
        """From rows of (gpu, from_ms, until_ms, tenant, workload)."""
        gpus, dense = np.unique(table[:, 0], return_inverse=True)
        keys = _keys(dense, table[:, 1].astype(np.int64))
        order = np.argsort(keys)
        return cls(
            gpus, keys[order], table[order, 2].astype(np.int64), table[order, 3], table[order, 4]
        )

    def at(
        self, gpu_ids: NDArray[np.uint64], times: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Tenant and workload for messages: ids (M, G) at times (M, T), as (M, T, G)."""
        shape = (len(gpu_ids), times.shape[1], gpu_ids.shape[1])
        if not len(self.keys):
            nobody = np.full(shape, UNALLOCATED, np.uint64)
            return nobody, nobody
        dense = np.minimum(np.searchsorted(self.gpus, gpu_ids), len(self.gpus) - 1)
        known = self.gpus[dense] == gpu_ids
        begun = [self._begun(dense, times[:, at : at + 1]) for at in (0, times.shape[1] - 1)]
        first = self._row(begun[0], dense, known, times[:, :1])
        last = self._row(begun[1], dense, known, times[:, -1:])
        rows = np.broadcast_to(first[:, None, :], shape)
        # Almost no message has a holder change within it: an interval that ends, or one that begins
        # and may be over before the last tick. Those that do are looked up tick by tick.
        changed = np.flatnonzero(((first != last) | (begun[0] != begun[1])).any(axis=1))
        if len(changed):
            rows = rows.copy()
            for tick in range(times.shape[1]):
                at_ms = times[changed, tick : tick + 1]
                some = self._begun(dense[changed], at_ms)
                rows[changed, tick] = self._row(some, dense[changed], known[changed], at_ms)
        held = rows >= 0
        return (
            np.where(held, self.tenant[rows], np.uint64(UNALLOCATED)),
            np.where(held, self.workload[rows], np.uint64(UNALLOCATED)),
        )

    def _begun(self, dense: NDArray[np.intp], at_ms: NDArray[np.int64]) -> NDArray[np.intp]:
        """The last interval in order that has begun at that time, of this GPU or one before it."""
        keys = _keys(dense, np.broadcast_to(at_ms, dense.shape))
        return np.searchsorted(self.keys, keys, side="right") - 1

    def _row(
        self,
        begun: NDArray[np.intp],
        dense: NDArray[np.intp],
        known: NDArray[np.bool_],
        at_ms: NDArray[np.int64],
    ) -> NDArray[np.intp]:
        """The interval in force, or -1."""
        inside = (self.keys[begun] >> _TIME_BITS == dense) & (self.until_ms[begun] > at_ms)
        return np.where(known & inside & (begun >= 0), begun, -1)


def _keys(dense: NDArray[np.intp], at_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    return (dense.astype(np.int64) << _TIME_BITS) | at_ms


NOBODY: Final = Holders.of(np.empty((0, 5), np.uint64))
