"""`megawatch pipeline`: the service over Kafka, with its metrics, until it is told to stop."""

import gc
import logging
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from pipeline import memory
from pipeline.clock import Clock
from pipeline.errors import Retry
from pipeline.kafka import KafkaLog
from pipeline.metrics import pages
from pipeline.owner import Owner, Run
from pipeline.service import Service
from pipeline.settings import Settings, secret
from pipeline.store import Store, open_store
from pipeline.topics import DEADLETTERS, TOPICS
from pipeline.web import Web

_log = logging.getLogger("megawatch.pipeline")
_PATIENCE_S = 60.0
_EVERY_S = 2.0

_Made = TypeVar("_Made")

READ = tuple(name for name in TOPICS if name != DEADLETTERS)


def run(
    settings: Settings,
    serve: Callable[[Settings, Store], Run],
    stop: threading.Event,
    clock: Clock,
) -> int:
    """Read every topic into the store until stopped; what is in flight is finished first."""
    memory.keep_pages()
    with ExitStack() as stack:
        store = _patiently(lambda: open_store(settings.clickhouse), _PATIENCE_S, stop, clock)
        if store is None:
            return 0
        stack.callback(store.close)
        if store.embedded:
            owner = Owner(Path(settings.clickhouse.data), serve(settings, store))
            stack.callback(owner.close)
        service = _patiently(lambda: _service(settings, store, clock), math.inf, stop, clock)
        if service is None:
            return 0
        token = secret("", settings.pipeline.token_file)
        web = Web(settings.pipeline.listen, pages(service), token)
        stack.callback(web.close)
        # Messages come and go by the thousand and form no cycles: looking for some among all that
        # was loaded once took 3 % of the processor.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        service.start()
        while not (stop.is_set() or service.stopping.is_set()):
            clock.wait(stop, 0.5)
        service.stop(flush=store.embedded)
        if service.failed is not None:
            raise service.failed
    return 0


def _service(settings: Settings, store: Store, clock: Clock) -> Service:
    return Service(
        settings, store, lambda listener: KafkaLog(settings.kafka, READ, listener), clock
    )


def _patiently(
    make: Callable[[], _Made], patience_s: float, stop: threading.Event, clock: Clock
) -> _Made | None:
    """What is made of a server, waiting for one that is not up yet; None if told to stop."""
    until_s = clock.monotonic_s() + patience_s
    while not stop.is_set():
        try:
            return make()
        except Retry as error:
            if clock.monotonic_s() > until_s:
                raise
            _log.warning("%s; trying again", error)
            clock.wait(stop, _EVERY_S)
    return None
