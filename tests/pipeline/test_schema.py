"""The schema in its three forms: what the embedded engine cannot run, it can at least parse."""

import re

import pytest

from pipeline.catalog import FAST, SLICE, SLOW
from pipeline.schema import (
    cluster_statements,
    metric_columns,
    rollup_columns,
    sample_columns,
    statements,
)
from pipeline.settings import ClickHouse
from pipeline.store import Store

SETTINGS = ClickHouse(database="watts", samples_ttl_days=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    opened = Store(ClickHouse(data=str(tmp_path_factory.mktemp("parser"))))
    yield opened
    opened.close()


def parsed(engine, sql):
    """The statement as the engine writes it; a syntax error raises."""
    return engine.query("SELECT formatQuery({sql:String})", {"sql": sql}).rows[0][0]


@pytest.mark.parametrize("form", ["embedded", "server"])
def test_every_statement_is_one_that_the_engine_can_parse(engine, form):
    """Each on its own, without a placeholder left in it."""
    for statement in statements(form, SETTINGS):
        assert "${" not in statement.sql
        assert parsed(engine, statement.sql).startswith("CREATE ")


def test_the_cluster_form_can_be_parsed(engine):
    """It has been parsed, not run."""
    texts = cluster_statements(SETTINGS, "main")
    for text in texts:
        assert "${" not in text
        assert "ON CLUSTER main" in parsed(engine, text)


def test_a_cluster_has_a_table_in_front_of_every_replicated_one():
    """Local tables replicate, and the distributed ones have their names."""
    text = "\n".join(cluster_statements(SETTINGS, "main"))
    local = set(re.findall(r"CREATE TABLE IF NOT EXISTS watts_local\.(\w+)", text))
    front = set(re.findall(r"CREATE TABLE IF NOT EXISTS watts\.(\w+)", text))
    assert local == front
    assert {"gpu_samples", "power_seconds", "gpu_minutes"} <= local
    assert not re.findall(r"ENGINE = (?!Replicated|Distributed)\w+", text)
    assert len(re.findall(r"ENGINE = Replicated", text)) == len(local)


def test_views_of_a_cluster_read_and_write_their_own_shard():
    """A view that wrote to the distributed table would move every row twice."""
    for text in cluster_statements(SETTINGS, "main"):
        if "MATERIALIZED VIEW" in text:
            assert "FROM watts." not in text
            assert " TO watts_local." in text


def test_the_embedded_form_has_no_ttl_and_a_server_has_the_configured_one():
    """Embedded, a cap on disk takes its place; both count from ingestion, not from the sample."""
    assert not any("TTL" in s.sql for s in statements("embedded", SETTINGS))
    server = {s.name: s.sql for s in statements("server", SETTINGS)}
    assert "TTL ingested_at + INTERVAL 3 DAY" in server["gpu_samples"]
    for name in ("gpu_samples", "gpu_health", "slice_samples", "power_seconds", "gpu_minutes"):
        assert re.search(r"\nTTL ingested_at \+", server[name]), name


def test_numbers_are_distinct_and_in_order():
    """A migration is applied once, by its number."""
    numbers = [s.number for s in statements("server", SETTINGS)]
    assert numbers == sorted(set(numbers))


def test_what_must_survive_a_power_loss_is_synced():
    """The very event that this product watches; and each raw table and rollup knows its tokens."""
    sql = {s.name: s.sql for s in statements("server", SETTINGS)}
    for name in ("gpu_samples", "power_seconds", "tenant_minutes", "gpu_minutes", "allocations"):
        assert "fsync_after_insert = 1" in sql[name]
        assert "fsync_part_directory = 1" in sql[name]
        assert "deduplication_window = 20000" in sql[name]


def test_every_metric_of_the_catalogue_has_its_column():
    """In the table of its cadence."""
    sql = {s.name: s.sql for s in statements("embedded", SETTINGS)}
    for table, columns in (
        ("gpu_samples", sample_columns()),
        ("gpu_health", metric_columns(SLOW)),
        ("slice_samples", metric_columns(SLICE)),
    ):
        for name, definition in columns:
            assert f"    {name} {definition}" in sql[table]


def test_rollups_keep_what_the_catalogue_says():
    """Sums of deltas, value times time of gauges with the time that it covers, extremes."""
    names = {c.name for c in rollup_columns("power_seconds")}
    assert names == {
        "power_w_ms", "power_w_dt_ms", "energy_j", "rows", "dt_ms", "held_ms",
    }  # fmt: skip
    for table in ("tenant_minutes", "gpu_minutes"):
        for metric in FAST:
            made = {c.name for c in rollup_columns(table) if c.name.startswith(metric.name)}
            if table not in metric.rollups:
                assert not made
            elif metric.kind == "delta":
                assert made == {metric.name}
            else:
                assert {f"{metric.name}_ms", f"{metric.name}_dt_ms"} < made
