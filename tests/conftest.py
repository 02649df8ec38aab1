"""Fixtures that many tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.settings import ClickHouse
from pipeline.store import Store, open_store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Opening a store takes a third of a second, and a thousand tests do."""
    for item in items:
        if "migrated" in getattr(item, "fixturenames", ()):
            item.add_marker("store")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an empty store with every table: copying it is quicker than making it."""
    folder = tmp_path_factory.mktemp("migrated")
    open_store(ClickHouse(data=str(folder))).close()
    return folder


@pytest.fixture
def store(tmp_path: Path, migrated: Path) -> Iterator[Store]:
    """An empty embedded store."""
    shutil.copytree(migrated, tmp_path / "data", symlinks=True)
    opened = Store(ClickHouse(data=str(tmp_path / "data")))
    yield opened
    opened.close()


@pytest.fixture
def captures() -> Path:
    """The folder of real captures; the test is skipped where it is missing."""
    folder = Path(
        os.environ.get("MEGAWATCH_TEST_DATA", Path(__file__).parents[1] / "../shared/data")
    )
    if not folder.is_dir():
        pytest.skip(f"real captures are not here: {folder} (set MEGAWATCH_TEST_DATA)")
    return folder
