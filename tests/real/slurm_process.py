"""The site's Slurm feed as a process of its own, that a test kills: arguments are JSON."""

import json
import signal
import sys
import threading

from pipeline.clock import SystemClock
from pipeline.settings import ClickHouse, Slurm
from pipeline.slurm_outlets import StoreBooks
from pipeline.slurm_run import run
from pipeline.store import open_store


def main() -> int:
    """Run until SIGTERM."""
    given = json.loads(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    store = open_store(ClickHouse(data=given["data"]))
    settings = Slurm(period_s=1, seen=given["seen"], listen="", timeout_s=20)
    clock = SystemClock()
    print("running", flush=True)
    books = StoreBooks(store, clock)
    code = run(given["site"], settings, books, None, stop, clock, print)
    store.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
