"""Real servers for tests: one Apache Kafka for the session, and what to do where it is missing."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.broker import Broker
from pipeline.errors import Unavailable
from pipeline.kafka import create_topics
from pipeline.settings import Kafka

_Part = TypeVar("_Part")


def require_real(name: str, present: Callable[[], _Part]) -> _Part:
    """What `present` returns; if it raises Unavailable, skip by name, or fail where told to."""
    try:
        return present()
    except Unavailable as error:
        message = f"{name} is missing: {error}"
        if os.environ.get("MEGAWATCH_REQUIRE_REAL") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that no test stops."""
    folder = tmp_path_factory.mktemp("broker")
    started = require_real("Apache Kafka", lambda: Broker.start(folder))
    yield started
    started.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may stop, kill and restart."""
    started = require_real("Apache Kafka", lambda: Broker.start(tmp_path / "broker"))
    yield started
    started.stop()


def settings_for(broker: Broker) -> Kafka:
    """Settings with topics and a group that nobody else uses."""
    name = uuid.uuid4().hex[:12]
    return Kafka(
        bootstrap=broker.bootstrap,
        topic_prefix=f"{name}.",
        group=name,
        replication=1,
        lane_partitions=3,
        session_timeout_ms=6000,
    )


@pytest.fixture
def kafka(broker: Broker) -> Kafka:
    """The session's broker, with topics of this test's own."""
    made = settings_for(broker)
    create_topics(made)
    return made
