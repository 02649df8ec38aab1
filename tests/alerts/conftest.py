"""One store for the rules of a module, emptied after each test."""

from collections.abc import Iterator

import pytest

from pipeline.settings import ClickHouse
from pipeline.store import Store, open_store
from tests.alerts.world import World


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Store]:
    store = open_store(ClickHouse(data=str(tmp_path_factory.mktemp("rules"))))
    yield store
    store.close()


@pytest.fixture
def world(opened) -> Iterator[World]:
    made = World(opened)
    yield made
    made.clear()
