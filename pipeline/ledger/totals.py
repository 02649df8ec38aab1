"""Holders' sums over the GPUs of a run: what ledger_holders has a row of, and a quarter's totals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ledger.cells import FIELDS, Held, Integers, run_starts
from pipeline.ledger.compute import Computed
from pipeline.ledger.figures import CAUSES, HISTOGRAM_BINS

SUMS: Final = ("gpus", "allocated_ms", *FIELDS, "estimated_mj", "gap_ms")
"""What is added up, each an integer; behind it gaps by cause and time by bin of utilisation."""
_UTIL: Final = (FIELDS.index("util_pct_ms"), FIELDS.index("util_dt_ms"))
_GAPS: Final = slice(len(SUMS), len(SUMS) + len(CAUSES))
_BINS: Final = slice(_GAPS.stop, _GAPS.stop + HISTOGRAM_BINS)

Key = tuple[int, int, int]
"""Quarter, tenant, workload."""


@dataclass(slots=True)
class Totals:
    """Chunk by chunk."""

    gpus: dict[int, int] = field(default_factory=dict)  # distinct, by quarter
    _rows: dict[Key, Integers] = field(default_factory=dict)

    def add(self, chunk: Computed) -> None:
        """Add the GPUs of a chunk."""
        held = chunk.held
        if not len(held.device):
            return
        order = np.lexsort((held.workload, held.tenant, held.quarter_ms))
        keys = [column[order] for column in (held.quarter_ms, held.tenant, held.workload)]
        starts = run_starts(*keys)
        total = np.add.reduceat(_table(chunk)[order], starts, axis=0)
        names = zip(*(column[starts].tolist() for column in keys), strict=True)
        for key, row in zip(names, total, strict=True):
            self._rows[key] = self._rows[key] + row if key in self._rows else row
        for quarter_ms in np.unique(held.quarter_ms).tolist():
            count = len(np.unique(held.device[held.quarter_ms == quarter_ms]))
            self.gpus[quarter_ms] = self.gpus.get(quarter_ms, 0) + count

    def rows(self) -> Iterator[tuple[Key, Mapping[str, int], list[int], list[int]]]:
        """Of each holder and quarter: its SUMS, its gaps by CAUSES, its time by bin."""
        for key, row in self._rows.items():
            sums = dict(zip(SUMS, row.tolist(), strict=False))
            yield key, sums, row[_GAPS].tolist(), row[_BINS].tolist()

    def of(self, quarter_ms: int, name: str) -> int:
        """One of SUMS, over all holders of a quarter."""
        at = SUMS.index(name)
        return int(sum(row[at] for key, row in self._rows.items() if key[0] == quarter_ms))


def _table(chunk: Computed) -> Integers:
    """(rows, SUMS and what stands behind them)."""
    held, gap = chunk.held, chunk.gap_ms
    # Too short to ask why.
    cause = np.where(chunk.gap_cause == "", "unknown", chunk.gap_cause)
    by_cause = np.stack([np.where(cause == name, gap, 0) for name in CAUSES], axis=1)
    ones = np.ones(len(gap), np.int64)
    return np.column_stack(
        (ones, held.allocated_ms, held.sums, held.estimated_mj, gap, by_cause, _bins(held))
    )


def _bins(held: Held) -> NDArray[np.int64]:
    """Time of known utilisation, in the bin of the row's mean."""
    percent, known_ms = held.sums[:, _UTIL[0]], held.sums[:, _UTIL[1]]
    mean = percent // np.maximum(1, known_ms)
    place = np.clip(mean * HISTOGRAM_BINS // 100, 0, HISTOGRAM_BINS - 1)
    out = np.zeros((len(place), HISTOGRAM_BINS), np.int64)
    out[np.arange(len(place)), place] = known_ms
    return out
