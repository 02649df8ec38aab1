"""What is installed is this checkout, whole, and light where it must be light."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("agents", "alerts", "dashboards", "deploy", "pipeline")
HEAVY: Final = ("numpy", "pyarrow", "chdb", "clickhouse_connect", "pandas")
SIMULATOR: Final = ("agents.simulator", "agents.physics", "agents.fleet", "agents.struck")
"""The one part of the agent that needs numpy; imported only when asked for."""


@pytest.mark.parametrize("name", [*PACKAGES, "megawatch"])
def test_a_package_comes_from_this_checkout_and_from_nowhere_else(name: str) -> None:
    """Another distribution with a top-level package of that name would shadow ours silently."""
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).is_relative_to(ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built with what is installed here, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("megawatch-*-py3-none-any.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_has_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for suffix in ("py", "sql", "xml", "json", "js", "css", "html", "svg", "md", "yaml", "sh")
        for path in (ROOT / package).rglob(f"*.{suffix}")
    }
    assert {"pipeline/engine.xml", "pipeline/migrations/0001_gpu_samples.sql"} <= wanted
    assert wanted | {"megawatch.py"} <= names


def test_the_wheel_has_neither_tests_nor_secrets(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        top = name.split("/")[0]
        assert top in (*PACKAGES, "megawatch.py") or top.endswith(".dist-info"), name
        assert not name.endswith(("/.env", ".pyc")), name


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "megawatch = megawatch:main" in wheel.read(entry).decode()


def test_the_agent_is_installed_without_heavy_libraries() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = " ".join(project["optional-dependencies"]["agent"] + project["dependencies"]).lower()
    for name in HEAVY:
        assert name.replace("_", "-") not in wanted
    assert "megawatch[" not in wanted


def test_the_agent_runs_without_heavy_libraries() -> None:
    """Importing all of it but the simulator leaves them out: they are 600 MB and cost memory."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "agents").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    light = ["megawatch", "pipeline.kafka", *(m for m in modules if m not in SIMULATOR)]
    assert "agents.agent" in light
    program = (
        f"import importlib, json, sys\nfor name in {light}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []


def test_every_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    wanted = {re.split(r"[=<>\[]", line)[0].lower() for line in extras} - {"megawatch"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert wanted <= pinned
    assert lines == sorted(lines, key=str.lower)
    assert all(line.count("==") == 1 and "@" not in line for line in lines)
