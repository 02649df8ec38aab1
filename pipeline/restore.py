"""`megawatch restore`: an embedded store out of a backup."""

import shutil
import sys
from pathlib import Path

from pipeline.errors import Refuse, Retry
from pipeline.settings import ClickHouse
from pipeline.store import Store


def restore(source: Path, data: Path, settings: ClickHouse) -> int:
    """Fill the folder `data`, which has no store yet. Raises Refuse; nothing is left then."""
    if not source.exists():
        raise Refuse(f"there is no backup at {source}")
    if (data / "store").exists():
        raise Refuse(f"{data} holds a store already: restore into a new folder")
    store = Store(settings)
    try:
        store.restore(source)
        store.migrate()
    except Retry as error:
        store.close()
        shutil.rmtree(data / "store")
        raise Refuse(f"{source} cannot be restored: {error}") from error
    finally:
        store.close()
    print(f"restored {source} into {data}", file=sys.stderr)
    return 0
