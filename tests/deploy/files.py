"""The deployment files as data, for the tests beside this one."""

from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"


def compose() -> dict[str, Any]:
    """compose.yaml, anchors resolved."""
    return mapping(DEPLOY / "compose.yaml")


def mapping(path: Path) -> dict[str, Any]:
    """A YAML file whose one document is a mapping."""
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict), path
    return loaded


def mappings(path: Path) -> list[dict[str, Any]]:
    """A YAML file of several documents."""
    return list(yaml.safe_load_all(path.read_text()))
