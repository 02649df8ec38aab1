"""What the agent itself costs its node: processor time and memory, its children included."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_MAX_PROCESSES: Final = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds since the start, and proportional set size; None where unknown."""

    cpu_s: float
    pss_bytes: int | None


def measure(pid: int | None = None, proc: Path = _PROC) -> Cost:
    """The cost of a process (this one by default) and of its living descendants."""
    family = _family(os.getpid() if pid is None else pid, proc)
    sizes = [size for member in family if (size := _pss_bytes(member, proc)) is not None]
    return Cost(sum(_cpu_s(member, proc) for member in family), sum(sizes) if sizes else None)


def _family(pid: int, proc: Path) -> list[int]:
    family = [pid]
    for member in family:
        for children in (proc / str(member) / "task").glob("*/children"):
            room = _MAX_PROCESSES - len(family)
            family += [int(child) for child in _read(children).split()][:room]
    return family


def _cpu_s(pid: int, proc: Path) -> float:
    # The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field,
    # cutime and cstime, of children that have ended, the next two.
    fields = _read(proc / str(pid) / "stat").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def _pss_bytes(pid: int, proc: Path) -> int | None:
    for line in _read(proc / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    """The text of a file under /proc; empty if its process is gone or not ours to see."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
