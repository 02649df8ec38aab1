"""What the table knows of messages, for those of which memory alone cannot tell."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.seen import Seen
from pipeline.store import Store
from pipeline.wire import HEADER

_LOOKUP: Final = 8192  # messages looked up by one query
_QUERY_BYTES: Final = 1 << 24


def recall(seen: Seen, store: Store, headers: NDArray[np.void], values: Sequence[bytes]) -> None:
    """Remember how far the table is with streams that come for the first time in this life."""
    fresh = [i for i, s in enumerate(headers["stream"].tolist()) if not seen.knows(s)]
    for stream, seq in highest(store, headers[fresh], [values[i] for i in fresh]).items():
        seen.add(stream, seq)


def in_table(
    store: Store, headers: NDArray[np.void], values: Sequence[bytes]
) -> set[tuple[int, int]]:
    """Which of these messages, as (stream, seq), have rows in gpu_samples already."""
    found: set[tuple[int, int]] = set()
    for where in _lookups(headers, values):
        found |= set(
            _pairs(
                store,
                f"SELECT DISTINCT stream, seq FROM gpu_samples WHERE {where.since}"  # noqa: S608
                f" AND {where.until}",
            )
        )
    return found


def highest(store: Store, headers: NDArray[np.void], values: Sequence[bytes]) -> dict[int, int]:
    """The highest seq in gpu_samples of these messages' streams, where it is not below theirs.

    Ticks increase with seq within a stream, so only rows from the messages' time on are read.
    """
    found: dict[int, int] = {}
    for where in _lookups(headers, values):
        rows_found = _pairs(
            store,
            f"SELECT stream, max(seq) FROM gpu_samples WHERE {where.since} GROUP BY stream",  # noqa: S608
        )
        found |= {stream: max(seq, found.get(stream, 0)) for stream, seq in rows_found}
    return found


def _pairs(store: Store, sql: str) -> list[tuple[int, int]]:
    """Rows of two UInt64. Raw: the client looks a megabyte of ids through, several times over."""
    raw = store.raw(sql, "RowBinary", max_query_size=_QUERY_BYTES)
    return [(stream, seq) for stream, seq in np.frombuffer(raw, "<u8").reshape(-1, 2).tolist()]


class _Where(NamedTuple):
    """Conditions that find messages' rows: from their first tick on, and up to their last."""

    since: str
    until: str


def _lookups(headers: NDArray[np.void], values: Sequence[bytes]) -> Iterator[_Where]:
    """Conditions for messages, some at a time."""
    for start in range(0, len(values), _LOOKUP):
        heads = headers[start : start + _LOOKUP]
        gpus = [
            np.frombuffer(value, "<u8", int(head["gpus"]), HEADER.size)
            for value, head in zip(values[start : start + _LOOKUP], heads, strict=True)
        ]
        last = heads["t0_ms"] + heads["ticks"].astype(np.int64) * heads["period_ms"]
        yield _Where(
            f"gpu IN {_listed(np.concatenate(gpus))} AND stream IN {_listed(heads['stream'])}"
            f" AND ts >= fromUnixTimestamp64Milli({heads['t0_ms'].min()}, 'UTC')",
            f"ts < fromUnixTimestamp64Milli({last.max()}, 'UTC')",
        )


def _listed(ids: NDArray[np.uint64]) -> str:
    """As bytes, which costs the engine a fifth of what parsing thousands of numbers does."""
    ids = np.unique(ids)
    return (
        f"(SELECT reinterpretAsUInt64(substring(unhex('{ids.tobytes().hex()}'),"  # noqa: S608
        f" 8 * number + 1, 8)) FROM numbers({len(ids)}))"
    )
