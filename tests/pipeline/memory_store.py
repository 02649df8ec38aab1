"""The store of an import, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.samples import Columns
from pipeline.records import Allocation, MeterReading, Record


@dataclass
class MemoryStore:
    """Keeps what is inserted; `calls` counts the questions, `fail_after` breaks an insert."""

    samples: list[Columns] = field(default_factory=list)
    health: list[Columns] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    calls: int = 0
    fail_after: int | None = None

    def existing(
        self, gpus: NDArray[np.uint64], from_ms: int, until_ms: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        self.calls += 1
        gpu, ts = self.column("gpu").astype(np.uint64), self.column("ts").astype(np.int64)
        mine = (ts >= from_ms) & (ts < until_ms) & np.isin(gpu, gpus)
        return gpu[mine][::-1], ts[mine][::-1]

    def existing_meters(
        self, site: str, kind: str, meter: str, from_ms: int, until_ms: int
    ) -> NDArray[np.int64]:
        return np.array(
            [
                r.ts_ms
                for r in self.records
                if isinstance(r, MeterReading)
                and (r.site, r.kind, r.meter) == (site, kind, meter)
                and from_ms <= r.ts_ms < until_ms
            ],
            np.int64,
        )

    def existing_allocations(self, site: str, node: str) -> Sequence[Allocation]:
        return [
            r for r in self.records
            if isinstance(r, Allocation) and (r.site, r.node) == (site, node)
        ]  # fmt: skip

    def insert_samples(self, columns: Columns, token: str) -> None:
        if self.fail_after is not None and len(self.samples) >= self.fail_after:
            raise ConnectionError
        assert len({len(column) for column in columns.values()}) == 1
        self.samples.append(columns)
        self.tokens.append(token)

    def insert_health(self, columns: Columns, token: str) -> None:
        self.health.append(columns)
        self.tokens.append(token)

    def insert_records(self, records: Sequence[Record]) -> None:
        self.records += records

    def column(self, name: str) -> NDArray[np.generic]:
        """A column of all samples."""
        chunks = [chunk[name] for chunk in self.samples]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int64)

    def rows(self) -> set[tuple[int, ...]]:
        """Every row, without order."""
        names = sorted(self.samples[0]) if self.samples else []
        return {
            tuple(row)
            for chunk in self.samples
            for row in zip(*(chunk[name].tolist() for name in names), strict=True)
        }
