"""Which messages of a stream were seen: a bounded set of ranges, since order may break."""

from collections.abc import Sequence
from typing import Final, Literal

Verdict = Literal["new", "known", "doubtful"]

MAX_RANGES: Final = 16


class Seen:
    """Sequence numbers seen, per stream, as sorted half-open ranges.

    A number above all that were seen is new, one inside a range is known. One in a gap, or of a
    stream of which nothing is remembered (after a restart, or once its oldest ranges were let go),
    is doubtful: only the table can tell. So the first that is added of a stream must be the highest
    that the table has: a restart may begin with an old one from the backlog.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._streams: dict[int, list[tuple[int, int]]] = {}

    def knows(self, stream: int) -> bool:
        """True if something is remembered of a stream."""
        return stream in self._streams

    def judge(self, stream: int, seq: int) -> Verdict:
        """What memory alone can say of a message."""
        ranges = self._streams.get(stream)
        if ranges is None:
            return "doubtful"
        if seq >= ranges[-1][1]:
            return "new"
        return "known" if any(low <= seq < high for low, high in ranges) else "doubtful"

    def all_new(self, streams: Sequence[int], seqs: Sequence[int]) -> bool:
        """Whether memory alone can say of all these messages that they are new."""
        known = self._streams.get
        for stream, seq in zip(streams, seqs, strict=True):
            ranges = known(stream)
            if ranges is None or seq < ranges[-1][1]:
                return False
        return True

    def add(self, stream: int, seq: int) -> int:
        """Remember a message; returns how many numbers it leaves newly missing below itself."""
        ranges = self._streams.get(stream)
        if ranges is None:
            self._streams[stream] = [(seq, seq + 1)]
            return 0
        low, high = ranges[-1]
        if seq == high:
            ranges[-1] = (low, seq + 1)
            return 0
        missing = max(0, seq - high)
        self._streams[stream] = _merged([*ranges, (seq, seq + 1)])[-MAX_RANGES:]
        return missing

    def forget(self) -> None:
        """Start over, when the partition was somebody else's in between."""
        self._streams.clear()


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out
