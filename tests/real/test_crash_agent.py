"""The agent is killed at any instant, over and over: what it has spooled arrives exactly once."""

import os
import random
import time
from pathlib import Path

import pytest

from pipeline.settings import Kafka
from pipeline.store import Store
from tests.real.crash_agent import Agent, read_all
from tests.real.crash_audit import audit, doubles, one

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("MEGAWATCH_AGENT_KILLS", "20"))
SEED = int(os.environ.get("MEGAWATCH_SEED", "1"))
ALIVE_S = (0.3, 2.5)
NODES = 2


@pytest.mark.parametrize("period_ms", [1000, 100], ids=["at-1-Hz", "at-10-Hz"])
def test_no_kill_loses_or_doubles_what_is_in_the_spool(
    kafka: Kafka, store: Store, tmp_path: Path, period_ms: int
) -> None:
    """Every number that the spool has given is in the table, once; all tables agree in energy.

    At 10 Hz a message is on its way most of the time, so that kills fall between the broker's
    answer and its being noted.
    """
    rng = random.Random(SEED)
    flush = {"agent__period_ms": period_ms, "agent__flush_ms": period_ms}
    agent = Agent(kafka, tmp_path / "spool", tmp_path / "agent.log", NODES, **flush)
    try:
        for _ in range(KILLS):
            agent.start()
            agent.wait_until_sampling()
            time.sleep(rng.uniform(*ALIVE_S))
            agent.kill()
        agent.finish()
        given = agent.streams()
    finally:
        agent.close()
    read_all(kafka, store)
    held = audit(store)
    again = one(store, "SELECT sum(duplicates) FROM ingest_log")
    print(f"{held.rows} rows, {again} messages came twice")
    assert doubles(store) == []
    assert held.messages_by_stream == {stream: count for stream, (count, _) in given.items()}
    assert len(given) == NODES
    assert {dropped for _, dropped in given.values()} == {0}
    assert held.rows == held.distinct_rows > 0
    assert set(held.energy_mj.values()) == {held.energy_mj["gpu_samples"]}
    assert held.energy_mj["gpu_samples"] > 0
    assert held.dead_letters == 0
