"""Readings of several ticks as one message of one node. Pure: the sampler decides when."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from agents.source import Reading, Vector
from pipeline.catalog import ARRAY_CODE, NULL_CODE, SLOW
from pipeline.records import Inventory, id64
from pipeline.spool import Stream
from pipeline.wire import LAYOUT, ROW, Column, Header, Message, encode

_ROW_NAMES: Final = {column.name for column in ROW}
_ENERGY_COUNTER: Final = next(i for i, m in enumerate(SLOW) if m.name == "energy_counter_j")
_MAX_DROPPED: Final = 0xFFFFFFFF


def _hole(column: Column) -> bytes:
    """One value of a tick that was not sampled: dt_ms 0, the metrics not reported."""
    value = 0 if column.name in _ROW_NAMES else NULL_CODE[column.storage]
    return array(ARRAY_CODE[column.storage], (value,)).tobytes()


_FAST_HOLES: Final = tuple(_hole(column) for column in LAYOUT.fast)
_SLICE_HOLES: Final = tuple(_hole(column) for column in LAYOUT.slices)
_NO_SLICES: Final = (b"",) * len(LAYOUT.slices)


class Row(NamedTuple):
    """A tick that was read."""

    tick_ms: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Node:
    """A node's share of every reading: the positions [start, stop) of its GPUs."""

    inventory: Inventory
    site_id: int
    node_id: int
    gpu_ids: tuple[int, ...]
    start: int
    stop: int
    alone: bool

    @property
    def name(self) -> str:
        """The hostname."""
        return self.inventory.node

    def cut(self, vector: Vector) -> bytes:
        """This node's values."""
        return (vector if self.alone else vector[self.start : self.stop]).tobytes()


@dataclass(frozen=True, slots=True)
class Epochs:
    """What is the same in every message of a generation."""

    period_ms: int
    boot: int
    driver: int


def nodes_of(inventories: Sequence[Inventory]) -> tuple[Node, ...]:
    """Nodes in the order of a reading's vectors."""
    ends = accumulate((len(i.gpus) for i in inventories), initial=0)
    return tuple(
        Node(
            inventory,
            id64(inventory.site),
            inventory.node_id,
            tuple(id64(inventory.site, gpu.uuid) for gpu in inventory.gpus),
            start,
            stop,
            alone=len(inventories) == 1,
        )
        for inventory, (start, stop) in zip(inventories, pairwise(ends), strict=True)
    )


def pack(node: Node, rows: Sequence[Row], epochs: Epochs, stream: Stream) -> bytes:
    """The message of a node's rows, ticks that were missed between them as holes.

    Slow values are those of the newest row, the energy counter that of the first one.
    """
    first, last = rows[0], rows[-1]
    period_ms = epochs.period_ms
    ticks = (last.tick_ms - first.tick_ms) // period_ms + 1
    by_tick: list[Reading | None] = [None] * ticks
    for row in rows:
        by_tick[(row.tick_ms - first.tick_ms) // period_ms] = row.reading
    instances = last.reading.instances
    header = Header(
        site=node.site_id,
        node=node.node_id,
        stream=stream.id,
        seq=stream.next_seq,
        t0_ms=first.tick_ms,
        period_ms=period_ms,
        ticks=ticks,
        gpus=len(node.gpu_ids),
        slices=len(instances),
        boot_epoch=epochs.boot,
        driver_epoch=epochs.driver,
        dropped=min(stream.dropped, _MAX_DROPPED),
    )
    gpus, gis, cis = zip(*instances, strict=True) if instances else ((), (), ())
    slow = list(last.reading.slow)
    slow[_ENERGY_COUNTER] = first.reading.slow[_ENERGY_COUNTER]
    fast = [None if reading is None else reading.fast for reading in by_tick]
    slices = [None if reading is None else reading.slices for reading in by_tick]
    message = Message(
        header,
        node.gpu_ids,
        (bytes(gpus), bytes(gis), bytes(cis)),
        tuple(_columns(fast, _FAST_HOLES, len(node.gpu_ids), node.cut)),
        tuple(node.cut(vector) for vector in slow),
        tuple(_columns(slices, _SLICE_HOLES, len(instances), _whole)) if instances else _NO_SLICES,
    )
    return encode(message)


def _columns(
    ticks: Sequence[Sequence[Vector] | None],
    holes: Sequence[bytes],
    width: int,
    cut: Callable[[Vector], bytes],
) -> Iterator[bytes]:
    """Each column's values over all ticks."""
    for i, hole in enumerate(holes):
        yield b"".join([hole * width if at is None else cut(at[i]) for at in ticks])


def _whole(vector: Vector) -> bytes:
    return vector.tobytes()
