"""Pieces of SQL and PromQL that rules share: names for ids, and where a GPU stands."""

from collections.abc import Iterable
from typing import Final

PLACE: Final = ("hall", "row", "rack", "pdu", "node")


def named(name: str, number: str) -> str:
    """A name that a join may not have found: then the id, as tables of people show it."""
    return f"if({name} = '', lower(hex({number})), {name})"


def placed(odd: str) -> str:
    """Rows of the SQL `odd`, which has of_gpu, as `odd` beside `w`: place and uuid of that GPU.

    The few odd ones stand on the right, so that the inventory streams past them.
    """
    columns = ", ".join((*PLACE, "uuid"))
    return (
        f"(SELECT gpu_id, {columns} FROM inventory FINAL WHERE until_ts IS NULL OR until_ts > $at)"  # noqa: S608
        f" AS w ANY RIGHT JOIN ({odd}) AS odd ON w.gpu_id = odd.of_gpu"
    )


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
