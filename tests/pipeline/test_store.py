"""The store: migrated once, newer schemas refused, tokens remembered, errors in our own words."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import schema
from pipeline.errors import Refuse, Retry
from pipeline.settings import ClickHouse
from pipeline.store import Store, open_store
from tests.messages import T0_MS

METER = {
    "site": [1], "meter": ["m"], "kind": [1], "ts": [1_795_000_000_000], "watts": [1500],
    "ingested_at": [1_795_000_000],
}  # fmt: skip


def count(store, table):
    return store.query(f"SELECT count() FROM {table}").rows[0][0]


def test_migrating_again_changes_nothing(store):
    """Safe to repeat, also at every start."""
    assert store.migrate() == []


def test_a_newer_schema_is_refused(store):
    """An old version must not write into tables that it does not know."""
    store.insert("schema_migrations", {"number": [9999], "name": ["from_the_future"]})
    with pytest.raises(Refuse, match=r"the store has schema 9999, newer than .* upgrade megawatch"):
        store.migrate()


def test_a_store_of_an_early_version_is_refused(store):
    """Its raw rows have no codes: columns that were added to them would all say not reported."""
    for view in ("power_seconds_within", "power_seconds_across", "tenant_minutes_view"):
        store.command(f"DROP VIEW {view}")
    store.command("DROP TABLE gpu_samples")
    store.command(
        "CREATE TABLE gpu_samples (gpu UInt64, power_w Nullable(Decimal(9, 1)))"
        " ENGINE = MergeTree ORDER BY gpu"
    )
    old = store.another()
    with pytest.raises(Refuse, match="give it a new folder or database"):
        old.migrate()
    old.close()


def test_a_migration_that_is_missing_is_made_up_for(store):
    """A store of the version before gets what is new, and only that."""
    last = max(schema.statements("embedded", store.settings), key=lambda s: s.number)
    store.command(f"DROP TABLE {last.name}" if "TABLE" in last.sql else f"DROP VIEW {last.name}")
    store.command(f"DELETE FROM schema_migrations WHERE number = {last.number}")
    assert store.migrate() == [f"{last.number:04d}_{last.name}"]
    assert count(store, "schema_migrations") == len(schema.statements("embedded", store.settings))


def test_a_metric_that_joined_the_catalogue_gets_its_column(store):
    """Old rows read as not reported."""
    store.insert("slice_samples", {"gpu": [5], "gi": [1], "ci": [0], "ts": [1_795_000_000_000]})
    store.command("ALTER TABLE slice_samples DROP COLUMN dram_active_pct")
    store._types.clear()
    assert store.migrate() == ["slice_samples.dram_active_pct"]
    assert store.query("SELECT dram_active_pct FROM slice_samples").rows == [(None,)]


def test_a_token_makes_an_insert_happen_once(store):
    """Per table, whatever is in the block; without a token each insert counts."""
    for _ in range(3):
        store.insert("meters", METER, "t/0/0-9")
    store.insert("meters", METER | {"watts": [7]}, "t/0/0-9")
    assert count(store, "meters") == 1
    store.insert("meters", METER | {"meter": ["n"]}, "t/0/10-19")
    assert count(store, "meters") == 2


def test_a_repeated_insert_reaches_no_rollup_twice(store):
    """The views of a block that is known already see nothing."""
    rows = {
        "gpu": np.arange(4, dtype=np.uint64), "ts": np.full(4, 1_795_000_000_000, np.int64),
        "dt_ms": np.full(4, 1000, np.uint32), "energy_j": np.full(4, 500_000, np.uint32),
    }  # fmt: skip
    for _ in range(2):
        store.insert("gpu_samples", rows, "samples/0/0-0")
    for table in ("gpu_samples", "power_seconds", "tenant_minutes"):
        assert store.query(f"SELECT sum(energy_j) FROM {table}").rows[0][0] == 2000


def test_an_empty_block_is_no_insert(store):
    """Nothing to write, nothing to remember."""
    store.insert("meters", {name: [] for name in METER}, "token")
    store.insert("meters", METER, "token")
    assert count(store, "meters") == 1


@pytest.mark.parametrize(
    "sql", ["INSERT INTO meters (site) VALUES (1)", "DROP TABLE meters", "TRUNCATE TABLE meters"]
)
def test_somebody_elses_query_cannot_change_anything(store, sql):
    """It is refused, and leaves our own connection as it was."""
    store.insert("meters", METER)
    with pytest.raises(Retry):
        store.foreign(sql, "CSV")
    assert count(store, "meters") == 1
    store.insert("meters", METER | {"meter": ["n"]})
    assert count(store, "meters") == 2


def test_parameters_are_bound_not_pasted(store):
    """Text from outside stays text."""
    hostile = "'; DROP TABLE meters --"
    assert store.query("SELECT {x:String}", {"x": hostile}).rows == [(hostile,)]


def test_an_error_of_the_engine_is_one_line(store):
    """And the connection goes on working."""
    with pytest.raises(Retry) as error:
        store.query("SELECT nothing FROM nowhere")
    assert "\n" not in str(error.value)
    assert store.query("SELECT 1").rows == [(1,)]


@pytest.mark.parametrize("name", ["copy", "copy.tar", "copy.tar.gz", "it's.tar"])
def test_a_backup_is_a_store(store, tmp_path, name):
    """A folder or an archive; what was saved is what is restored, and it is the same schema."""
    store.insert("meters", METER)
    store.backup(tmp_path / name)
    store.close()
    again = Store(ClickHouse(data=str(tmp_path / "again")))
    try:
        again.restore(tmp_path / name)
        assert again.migrate() == []
        assert again.query("SELECT meter, watts FROM meters").rows == [("m", 1.5)]
    finally:
        again.close()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (ClickHouse(), "no store: give --data FOLDER"),
        (ClickHouse(url="ftp://x"), "is not an http"),
        (ClickHouse(url="localhost:8123"), "is not an http"),
        (ClickHouse(url="http://u:secret@h"), "password_file, not into the URL"),
    ],
)
def test_a_store_that_cannot_be_is_refused_in_a_sentence(settings, sentence):
    """Without the secret in it."""
    with pytest.raises(Refuse, match=sentence) as error:
        open_store(settings)
    assert "secret" not in str(error.value)


def test_a_server_that_is_away_is_worth_another_try():
    """Nobody listens on port 9 of this machine."""
    with pytest.raises(Retry, match=r"cannot reach ClickHouse at http://127\.0\.0\.1:9"):
        Store(ClickHouse(url="http://127.0.0.1:9"))


def test_a_small_insert_after_a_large_one_is_itself_alone(store):
    """Both go through one file in memory; a token may be any text."""
    for count, token in ((20_000, "it's"), (1, "back\\slash"), (1, "it's"), (3, "")):
        block = {"gpu": np.arange(count, dtype=np.uint64) + count, "ts": np.full(count, T0_MS)}
        store.insert("gpu_samples", block | {"dt_ms": np.full(count, 1000, np.uint32)}, token)
    assert store.query("SELECT count() FROM gpu_samples").rows[0][0] == 20_004


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_connection_that_is_closed_gives_its_memory_back(store):
    """Nor is there a name in a file system that a killed process would leave behind."""

    def files() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum("memfd:megawatch" in str(f.readlink()) for f in links if f.is_symlink())

    before, another = files(), store.another()
    another.insert("gpu_samples", {"gpu": np.ones(1, np.uint64), "ts": np.full(1, T0_MS)})
    assert files() == before + 1
    another.close()
    assert files() == before
