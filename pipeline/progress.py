"""How far a long command is: one line on the terminal, nothing anywhere else."""

import sys
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.owner import Output

QUIET_S: Final = 2.0
"""Shorter work needs no bar."""
EVERY_S: Final = 0.2
WIDTH: Final = 30


class Bar:
    """Call it with what is done and what there is; `close` ends the line.

    Draws only on a terminal, and only once the work has taken QUIET_S.
    """

    def __init__(self, what: str, stream: Output | None = None, clock: Clock | None = None) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock or SystemClock()
        self._began_s = self._clock.monotonic_s()
        self._drawn_s = self._began_s
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Draw, if it is time to."""
        now_s = self._clock.monotonic_s()
        long_enough = now_s - self._began_s >= QUIET_S and now_s - self._drawn_s >= EVERY_S
        if long_enough and self._stream.isatty():
            self._drawn_s, self._drawn = now_s, True
            self._stream.write(f"\r{line(self._what, done, total, now_s - self._began_s)}")
            self._stream.flush()

    def close(self) -> None:
        """Wipe the line."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def line(what: str, done: int, total: int, took_s: float) -> str:
    """A bar in words: what, how much of it, how fast."""
    share = min(1.0, done / total) if total > 0 else 0.0
    full = round(share * WIDTH)
    bar = "#" * full + "." * (WIDTH - full)
    return f"{what} [{bar}] {share:4.0%} {done:,} rows, {done / max(took_s, 1e-3):,.0f}/s"
