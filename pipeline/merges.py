"""How the engine merges gpu_samples: while an hour is live, each of its rows once.

ClickHouse's selector of merges takes large parts in again and again while small ones come: by its
rules 1.8 passes over an hour of 220,000 GPUs, each as dear as the inserts. With a least number of
parts to a merge, and a bound on its bytes that holds one such merge but not what two became, a row
is merged once. The bound follows the size of fresh parts. Where these are small, a pass costs
little, and the selector's own rules leave fewer parts.
"""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Final

from pipeline.store import Store

TOGETHER: Final = 60
"""Fresh parts to a merge: merge_selector_base, below which the selector never lowers its most."""
LEAST_BYTES: Final = 1 << 20
"""A site whose fresh parts are smaller (some 50,000 GPUs) is left to the selector."""
_LEAST_PARTS: Final = 20
_LOOK_BACK_S: Final = 600
_FIT: Final = (1.1, 1.4, 1.8)
"""The bound as a multiple of such a merge: let it be, what it is set to, let it be."""
_THREADS: Final = "MergeMutate"
_NICE: Final = 10
_BOUND: Final = "max_bytes_to_merge_at_max_space_in_pool"
_LEAST: Final = "min_parts_to_merge_at_once"


def fit(store: Store) -> str:
    """Fit the bound to the parts that come; the statement that was run, if one was needed."""
    parts, fresh_bytes = store.query(
        "SELECT count(), avg(bytes_on_disk) FROM system.parts WHERE table = 'gpu_samples'"
        " AND database = currentDatabase() AND level = 0"
        " AND modification_time > now() - {back:UInt32}",
        {"back": _LOOK_BACK_S},
    ).rows[0]
    if parts < _LEAST_PARTS:
        return ""
    engine = store.query(
        "SELECT engine_full FROM system.tables"
        " WHERE database = currentDatabase() AND name = 'gpu_samples'"
    ).rows[0][0]
    found = re.search(rf"{_BOUND} = (\d+)", engine)
    change = _change(int(found[1]) if found else 0, fresh_bytes)
    if change:
        change = f"ALTER TABLE gpu_samples {change}"
        store.command(change)
    return change


def give_way() -> int:
    """Have the embedded engine's merges run where nothing else wants to; on how many threads.

    A merge of a minute's rows takes a core for as long: on a machine without one to spare, live
    rows would wait for it. (The engine's own setting for this does nothing in chDB 26.9.)
    """
    if sys.platform != "linux":
        return 0
    threads = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (task / "comm").read_text().strip() == _THREADS:
                thread = int(task.name)
                nice = max(_NICE, os.getpriority(os.PRIO_PROCESS, thread))
                os.setpriority(os.PRIO_PROCESS, thread, nice)
                threads += 1
    return threads


def _change(bound: int, fresh_bytes: float) -> str:
    """What is to be changed; a bound of 0 is none."""
    if fresh_bytes < (LEAST_BYTES / 2 if bound else LEAST_BYTES):
        return f"RESET SETTING {_LEAST}, {_BOUND}" if bound else ""
    low, right, high = (round(part * TOGETHER * fresh_bytes) for part in _FIT)
    if low <= bound <= high:
        return ""
    return f"MODIFY SETTING {_LEAST} = {TOGETHER}, {_BOUND} = {right}"
