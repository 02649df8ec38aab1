"""Tokens of inserts that a kill cut short: what the embedded engine remembers wrongly, mended.

A MergeTree table writes an insert's token into its deduplication log first and renames the part
into place afterwards. A process killed in between leaves a token without its part, and the same
insert, repeated, would be taken for done: the rows would be missing for good. Before the engine
opens its folder, such tokens are taken out of the log, in the log's own form. (Replicated tables
commit both in Keeper at once.)
"""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_log: Final = logging.getLogger("megawatch.store")

_ADDED: Final = "1"
_DROPPED: Final = "2"


@contextlib.contextmanager
def unopened(folder: Path) -> Iterator[bool]:
    """Whether no process, this one included, has the engine's folder open; none can meanwhile."""
    try:
        lock = (folder / "status").open("ab")
    except FileNotFoundError:
        yield True  # a store that never was
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def mend(folder: Path) -> int:
    """Take back every token whose part is not there; returns how many.

    `folder` is the engine's own. Nothing is done while a process has it open.
    """
    with unopened(folder) as alone:
        logs = folder.glob("store/*/*/deduplication_logs") if alone else ()
        return sum(map(_mend_table, logs))


def _mend_table(logs: Path) -> int:
    files = sorted(logs.glob("deduplication_log_*.txt"), key=lambda f: int(f.stem.split("_")[-1]))
    remembered: dict[str, str] = {}
    for operation, part, token in _lines(files):
        if operation == _ADDED:
            remembered.setdefault(token, part)
        elif operation == _DROPPED:
            remembered.pop(token, None)
    parts = [blocks for entry in logs.parent.iterdir() if (blocks := _blocks(entry.name))]
    lost = [(part, token) for token, part in remembered.items() if not _is_within(part, parts)]
    if lost:
        torn = not files[-1].read_bytes().endswith(b"\n")
        with files[-1].open("a", errors="surrogateescape") as log:
            log.write("\n" * torn)
            log.writelines(f"{_DROPPED}\t{part}\t{token}\n" for part, token in lost)
        _log.info("%s: %d tokens without parts taken back", logs.parent.name, len(lost))
    return len(lost)


def _lines(files: list[Path]) -> Iterator[list[str]]:
    """Operation, part and token of every whole line."""
    for file in files:
        for line in file.read_text(errors="surrogateescape").splitlines():
            if line.count("\t") == 2:
                yield line.split("\t")


def _blocks(part: str) -> tuple[str, int, int] | None:
    """Partition, first and last block of a part's name; None for any other name."""
    fields = part.split("_")
    if len(fields) not in (4, 5) or not all(f.isdecimal() for f in fields[1:]):
        return None  # 5: a mutated part
    return fields[0], int(fields[1]), int(fields[2])


def _is_within(part: str, parts: list[tuple[str, int, int]]) -> bool:
    """Whether a part is there, itself or merged into another."""
    blocks = _blocks(part)
    if blocks is None:
        return True  # nothing that we know how to read: left alone
    partition, first, last = blocks
    return any(p == partition and a <= first and last <= b for p, a, b in parts)
