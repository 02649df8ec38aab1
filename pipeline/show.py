"""A message as text that a person can read."""

import datetime as dt
from array import array
from collections.abc import Sequence

from pipeline.catalog import ARRAY_CODE, NULL_CODE
from pipeline.table import render
from pipeline.wire import LAYOUT, ROW, Column, Message, decode

_ROW_NAMES = {c.name for c in ROW}


def show(payload: bytes) -> str:
    """Header, then a table of the rows, then the slow columns. Raises Reject."""
    message = decode(payload)
    head = message.header
    facts = [
        ("bytes", len(payload)), ("lane", "backfill" if head.lane else "samples"),
        ("layout", f"{head.layout:016x}"), ("site", f"{head.site:016x}"),
        ("node", f"{head.node:016x}"), ("stream", f"{head.stream:016x}"), ("seq", head.seq),
        ("first tick", _when(head.t0_ms)), ("period_ms", head.period_ms),
        ("ticks", head.ticks), ("gpus", head.gpus), ("slices", head.slices),
        ("boot_epoch", head.boot_epoch), ("driver_epoch", head.driver_epoch),
        ("dropped", head.dropped),
    ]  # fmt: skip
    parts = [render(["header", ""], facts), _rows(message), _slow(message)]
    if head.slices:
        parts.append(_slices(message))
    return "\n\n".join(parts)


def _when(ms: int) -> str:
    try:
        moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms, which is no date"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rows(message: Message) -> str:
    head = message.header
    columns = [_values(c, raw) for c, raw in zip(LAYOUT.fast, message.fast, strict=True)]
    rows = [
        [head.t0_ms + tick * head.period_ms, f"{message.gpu_ids[gpu]:016x}"]
        + [column[tick * head.gpus + gpu] for column in columns]
        for tick in range(head.ticks)
        for gpu in range(head.gpus)
    ]
    return render(["ts_ms", "gpu", *(c.name for c in LAYOUT.fast)], rows)


def _slow(message: Message) -> str:
    columns = [_values(c, raw) for c, raw in zip(LAYOUT.slow, message.slow, strict=True)]
    names = [f"{gpu:016x}" for gpu in message.gpu_ids]
    rows = [[c.name, *column] for c, column in zip(LAYOUT.slow, columns, strict=True)]
    return render(["slow", *names], rows)


def _slices(message: Message) -> str:
    head = message.header
    columns = [_values(c, raw) for c, raw in zip(LAYOUT.slices, message.slices, strict=True)]
    names = {i: f"{gpu:016x}" for i, gpu in enumerate(message.gpu_ids)}
    rows = [
        [head.t0_ms + tick * head.period_ms, names.get(gpu, f"no GPU {gpu}"), gi, ci]
        + [column[tick * head.slices + i] for column in columns]
        for tick in range(head.ticks)
        for i, (gpu, gi, ci) in enumerate(zip(*message.instances, strict=True))
    ]
    return render(["ts_ms", "gpu", "gi", "ci", *(c.name for c in LAYOUT.slices)], rows)


def _values(column: Column, raw: bytes) -> Sequence[float | int | None]:
    """Physical values; null codes are None."""
    null = NULL_CODE[column.storage]
    stored = array(ARRAY_CODE[column.storage], raw)
    if column.name in _ROW_NAMES:
        return list(stored)
    scale = 10**column.decimals
    return [None if v == null else v / scale if column.decimals else v for v in stored]
