"""Fetching Grafana's schema: what is missing is named, and half an installation is never seen."""

from pathlib import Path

import pytest

from deploy import fetch
from pipeline.errors import Unavailable


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH besides the system's shell, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_without_node_it_says_so(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no node in PATH"):
        fetch.fetch_grafana_schema(tmp_path / "cache")


def test_an_old_node_is_named(programs: Path, tmp_path: Path) -> None:
    program(programs, "node", "echo v18.13.0")
    with pytest.raises(Unavailable, match=r"is Node 18: TypeScript needs 20"):
        fetch.fetch_grafana_schema(tmp_path / "cache")


def test_without_npm_it_says_so(programs: Path, tmp_path: Path) -> None:
    program(programs, "node", "echo v20.1.0")
    with pytest.raises(Unavailable, match="no npm in PATH"):
        fetch.fetch_grafana_schema(tmp_path / "cache")


def test_an_installation_that_fails_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    program(programs, "node", "echo v22.1.0")
    program(programs, "npm", "echo half > half; echo 'npm error 404 not found' >&2; exit 1")
    with pytest.raises(Unavailable, match="npm error 404"):
        fetch.fetch_grafana_schema(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name == "half"]
    with pytest.raises(Unavailable, match="was not fetched"):
        fetch.grafana_schema(tmp_path / "cache")


def test_versions_are_pinned_and_installed_once(programs: Path, tmp_path: Path) -> None:
    program(programs, "node", "echo v22.1.0")
    program(programs, "npm", f'echo "$@" >> {tmp_path}/called; echo > made')
    folder = fetch.fetch_grafana_schema(tmp_path / "cache")
    assert fetch.fetch_grafana_schema(tmp_path / "cache") == folder
    assert (folder / "made").exists()
    called = (tmp_path / "called").read_text().splitlines()
    assert len(called) == 1
    assert f"@grafana/schema@{fetch.GRAFANA_SCHEMA_VERSION}" in called[0]
    assert f"typescript@{fetch.TYPESCRIPT_VERSION}" in called[0]
    assert "--ignore-scripts" in called[0]


def test_the_command_names_what_is_missing(
    programs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Path:
        raise Unavailable("no node in PATH")

    monkeypatch.setitem(fetch.PARTS, "grafana-schema", away)
    assert fetch.main(["grafana-schema"]) == 0
    assert "grafana-schema: missing: no node in PATH" in capsys.readouterr().err
