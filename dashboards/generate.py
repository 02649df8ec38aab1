"""`megawatch dashboards generate`: every page as Grafana JSON, committed and checked for drift."""

import json
from pathlib import Path
from typing import Final

from dashboards.grafana import rendered
from dashboards.pages import PAGES

FOLDER: Final = Path(__file__).with_name("generated")


def documents() -> dict[str, str]:
    """File name to text, of all pages."""
    return {
        f"{page.uid}.json": json.dumps(rendered(page), indent=2, sort_keys=True) + "\n"
        for page in PAGES
    }


def write(folder: Path = FOLDER) -> list[Path]:
    """Write what differs and remove what is no page any more; returns the files that changed."""
    wanted = documents()
    changed = []
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    for path in sorted(folder.glob("*.json")):
        if path.name not in wanted:
            path.unlink()
            changed.append(path)
    return changed


def drift(folder: Path = FOLDER) -> list[str]:
    """Names of files that are not what the pages say."""
    wanted = documents()
    there = {path.name: path.read_text() for path in folder.glob("*.json")}
    return sorted(n for n in {*wanted, *there} if wanted.get(n) != there.get(n))
