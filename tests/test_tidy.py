"""The rules of the house, as far as they can be counted."""

import ast
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline import catalog

ROOT: Final = Path(__file__).parents[1]
FOLDERS: Final = ("agents", "alerts", "dashboards", "deploy", "pipeline", "tests")
TOP_LEVEL: Final = {
    *FOLDERS, ".ci", ".dockerignore", ".editorconfig", ".git", ".gitignore", "CHANGELOG.md",
    "LICENSE", "Makefile", "README.md", "constraints.txt", "megawatch.py", "pyproject.toml",
}  # fmt: skip
PROSE: Final = {".cfg", ".in", ".md", ".py", ".service", ".sh", ".sql", ".toml", ".txt", ".xml",
                ".yaml", ".yml", ".c", ".h", ".Dockerfile"}  # fmt: skip

MODULE_LINES: Final = 400
TEST_MODULE_LINES: Final = 700
FUNCTION_LINES: Final = 60

BROAD: Final = {
    "alerts/evaluator.py": "the evaluator's loop: logs, counts the round as failed, the next one is due",
    "agents/agent.py": "the agent's threads: logs, ends the agent, which is restarted",
    "pipeline/service.py": "the pipeline's threads: logs, ends the pipeline, which is restarted",
    "pipeline/store.py": "chDB raises bare exceptions: each becomes one of ours, none is swallowed",
}
"""Where an `except Exception` that does not raise again may stand, and why."""

WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        action active aggregate boost brake c cap clock corrected counter crc dbe decoder default
        dram ecc encoder energy errors failure fan gpu hw instant j kib limit margin max mem mhz mib
        mig mode module ms nvlink pages pcie pct pending power pstate reasons recovery remap replay
        replays requested reserved retired rows rx sbe sm sw sync temp tensor thermal throttle total
        tx uncorrected used util volatile w
        """,
    )
)
"""Every word that a metric's name is made of: a name lives for ever in stored tables."""


def sources() -> list[Path]:
    """Every Python file of the project."""
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [ROOT / "megawatch.py", *inside]


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every file that people read or write."""
    files = [path for folder in (*FOLDERS, ".ci") for path in sorted((ROOT / folder).rglob("*"))]
    top = [ROOT / name for name in sorted(TOP_LEVEL) if (ROOT / name).is_file()]
    for path in [*top, *files]:
        wanted = path.suffix in PROSE or not path.suffix
        if path.is_file() and wanted and path != Path(__file__):
            yield str(path.relative_to(ROOT)), path.read_text()


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every Python file."""
    for path in sources():
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_module_is_longer_than_a_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := path.read_text().count("\n"))
        > (TEST_MODULE_LINES if path.is_relative_to(ROOT / "tests") else MODULE_LINES)
    }
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{name}:{node.lineno} {node.name} has {lines} lines"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name
        for name, tree in trees()
        if not ast.get_docstring(tree) and (tree.body or not name.endswith("__init__.py"))
    ]
    assert not silent


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches what it cannot know, and does not raise it again."""
    caught = "" if handler.type is None else ast.unparse(handler.type)
    again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return not again and bool(re.search(r"^$|\b(Base)?Exception\b", caught))


def test_broad_excepts_stand_in_outermost_loops_only() -> None:
    found = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
        if not name.startswith("tests/")
    }
    assert found == set(BROAD)


def test_nothing_is_left_to_do() -> None:
    banned = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    left = [
        f"{name}:{number}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if banned.search(line)
    ]
    assert not left


def test_no_path_of_somebodys_machine() -> None:
    home = re.compile(r"(?<![\w.~-])/(?:home|Users|root|work)/\w")
    left = [
        f"{name}:{number}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if home.search(line)
    ]
    assert not left


def test_nothing_stray_lies_at_the_top() -> None:
    ignored = [
        line.strip().rstrip("/")
        for line in (ROOT / ".gitignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    stray = {
        path.name
        for path in ROOT.iterdir()
        if path.name not in TOP_LEVEL and not any(fnmatch.fnmatch(path.name, i) for i in ignored)
    }
    assert not stray


def test_a_metric_ends_in_its_unit_or_counts() -> None:
    for metric in catalog.METRICS:
        if not metric.unit:
            assert metric.kind in ("counter", "state"), metric.name
            assert metric.decimals == 0, metric.name


def test_a_metric_is_spelt_in_known_words() -> None:
    names = {metric.name for metric in catalog.METRICS}
    unknown = {word for name in names for word in name.split("_")} - WORDS
    assert not unknown


def test_a_metric_has_one_name_per_cadence_and_a_meaning() -> None:
    seen = [(metric.cadence, metric.name) for metric in catalog.METRICS]
    assert len(set(seen)) == len(seen)
    for metric in catalog.METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name)
        assert metric.meaning[0].isupper() or metric.meaning[0].isdigit(), metric.name
        assert metric.meaning.endswith(" ...") or not metric.meaning.endswith("."), metric.name
