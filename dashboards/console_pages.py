"""The generated dashboards as the console looks things up in them: by uid, then by panel."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import Refuse

FOLDER: Final = Path(__file__).with_name("generated")


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a dashboard: of a panel, a variable or an annotation."""

    name: str
    """The panel's title, the variable's or the annotation's name."""
    sql: str
    color: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        """The store would refuse it too; a connection that had to is of no use any more."""
        if not self.sql.lstrip().upper().startswith(("SELECT", "WITH")):
            raise Refuse(f"the query of {self.name!r} is no SELECT")


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A generated file, and the queries that stand in it."""

    uid: str
    title: str
    description: str
    text: bytes
    """The file, byte for byte."""
    panels: Mapping[int, Query]
    variables: Sequence[Query]
    annotations: Sequence[Query]


def read(folder: Path, order: Sequence[str] = ()) -> dict[str, Dashboard]:
    """Every dashboard of a folder by uid: first those of `order`, then the rest by title."""
    found = [_dashboard(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise Refuse(f"no dashboards in {folder}: the installation is incomplete")
    places = {uid: number for number, uid in enumerate(order)}
    found.sort(key=lambda d: (places.get(d.uid, len(places)), d.title))
    return {dashboard.uid: dashboard for dashboard in found}


def _dashboard(text: bytes) -> Dashboard:
    tree: dict[str, Any] = json.loads(text)
    return Dashboard(
        uid=tree["uid"],
        title=tree["title"],
        description=tree["description"],
        text=text,
        panels={
            panel["id"]: Query(panel["title"], panel["targets"][0]["rawSql"])
            for panel in tree["panels"]
            if panel.get("targets")
        },
        variables=[
            Query(one["name"], one["query"], label=one["label"])
            for one in tree["templating"]["list"]
            if one["type"] == "query"
        ],
        annotations=[
            Query(one["name"], one["target"]["rawSql"], color=one["iconColor"])
            for one in tree["annotations"]["list"]
        ],
    )
