"""Which messages' slow columns are worth a row: once a minute, and whatever says something new."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

EVERY_MS: Final = 60_000
"""A GPU that is heard has a row of its slow columns at least this often."""

_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed
_SAID: Final = np.dtype([("life", "<u8"), ("minute", "<i8"), ("digest", "<u8"), ("end_ms", "<i8")])
"""What a message said. A life is a stream and its lane, each of which is in order by itself."""
_Said = NDArray[np.void]


class Thin:
    """What each stream said last.

    Only forgotten too much, never too little: after a restart every stream's next message is kept,
    and a repeated insert may hold more rows than its first try, each of them true.
    """

    def __init__(self) -> None:
        """Nothing said yet."""
        self._last: _Said = np.empty(0, _SAID)  # a row per life, sorted by it
        self._told = self._last

    def worth(self, headers: NDArray[np.void], digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these messages, in their order, are to be kept; `settle` makes it last.

        One that begins a minute of its stream (with a phase of its own, so that they are spread),
        whose states, counters or epochs (`digests`) changed, or that does not follow on the last.
        """
        said = np.empty(len(headers), _SAID)
        phase = (headers["stream"] % np.uint64(EVERY_MS)).astype(np.int64)
        said["life"] = headers["stream"] + headers["lane"] * _MULTIPLIER
        said["minute"] = (headers["t0_ms"] + phase) // EVERY_MS
        said["digest"] = digests
        said["end_ms"] = headers["t0_ms"] + headers["ticks"].astype(np.int64) * headers["period_ms"]
        order = np.argsort(said["life"], kind="stable")
        said, starts = said[order], headers["t0_ms"][order]
        alike = said["life"][1:] == said["life"][:-1]
        first = np.flatnonzero(np.append(True, ~alike)[: len(said)])
        at, known = _find(said["life"][first], self._told)
        before = np.roll(said, 1)
        before[first[known]] = self._told[at[known]]
        new = before["end_ms"] != starts
        for name in ("minute", "digest"):
            new |= before[name] != said[name]
        new[first[~known]] = True
        self._tell(said[np.append(~alike, True)[: len(said)]])
        worth = np.empty(len(said), np.bool_)
        worth[order] = new
        return worth

    def _tell(self, said: _Said) -> None:
        """One message of each of these lives is its newest now."""
        at, known = _find(said["life"], self._told)
        told = self._told.copy()
        told[at[known]] = said[known]
        if not known.all():
            told = np.concatenate([told, said[~known]])
            told = told[np.argsort(told["life"])]
        self._told = told

    def settle(self) -> None:
        """What was worth telling is in the store."""
        self._last = self._told

    def undo(self) -> None:
        """It is not: judge these messages again when the insert is tried again."""
        self._told = self._last

    def forget_before(self, ts_ms: int) -> None:
        """Streams that ended: agents start new ones for ever."""
        self._last = self._told = self._last[self._last["end_ms"] >= ts_ms]


def _find(lives: NDArray[np.uint64], among: _Said) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where these lives are in a sorted table, and whether they are there."""
    at = np.searchsorted(among["life"], lives)
    known = at < len(among)
    known[known] = among["life"][at[known]] == lives[known]
    return at, known


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
