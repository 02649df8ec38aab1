"""A fleet's messages made at once: what thousands of agents would send, for benchmarks and tests.

Byte for byte what pipeline.wire.encode makes (a test holds them together), without its cost per
node, so that one core can play 27,500 agents.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import HEADER_DTYPE, fold
from pipeline.wire import CRC_FROM, LAYOUT, MAGIC, VERSION, Column


class Reading(Protocol):
    """A tick of every node: see agents/source.py."""

    @property
    def fast(self) -> Sequence[NDArray[np.generic]]:
        """Columns over all GPUs."""
        ...

    @property
    def slow(self) -> Sequence[NDArray[np.generic]]:
        """Columns over all GPUs."""
        ...


@dataclass(slots=True)
class Fleet:
    """Nodes of equally many GPUs, each with a stream of its own."""

    site: int
    nodes: NDArray[np.uint64]
    gpu_ids: NDArray[np.uint64]  # (nodes, gpus)
    period_ms: int = 1000
    seed: int = 1
    _streams: NDArray[np.uint64] = field(init=False)
    _seq: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        """New streams."""
        rng = np.random.default_rng(self.seed)
        self._streams = rng.integers(1, 2**63, len(self.nodes), dtype=np.uint64)
        self._seq = np.zeros(len(self.nodes), np.uint64)

    def messages(self, ticks: Sequence[Reading], t0_ms: int, which: slice) -> list[bytes]:
        """One message of each chosen node over these ticks."""
        gpus = self.gpu_ids.shape[1]
        count = len(self.nodes[which])
        rows = slice((which.start or 0) * gpus, ((which.start or 0) + count) * gpus)
        headers = self._headers(which, t0_ms, len(ticks), gpus)
        parts = [headers.view(np.uint8).reshape(count, -1)]
        parts.append(np.ascontiguousarray(self.gpu_ids[which]).view(np.uint8).reshape(count, -1))
        fast = {
            column.name: np.stack([tick.fast[i][rows] for tick in ticks]).astype(column.storage)
            for i, column in enumerate(LAYOUT.fast)
        }
        for column in LAYOUT.fast:
            wide = fold(column, fast) if column.like else fast[column.name]
            parts.append(_shuffled(wide.reshape(len(ticks), count, gpus).swapaxes(0, 1), column))
        for i, column in enumerate(LAYOUT.slow):
            parts.append(
                _shuffled(
                    ticks[-1].slow[i][rows].astype(column.storage).reshape(count, 1, gpus), column
                )
            )
        matrix = np.concatenate(parts, axis=1)
        out = []
        for row in matrix:
            raw = row.tobytes()
            crc = zlib.crc32(memoryview(raw)[CRC_FROM:])
            out.append(raw[:8] + crc.to_bytes(4, "little") + raw[CRC_FROM:])
        return out

    def _headers(self, which: slice, t0_ms: int, ticks: int, gpus: int) -> NDArray[np.void]:
        head = np.zeros(len(self.nodes[which]), HEADER_DTYPE)
        head["magic"], head["version"] = MAGIC, VERSION
        head["length"] = LAYOUT.size(ticks, gpus, 0)
        head["layout"], head["site"], head["node"] = LAYOUT.hash, self.site, self.nodes[which]
        head["stream"], head["seq"] = self._streams[which], self._seq[which]
        self._seq[which] += np.uint64(1)
        head["t0_ms"], head["period_ms"] = t0_ms, self.period_ms
        head["ticks"], head["gpus"] = ticks, gpus
        return head


def _shuffled(values: NDArray[np.generic], column: Column) -> NDArray[np.uint8]:
    """(messages, ticks, gpus) as the column's bytes: (messages, width * values)."""
    count = len(values)
    raw = np.ascontiguousarray(values).view(np.uint8)
    planes = raw.reshape(count, -1, np.dtype(column.storage).itemsize).swapaxes(1, 2)
    return np.ascontiguousarray(planes).reshape(count, -1)
