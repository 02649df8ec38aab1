"""The Dockerfiles copy what is there, run as nobody in particular, and pin their base."""

import fnmatch
import re
from pathlib import Path

import pytest

from pipeline import arguments as arguments_of
from tests.deploy.files import DEPLOY, ROOT

DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a top-level entry, or all of it, out of the build."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith(("#", "**/")):
            pattern = line.removeprefix("!").split("/")[0]
            if fnmatch.fnmatch(name, pattern):
                verdict = not line.startswith("!")
    return verdict


def test_there_is_an_image_for_nodes_and_one_for_the_rest() -> None:
    assert [path.name for path in DOCKERFILES] == ["agent.Dockerfile", "pipeline.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_everything_copied_exists_and_is_sent_to_the_build(path: Path) -> None:
    copied = [rest.split()[:-1] for word, rest in instructions(path) if word == "COPY"]
    names = [n for group in copied if not group[0].startswith("--from") for n in group]
    assert {"pyproject.toml", "constraints.txt", "megawatch.py", "pipeline"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
        assert not ignored(name), name


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_base_is_pinned_and_the_user_is_not_root(path: Path) -> None:
    told = instructions(path)
    bases = [rest.split()[0] for word, rest in told if word == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim", base) for base in bases)
    assert [rest for word, rest in told if word == "USER"] == ["10001:10001"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_command_is_one_of_ours_and_the_extra_exists(path: Path) -> None:
    told = dict(instructions(path))
    assert told["ENTRYPOINT"] == '["megawatch"]'
    command = re.findall(r'"([^"]*)"', told["CMD"])
    arguments_of.parser().parse_args(command)
    installed = next(rest for word, rest in instructions(path) if "pip install" in rest)
    assert f"'.[{command[0]}]'" in installed
    assert "-c constraints.txt" in installed


def test_secrets_and_what_tools_leave_behind_stay_out_of_the_build() -> None:
    for name in (".git", ".venv", ".cache", "data", "tests", ".env"):
        assert ignored(name), name
