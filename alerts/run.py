"""`megawatch alerts run`, and the same beside a pipeline in one process."""

import threading
from collections.abc import Iterable

from alerts.evaluator import Evaluator
from alerts.metrics import pages
from alerts.rule import Rule
from pipeline.clock import Clock
from pipeline.settings import Settings, secret
from pipeline.store import Store
from pipeline.web import Web

JOIN_S = 30.0
"""How long a round under way may take to end; its queries are bounded."""


class Running:
    """The evaluator in a thread of its own, over a connection of its own."""

    def __init__(
        self, settings: Settings, store: Store, rules: Iterable[Rule], clock: Clock
    ) -> None:
        """Take up where the last one stopped. Raises Refuse on bad settings."""
        mine = store.another()
        try:
            self.evaluator = Evaluator(settings, mine, rules, clock)
        except BaseException:
            mine.close()
            raise
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self.evaluator.run, args=(self._stop,), name="alerts", daemon=True
        )

    def start(self) -> None:
        """Begin with the next round."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way, and release the store; idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        self.evaluator.close()


def run(
    settings: Settings, store: Store, rules: Iterable[Rule], listen: str,
    stop: threading.Event, clock: Clock,
) -> int:  # fmt: skip
    """Evaluate until stopped; metrics at `listen`, unless it is empty. Raises Refuse."""
    running = Running(settings, store, rules, clock)
    try:
        token = secret("", settings.pipeline.token_file)
        web = Web(listen, pages(running.evaluator), token) if listen else None
        try:
            running.start()
            stop.wait()
        finally:
            if web is not None:
                web.close()
    finally:
        running.stop()
    return 0
