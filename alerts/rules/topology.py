"""Pieces of SQL and PromQL that rules share."""

from collections.abc import Iterable
from typing import Final

from alerts.rule import PLACE, Named

GPU: Final = {"site": "of_site", **dict.fromkeys(PLACE, "''"), "gpu": "of_gpu"}
GPU_NAMES: Final[dict[str, Named]] = {"site": "sites", "gpu": "gpus"}
"""Labels of a GPU; its place is filled in with its name."""


def masked(views: Iterable[tuple[str, Iterable[str]]], columns: Iterable[str]) -> str:
    """SQL of an array of tuples: a view's name, then the columns that tell its things apart.

    What is not among a view's columns is empty there, so that a rack's alert has no node.
    """
    wide = tuple(columns)
    rows = []
    for view, kept in views:
        names = set(kept)
        cells = ", ".join(name if name in names else "''" for name in wide)
        rows.append(f"('{view}', {cells})")
    return f"[{', '.join(rows)}]"


def by_gpu(expression: str) -> str:
    """A PromQL vector of dcgm-exporter's series with the labels that SQL gives."""
    node = f'label_replace({expression}, "node", "$1", "Hostname", "(.+)")'
    return f'label_replace({node}, "gpu", "$1", "UUID", "(.+)")'
