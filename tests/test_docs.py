"""What is written down is what there is: commands, examples, configuration."""

import argparse
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from pipeline import arguments as arguments_of
from pipeline import settings

ROOT: Final = Path(__file__).parents[1]
EXAMPLE: Final = ROOT / "deploy/megawatch.example.toml"
PAGES: Final = sorted(
    path for folder in ("", "agents", "alerts", "dashboards", "deploy", "pipeline", "tests")
    for path in (ROOT / folder).glob("*.md")
)  # fmt: skip


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every subcommand, by name."""
    whole = arguments_of.parser()
    (choices,) = [a.choices for a in whole._actions if isinstance(a, argparse._SubParsersAction)]
    assert isinstance(choices, dict)
    return choices


def shell_lines(page: Path) -> Iterator[str]:
    """Commands in a page's fenced blocks: prompts left out, continued lines joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            yield line.strip().removeprefix("$ ")


def arguments(line: str) -> list[str]:
    """What follows the program's name, up to a comment, a pipe or another command."""
    words = shlex.split(line, comments=True)[1:]
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&", "2>")]
    return words[: ends[0]] if ends else words


def commands(page: Path) -> list[str]:
    """The lines of a page that call megawatch, without synopses such as `megawatch up [...]`."""
    found = [re.sub(r"^(\S*/)?megawatch ", "megawatch ", line) for line in shell_lines(page)]
    return [line for line in found if line.startswith("megawatch ") and "[--" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_a_page_shows_parses(page: Path) -> None:
    for line in commands(page):
        if "--help" not in line:
            arguments_of.parser().parse_args(arguments(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_make_target_that_a_page_shows_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for line in shell_lines(page):
        if line.startswith("make "):
            assert line.split()[1] in targets, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_file_leads_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", sorted(parsers()))
def test_a_command_has_an_example_that_parses(name: str) -> None:
    epilog = parsers()[name].epilog or ""
    assert epilog.startswith("example: megawatch ")
    parsed = arguments_of.parser().parse_args(arguments(epilog.removeprefix("example: ")))
    assert parsed.command == name
    assert epilog in " ".join(parsers()[name].format_help().split())


def test_the_example_has_every_key_with_its_default_and_no_other() -> None:
    written = tomllib.loads(EXAMPLE.read_text())
    assert written == msgspec.json.decode(msgspec.json.encode(settings.Settings()))
    assert settings.load(EXAMPLE, {}) == settings.Settings()


def test_the_example_has_the_order_of_the_settings() -> None:
    written = tomllib.loads(EXAMPLE.read_text())
    known = msgspec.to_builtins(settings.Settings())
    assert [(s, list(keys)) for s, keys in written.items()] == [
        (s, list(keys)) for s, keys in known.items()
    ]


def test_the_example_explains_every_group_of_keys() -> None:
    """A key, or the keys of one kind that stand together, comes right after a comment."""
    lines = EXAMPLE.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"\w+ = ", line):
            assert before.startswith("# ") or re.match(r"\w+ = ", before), line


def test_every_key_is_read_somewhere() -> None:
    """A key that changes nothing is worse than none."""
    folders = ("agents", "alerts", "dashboards", "pipeline")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(p.read_text() for p in [*files, ROOT / "megawatch.py"] if p.stem != "settings")
    code += "\n".join(
        line for line in (ROOT / "pipeline/settings.py").read_text().splitlines() if "self." in line
    )
    unread = [
        f"[{section}] {key}"
        for section, keys in msgspec.to_builtins(settings.Settings()).items()
        for key in keys
        if not re.search(rf"[.\"']{key}\b|\}}_{key.partition('_')[2]}\b", code)
    ]
    assert not unread
