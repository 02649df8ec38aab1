"""The front door: what is wrong is one sentence and status 2, and a whole run proves itself."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.broker import free_port
from tests.messages import message

HEADER = "megawatch: "


def megawatch(*arguments: object, cwd: Path | None = None, **env: str):
    import os

    return subprocess.run(
        [sys.executable, "-m", "megawatch", *map(str, arguments)], capture_output=True, text=True,
        timeout=60, check=False, cwd=cwd, env=os.environ | env,
    )  # fmt: skip


def refused(done):
    """The sentence of a refusal; nothing else was said."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith(HEADER)
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix(HEADER)


def test_an_unknown_command_names_the_known_ones():
    """And where to read more."""
    said = refused(megawatch("ubs"))
    assert "'ubs'" in said
    assert "'up'" in said
    assert "--help" in said


def test_a_bad_configuration_names_file_and_key(tmp_path):
    """From the file, and from the environment."""
    (tmp_path / "m.toml").write_text("[agent]\nperiod = 5\n")
    said = refused(megawatch("--config", "m.toml", "schema", cwd=tmp_path))
    assert "m.toml: [agent] period: unknown name 'period', did you mean 'period_ms'?" in said
    said = refused(megawatch("schema", MEGAWATCH_AGENT__PERIOD_MS="soon"))
    assert "MEGAWATCH_AGENT__PERIOD_MS='soon'" in said


def test_a_broker_that_is_away_is_said_in_bounded_time():
    """Nobody listens there; nobody waits for ever."""
    begun = time.monotonic()
    address = f"127.0.0.1:{free_port()}"
    said = refused(megawatch("topics", "create", MEGAWATCH_KAFKA__BOOTSTRAP=address))
    assert address in said
    assert time.monotonic() - begun < 30
    assert "set [kafka] bootstrap" in refused(megawatch("topics", "create"))


def test_a_store_that_is_not_there_is_said_with_how_to_start_one(tmp_path):
    """And none is made by asking."""
    said = refused(megawatch("sql", "--data", "here", "SELECT 1", cwd=tmp_path))
    assert "no store in" in said
    assert "megawatch up --data here" in said
    assert not (tmp_path / "here").exists()
    assert "not both" in refused(megawatch("status", "--data", "a", "--store", "http://b"))


def test_a_message_is_taken_apart_from_a_file(tmp_path):
    """A good one as a table, a bad one as a reason."""
    (tmp_path / "good.bin").write_bytes(message())
    (tmp_path / "bad.bin").write_bytes(message()[:-1])
    good = megawatch("decode", "good.bin", cwd=tmp_path)
    assert good.returncode == 0
    assert "power_w" in good.stdout
    bad = megawatch("decode", "bad.bin", cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stderr == f"megawatch: truncated: {len(message()) - 1} bytes of {len(message())}\n"
    assert "cannot read none.bin" in refused(megawatch("decode", "none.bin", cwd=tmp_path))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of two nodes, and its last line."""
    folder = tmp_path_factory.mktemp("run")
    done = megawatch(
        "up", "--simulate", 2, "--duration", 6, "--json", "--data", "data",
        "--listen", "127.0.0.1:0", cwd=folder, MEGAWATCH_AGENT__LISTEN="127.0.0.1:0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.split("\n")[-2])


def test_a_run_proves_that_nothing_was_lost_or_counted_twice(run):
    """By SQL, on its last line."""
    folder, last = run
    assert last["gpus"] == 16
    assert last["rows_ingested"] >= 16 * 4
    assert last["rows_ingested"] % 16 == 0
    assert (last["rows_lost"], last["rows_duplicated"]) == (0, 0)
    assert 0.99 <= last["coverage"] <= 1
    assert 16 * 50 < last["watts"] < 16 * 1500
    energy = last["energy_raw_mj"]
    assert isinstance(energy, str)
    assert int(energy) > 0
    assert last["energy_rollups_mj"] == dict.fromkeys(
        ("power_seconds", "tenant_minutes", "gpu_minutes"), energy
    )
    count = megawatch(
        "sql", "--data", "data", "--format", "csv", "SELECT count() FROM gpu_samples", cwd=folder
    )
    assert count.stdout == f"{last['rows_ingested']}\n"


def test_what_was_run_can_be_asked_for_watts(run):
    """Watts with their coverage; a time that is none is refused."""
    folder, last = run
    done = megawatch("power", "--data", "data", "--step", "1s", "--json", cwd=folder)
    rows = json.loads(done.stdout.split("\n")[-2])
    assert rows[-1]["watts"] == pytest.approx(last["watts"], abs=1)
    assert rows[-1]["coverage"] == 1
    assert {"ts", "site", "watts", "coverage", "expected_from"} == set(rows[0])
    said = refused(megawatch("power", "--data", "data", "--from", "yesterday", cwd=folder))
    assert "'yesterday'" in said
    said = refused(
        megawatch("power", "--data", "data", "--from=-1h", "--to", "2020-01-01", cwd=folder)
    )
    assert "is later than" in said


def test_a_store_survives_in_its_backup(run):
    """Saved, restored elsewhere, the same; never over something else."""
    folder, last = run
    assert megawatch("backup", "--data", "data", "b.tar.gz", cwd=folder).returncode == 0
    assert "exists already" in refused(
        megawatch("backup", "--data", "data", "b.tar.gz", cwd=folder)
    )
    assert megawatch("restore", "b.tar.gz", "--data", "new", cwd=folder).returncode == 0
    rows = megawatch(
        "sql", "--data", "new", "--format", "json", "SELECT count() AS n FROM gpu_samples",
        cwd=folder,
    )  # fmt: skip
    assert json.loads(rows.stdout) == [{"n": last["rows_ingested"]}]
    assert "holds a store already" in refused(
        megawatch("restore", "b.tar.gz", "--data", "new", cwd=folder)
    )
    (folder / "no.tar").write_text("this is no backup")
    assert "no.tar cannot be restored" in refused(
        megawatch("restore", "no.tar", "--data", "other", cwd=folder)
    )
    assert not (folder / "other" / "store").exists()
