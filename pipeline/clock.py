"""Time as a parameter: the system's clock, and one that a test moves by hand."""

import threading
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What every loop asks for the time and for sleep."""

    def now_ms(self) -> int:
        """Wall clock: milliseconds since 1970, UTC. May step."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never steps back."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Sleep for at most `timeout_s`, or until `event` is set; True if it is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Wall clock in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Really sleep."""
        return event.wait(max(0.0, timeout_s))


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until somebody waits on it or moves it."""

    ms: int = 1_790_000_000_000

    def now_ms(self) -> int:
        """The time that was set."""
        return self.ms

    def monotonic_s(self) -> float:
        """The same time in seconds."""
        return self.ms / 1000

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Advance at once instead of sleeping."""
        self.advance(timeout_s)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Move the clock, also backwards."""
        self.ms += round(seconds * 1000)
