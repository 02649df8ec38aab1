"""Thousands of agents in one process, for `bench ingest`: run as a module, prints what it sent.

    python -m pipeline.bench.fleet BOOTSTRAP NODES SECONDS live|preload|hour MESSAGES_PER_BATCH

live: every node's ticks at 1 Hz in messages of 4 s, spread over the seconds as agents spread them.
preload: the same messages as fast as the broker takes them. An agent sends one message to a batch.
hour: the same from the last whole hour's beginning on.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from agents.simulator import SimulatorSource
from pipeline.bench.load import Fleet, Reading
from pipeline.bench.produce import FleetProducer
from pipeline.kafka.codec import compress
from pipeline.records import id64

FLUSH_TICKS: Final = 4
HOUR_MS: Final = 3_600_000
GPUS: Final = 8
SITE: Final = "bench"
BATCH_BYTES: Final = 61 + 10
"""Kafka's overhead for a batch of one record, as a real agent sends it: header and record frame."""


def main(arguments: Sequence[str]) -> int:
    """Send, then say how many messages and rows the broker has."""
    bootstrap, mode = arguments[0], arguments[3]
    nodes, seconds, per_batch = (int(arguments[i]) for i in (1, 2, 4))
    begin_ms = (time.time_ns() // 1_000_000_000 + 1) * 1000
    if mode == "preload":
        begin_ms -= seconds * 1000
    elif mode == "hour":
        begin_ms = (begin_ms // HOUR_MS - 1) * HOUR_MS
    # Another seed is another set of GPUs: both modes may send the same seconds.
    seed = 1 if mode == "live" else 2
    source = SimulatorSource(nodes, site=SITE, seed=seed, random_faults=False, start_ms=begin_ms)
    names = [i.node for i in source.inventory()]
    fleet = Fleet(
        id64(SITE),
        np.array([id64(SITE, name) for name in names], np.uint64),
        np.array([[id64(SITE, g.uuid) for g in i.gpus] for i in source.inventory()], np.uint64),
        seed=time.time_ns() % 2**32,
    )
    keys = [name.encode() for name in names]
    producer = FleetProducer(bootstrap, per_batch)
    # Messages of these nodes are due at second k, k + 4, ...: what hash(node) does for agents.
    groups = [
        slice(nodes * k // FLUSH_TICKS, nodes * (k + 1) // FLUSH_TICKS) for k in range(FLUSH_TICKS)
    ]
    recent: deque[Reading] = deque(maxlen=FLUSH_TICKS)
    late_s = 0.0
    alone: list[int] = []
    if mode == "live":
        begin_ms = (time.time_ns() // 1_000_000_000 + 1) * 1000
    for tick in range(seconds):
        tick_ms = begin_ms + tick * 1000
        if mode == "live":
            wait_s = tick_ms / 1000 - time.time()
            time.sleep(max(0.0, wait_s))
            late_s = max(late_s, -wait_s)
        recent.append(source.read(tick_ms))  # type: ignore[arg-type]
        if len(recent) < FLUSH_TICKS:
            continue
        group = groups[tick % FLUSH_TICKS]
        messages = fleet.messages(list(recent), tick_ms - (FLUSH_TICKS - 1) * 1000, group)
        producer.send(keys[group], messages)
        alone.extend(len(compress(m)) + BATCH_BYTES + len(keys[0]) for m in messages[:20])
    producer.close()
    print(json.dumps({
        "messages": producer.acked, "rows": producer.acked * GPUS * FLUSH_TICKS,
        "late_s": round(late_s, 3),
        "cpu_s": time.process_time(),
        "bytes_per_row": round(sum(alone) / len(alone) / GPUS / FLUSH_TICKS, 2),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
