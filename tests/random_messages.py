"""Messages of any shape with any values, for tests of what reads them."""

import random
from array import array

from pipeline.catalog import ARRAY_CODE, NULL_CODE, WIDTH
from pipeline.wire import LAYOUT, ROW, Column, Header, Layout, Message
from tests.messages import T0_MS


def random_message(rng: random.Random, layout: Layout = LAYOUT, **header: int) -> Message:
    """Values over the whole range of their type, a quarter of them null; a fifth of rows holes."""
    shape = {
        "ticks": rng.randint(1, 5), "gpus": rng.randint(1, 4),
        "slices": rng.choice((0, 0, rng.randint(1, 6))),
    }  # fmt: skip
    known = {
        "site": rng.getrandbits(64), "node": rng.getrandbits(64), "stream": rng.getrandbits(64),
        "seq": rng.getrandbits(40), "t0_ms": T0_MS + rng.randrange(10**6),
        "period_ms": rng.choice((100, 1000, 15_000)), "boot_epoch": rng.getrandbits(32),
        "driver_epoch": rng.getrandbits(32), "dropped": rng.getrandbits(32),
        "lane": rng.randrange(2), "layout": layout.hash,
    }  # fmt: skip
    head = Header(**(known | shape | header))
    rows = head.ticks * head.gpus
    ids = [rng.getrandbits(64) for _ in range(head.gpus)]
    instances = (
        bytes(rng.randrange(head.gpus) for _ in range(head.slices)),
        rng.randbytes(head.slices),
        rng.randbytes(head.slices),
    )
    return Message(
        head,
        tuple(ids),
        instances,
        tuple(_column(rng, c, rows, head.period_ms) for c in layout.fast),
        tuple(_column(rng, c, head.gpus, head.period_ms) for c in layout.slow),
        tuple(_column(rng, c, head.ticks * head.slices, head.period_ms) for c in layout.slices),
    )


def _column(rng: random.Random, column: Column, count: int, period_ms: int) -> bytes:
    if column == ROW[0]:
        values = [rng.choice((0, period_ms, period_ms, 2 * period_ms, 1)) for _ in range(count)]
    elif column == ROW[2]:
        values = [rng.randrange(3) for _ in range(count)]
    else:
        width = WIDTH[column.storage]
        values = [_value(rng, column, width) for _ in range(count)]
    return array(ARRAY_CODE[column.storage], values).tobytes()


def _value(rng: random.Random, column: Column, width: int) -> int:
    if rng.random() < 0.25:
        return NULL_CODE[column.storage]
    raw = rng.randbytes(width)
    return int.from_bytes(raw, "little", signed=column.storage[0] == "i")


def values(column: Column, raw: bytes) -> list[int]:
    """A column's integers, null codes as they are."""
    return list(array(ARRAY_CODE[column.storage], raw))
