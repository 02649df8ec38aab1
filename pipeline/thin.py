"""Which messages' slow columns are worth a row: once a minute, and whatever says something new."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

EVERY_MS: Final = 60_000
"""A GPU that is heard has a row of its slow columns at least this often."""

_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed
_Life = tuple[int, int]
"""A stream and its lane, each of which is in order by itself."""


class _Last(NamedTuple):
    minute: int
    digest: int
    end_ms: int


class Thin:
    """What each stream said last.

    Only forgotten too much, never too little: after a restart every stream's next message is kept,
    and a repeated insert may hold more rows than its first try, each of them true.
    """

    def __init__(self) -> None:
        """Nothing said yet."""
        self._last: dict[_Life, _Last] = {}
        self._told: dict[_Life, _Last] = {}

    def worth(self, headers: NDArray[np.void], digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these messages, in their order, are to be kept; `settle` makes it last.

        One that begins a minute of its stream (with a phase of its own, so that they are spread),
        whose states, counters or epochs (`digests`) changed, or that does not follow on the last.
        """
        ends = headers["t0_ms"] + headers["ticks"].astype(np.int64) * headers["period_ms"]
        phase = (headers["stream"] % np.uint64(EVERY_MS)).astype(np.int64)
        minutes = (headers["t0_ms"] + phase) // EVERY_MS
        return np.fromiter(
            (
                self._is_worth((stream, lane), start, _Last(minute, digest, end))
                for stream, lane, start, minute, digest, end in zip(
                    headers["stream"].tolist(), headers["lane"].tolist(),
                    headers["t0_ms"].tolist(), minutes.tolist(), digests.tolist(), ends.tolist(),
                    strict=True,
                )
            ),
            np.bool_, len(headers),
        )  # fmt: skip

    def _is_worth(self, life: _Life, start_ms: int, now: _Last) -> bool:
        last = self._told.get(life) or self._last.get(life)
        self._told[life] = now
        return last is None or last[:2] != now[:2] or last.end_ms != start_ms

    def settle(self) -> None:
        """What was worth telling is in the store."""
        self._last |= self._told
        self._told.clear()

    def undo(self) -> None:
        """It is not: judge these messages again when the insert is tried again."""
        self._told.clear()

    def forget_before(self, ts_ms: int) -> None:
        """Streams that ended: agents start new ones for ever."""
        self._last = {life: last for life, last in self._last.items() if last.end_ms >= ts_ms}


def digests(columns: Sequence[NDArray[np.generic]]) -> NDArray[np.uint64]:
    """One number per message of columns of shape (messages, values): others, if they differ."""
    out = np.zeros(len(columns[0]), np.uint64)
    # A polynomial over all values: uint64 wraps around, which is what is wanted here.
    widest = max(column.shape[1] for column in columns)
    weights = _MULTIPLIER ** np.arange(widest, dtype=np.uint64)
    for column in columns:
        values = column.astype(np.uint64) + np.uint64(1)
        out = out * _MULTIPLIER + values @ weights[: values.shape[1]]
    return out
