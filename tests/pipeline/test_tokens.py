"""Killed between an insert's token and its part: the repetition writes what is missing."""

import fcntl
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import tokens
from pipeline.settings import ClickHouse
from pipeline.store import Store

TABLES = ("gpu_samples", "power_seconds", "tenant_minutes")
ENERGY_MJ = 2_000_000
ROWS: dict[str, NDArray[np.generic]] = {
    "gpu": np.arange(4, dtype=np.uint64), "ts": np.full(4, 1_795_000_000_000, np.int64),
    "dt_ms": np.full(4, 1000, np.uint32), "energy_j": np.full(4, 500_000, np.uint32),
    "ingested_at": np.full(4, int(time.time()), np.uint32),
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> ClickHouse:
    """An empty store that nobody has open."""
    shutil.copytree(migrated, tmp_path / "data", symlinks=True)
    return ClickHouse(data=str(tmp_path / "data"))


def life(settings: ClickHouse, *batches: str) -> dict[str, tuple[int, Path]]:
    """Open the store, insert, close it; millijoules and folder of every table."""
    store = Store(settings)
    try:
        for token in batches:
            store.insert("gpu_samples", ROWS, token)
        return {table: (energy_mj(store, table), folder(store, table)) for table in TABLES}
    finally:
        store.close()


def energy_mj(store: Store, table: str) -> int:
    return int(1000 * store.query(f"SELECT sum(energy_j) FROM {table}").rows[0][0])


def folder(store: Store, table: str) -> Path:
    return Path(
        store.query(
            "SELECT data_paths[1] FROM system.tables"
            " WHERE database = currentDatabase() AND name = {table:String}",
            {"table": table},
        ).rows[0][0]
    )


def energies(tables: dict[str, tuple[int, Path]]) -> set[int]:
    return {energy for energy, _ in tables.values()}


def newest_part(table: Path) -> Path:
    """The folder of the part with the highest block number."""
    return max(table.glob("*_[0-9]*_[0-9]*_[0-9]*"), key=lambda p: int(p.name.split("_")[2]))


@pytest.mark.parametrize("table", TABLES)
def test_a_kill_before_the_part_is_in_place(settings: ClickHouse, table: str) -> None:
    """Whichever of an insert's parts was never renamed: the repetition adds it, and only it."""
    life(settings, "one")
    done = life(settings, "two")
    assert energies(done) == {2 * ENERGY_MJ}
    # As found after SIGKILL at that rename(2): the token in the log, a part without its name.
    part = newest_part(done[table][1])
    part.rename(part.with_name(f"tmp_insert_{part.name}"))
    assert life(settings)[table][0] == ENERGY_MJ
    assert energies(life(settings, "two", "one", "two")) == {2 * ENERGY_MJ}
    assert energies(life(settings, "two", "three")) == {3 * ENERGY_MJ}


def test_tokens_of_merged_parts_stand(settings: ClickHouse) -> None:
    """A part that went into a larger one is there."""
    store = Store(settings)
    for token in ("one", "two", "three"):
        store.insert("gpu_samples", ROWS, token)
    for table in TABLES:
        store.command(f"OPTIMIZE TABLE {table} FINAL")
    store.close()
    assert tokens.mend(Path(settings.data) / "store") == 0
    assert energies(life(settings, "two", "one", "three")) == {3 * ENERGY_MJ}


def test_an_open_store_is_left_alone(settings: ClickHouse) -> None:
    """A token without its part may be an insert of this moment."""
    part = newest_part(life(settings, "one")["gpu_samples"][1])
    part.rename(part.with_name(f"tmp_insert_{part.name}"))
    store = Path(settings.data) / "store"
    with (store / "status").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert tokens.mend(store) == 0
    assert tokens.mend(store) == 1
    assert tokens.mend(store) == 0


def test_lines_that_say_nothing_are_left_alone(settings: ClickHouse) -> None:
    """A torn line, foreign bytes, another form of name: the engine's own business."""
    done = life(settings, "one")
    log = next((done["gpu_samples"][1] / "deduplication_logs").iterdir())
    odd = b"\n1\tno_part\n9\tx_1_1_0\ttoken\n1\tstrange\t\xff\xfe\n1\tall_1_1"
    log.write_bytes(log.read_bytes() + odd)
    assert tokens.mend(Path(settings.data) / "store") == 0
    assert log.read_bytes().endswith(odd)


def test_what_is_taken_back_stands_on_a_line_of_its_own(settings: ClickHouse) -> None:
    """Also behind a line that a kill tore."""
    done = life(settings, "one")
    part = newest_part(done["gpu_samples"][1])
    part.rename(part.with_name(f"tmp_insert_{part.name}"))
    log = next((done["gpu_samples"][1] / "deduplication_logs").iterdir())
    log.write_bytes(log.read_bytes() + b"1\tall_1")
    assert tokens.mend(Path(settings.data) / "store") == 1
    assert log.read_bytes().splitlines()[-1].startswith(b"2\t" + part.name.encode() + b"\t")


def test_no_store_yet(tmp_path: Path) -> None:
    """Nothing to mend, nothing made."""
    assert tokens.mend(tmp_path / "store") == 0
    assert list(tmp_path.iterdir()) == []
