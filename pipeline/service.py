"""The running pipeline: the ingest loop, and beside it what follows behind the watermark."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from pipeline import cap, merges
from pipeline.clock import Clock
from pipeline.errors import Retry
from pipeline.ingest import Ingest
from pipeline.ledger.keeper import Keeper
from pipeline.log import Listener, Log
from pipeline.minutes import Minutes
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.warm import warmed

_log: Final = logging.getLogger("megawatch.pipeline")

GRACE_MS: Final = 5_000
"""Minutes are filled this long behind the watermark, so that stragglers rarely cost a second fill."""


class Service:
    """Two threads over one store; `start`, then `stop` within seconds."""

    def __init__(
        self, settings: Settings, store: Store, open_log: Callable[[Listener], Log], clock: Clock
    ) -> None:
        """Read back what the store knows of the site."""
        self.settings, self.store, self.clock = settings, store, clock
        directory = warmed(store, clock.now_ms(), settings.ledger.precedence)
        self.failed: BaseException | None = None
        self._filling = store.another()
        try:
            self.ingest = Ingest(open_log, store, directory, settings.pipeline, clock)
        except BaseException:
            self._filling.close()
            raise
        self.minutes = Minutes(self._filling)
        self.keeper = Keeper(self._filling, settings)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in (("ingest", self._ingest), ("minutes", self._fill))
        ]

    def start(self) -> None:
        """Begin to read the log."""
        for thread in self._threads:
            thread.start()

    def stop(self, drain_s: float = 0.0, *, flush: bool = False) -> bool:
        """End: first empty the log if asked to, then fill every minute there is.

        Returns False if the log could not be emptied in time; what is left stays in the log.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        done = True
        try:
            if drain_s and self.failed is None:
                done = self.ingest.drain(drain_s)
            self.ingest.finish()
            if flush:
                self.minutes.fill(self.clock.now_ms(), None)
        finally:
            self.close()
        return done

    def close(self) -> None:
        """Leave the log and the store; `stop` does, once the threads have ended."""
        self.ingest.close()
        self._filling.close()

    @property
    def stopping(self) -> threading.Event:
        """Set when the service is ending, also by itself."""
        return self._stop

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:  # the outermost loop: say it, and end the process cleanly
            _log.exception("the pipeline stops")
            self.failed = error
            self._stop.set()

    def _ingest(self) -> None:
        self.ingest.run(self._stop)

    def _fill(self) -> None:
        every_s = self.settings.pipeline.fill_minutes_every_s
        close_every_ms, closed_ms = self.settings.ledger.close_every_s * 1000, 0
        while not self.clock.wait(self._stop, every_s):
            try:
                watermark = self.ingest.watermark_ms - GRACE_MS
                if watermark > 0:
                    self.minutes.fill(self.clock.now_ms(), watermark)
                if close_every_ms and self.clock.now_ms() - closed_ms >= close_every_ms:
                    closed_ms = self.clock.now_ms()
                    self.keeper.step(closed_ms)
                if self._filling.embedded:
                    cap.enforce(self._filling, self.settings.clickhouse.max_disk_gib)
                    merges.fit(self._filling)
                    merges.give_way()
            except Retry as error:
                _log.warning("minutes and ledger: %s; trying again", error)
