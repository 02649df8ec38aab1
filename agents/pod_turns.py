"""How often something may be asked that would be asked again for as long as it stays unanswered."""

from pipeline.clock import Clock


class Seldom:
    """Leave to do something, at most once in so many seconds."""

    def __init__(self, clock: Clock, every_s: float) -> None:
        self._clock = clock
        self._every_s = every_s
        self._last_s: float | None = None

    def may(self) -> bool:
        """Whether it is time; then it is not again for a while."""
        now_s = self._clock.monotonic_s()
        if self._last_s is not None and now_s - self._last_s < self._every_s:
            return False
        self._last_s = now_s
        return True
