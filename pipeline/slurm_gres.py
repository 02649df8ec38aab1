"""How Slurm writes lists of nodes, and which parts of which GPUs of a node are a job's."""

import functools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from pipeline.errors import Reject

MAX_NODES: Final = 100_000
"""More in one list of hosts are a mistake, or somebody's joke."""
MAX_INDEX: Final = 0xFFFF
WHOLE_PPM: Final = 1_000_000
MIG: Final = (
    "Slurm counts MIG instances there, not GPUs: install deploy/slurm's prolog and epilog on the"
    " node, whose agent then tells what its jobs hold"
)
"""Why IDX names no GPU where there are MIG instances, and what to do about it.

Slurm 22.05 was watched: IDX and SLURM_JOB_GPUS number whole GPUs and instances in one row, in the
order of gres.conf's records sorted by type, and leave out the GPUs that are divided. With GPU 0 cut
in two, IDX 1 of type h100 was /dev/nvidia2. The controller tells nobody the order, the node's
prolog has the instances' UUIDs in CUDA_VISIBLE_DEVICES.
"""


class Part(NamedTuple):
    """GPUs of a node by Slurm's index, in order, and the millionths of each of them.

    0: an equal part of what others leave, as pipeline/ledger/holdings.py has it.
    """

    gpus: tuple[int, ...]
    share_ppm: int = 0


# -- nodes ---------------------------------------------------------------------------------------

_BRACKET: Final = re.compile(r"\[([0-9,\-]*)\]")
_HOST: Final = re.compile(r"[A-Za-z0-9._\-]{1,255}")
_NUMBERS: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def hosts(text: str) -> list[str]:
    """The names in Slurm's short form, `n[01-03,7],x9`. Raises Reject."""
    out: list[str] = []
    for part in _split(text):
        names = [""]
        for at, piece in enumerate(_BRACKET.split(part)):
            ends = _numbers(piece) if at % 2 else [piece]
            if len(names) * len(ends) + len(out) > MAX_NODES:
                raise Reject(f"{text[:40]!r} is more than {MAX_NODES} nodes")
            names = [name + end for name in names for end in ends]
        out += names
    for name in out:
        if not _HOST.fullmatch(name):
            raise Reject(f"{text[:40]!r} is no list of nodes")
    return out


def _numbers(text: str) -> list[str]:
    """The numbers of `01-03,7`, as wide as they are written. Raises Reject."""
    out: list[str] = []
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or last < first or last - first + len(out) >= MAX_NODES:
            raise Reject(f"{text[:40]!r} is no list of numbers")
        out += [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    return out


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets and parentheses."""
    depth = start = 0
    for at, letter in enumerate(text):
        depth += (letter in "[(") - (letter in ")]")
        if letter == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


# -- GPUs ----------------------------------------------------------------------------------------

_GRES: Final = re.compile(
    r"(?:gres[:/])?(?P<kind>\w+)(?::(?P<type>[^:()]*[^:()\d][^:()]*))?(?::(?P<count>\d{1,6}))?"
    r"(?:\((?P<note>[^()]*)\))?"
)
_MIG: Final = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)
_KINDS: Final = frozenset({"gpu", "mps", "shard"})
_OF_EACH: Final = re.compile(r"\d{1,9}/\d{1,9}(?:,\d{1,9}/\d{1,9})*")


@functools.lru_cache(4096)
def gpu_parts(gres: str) -> tuple[Part, ...]:
    """The GPUs of `gpu:h100:2(IDX:0-1)`, `shard:3(IDX:0)` or `shard:3(0/4,3/4)`, by share.

    None for other things. Raises Reject.
    """
    shares: dict[int, int] = {}
    for text in _split(gres.strip()):
        if text in ("", "(null)", "N/A"):
            continue
        match = _GRES.fullmatch(text)
        if match is None:
            raise Reject(f"{text[:60]!r} is no generic resource")
        if match["kind"] not in _KINDS or match["count"] == "0":
            continue
        for gpu, share in _told(text, match).items():
            if shares.setdefault(gpu, share) != share:
                raise Reject(f"{text[:60]!r} tells of GPU {gpu} a second time, differently")
    by_share: dict[int, list[int]] = {}
    for gpu, share in sorted(shares.items()):
        by_share.setdefault(share, []).append(gpu)
    return tuple(Part(tuple(gpus), share) for share, gpus in sorted(by_share.items()))


def _told(text: str, match: re.Match[str]) -> dict[int, int]:
    """Share by GPU. Raises Reject."""
    if _MIG.search(match["type"] or ""):
        raise Reject(f"{text[:60]!r}: {MIG}")
    note, count = match["note"] or "", int(match["count"] or 0)
    is_shared = match["kind"] != "gpu"
    if is_shared and _OF_EACH.fullmatch(note):
        return _of_each(text, note, count)
    if not note.startswith("IDX:"):
        raise Reject(f"{text[:60]!r} does not tell which GPUs")
    # Slurm 22.05 does not say of how many shards (or of how much MPS) a job has so many: it may
    # differ from GPU to GPU, and the node's own total does not tell. IDX is the GPU's all the same.
    indices = [int(number) for number in _numbers(note.removeprefix("IDX:"))]
    if max(indices) > MAX_INDEX:
        raise Reject(f"{text[:60]!r} has an index beyond {MAX_INDEX}")
    if count and (count < len(indices) or (count > len(indices) and not is_shared)):
        raise Reject(f"{text[:60]!r} says {count} and names {len(indices)}")
    return dict.fromkeys(indices, 0)


def _of_each(text: str, note: str, count: int) -> dict[int, int]:
    """Of `0/4,3/4`, taken and configured of every GPU of the node. Raises Reject.

    So write later versions; none was at hand, their source was read. A part is rounded up: that the
    parts of a full GPU exceed it by a few millionths is mended, what they lack would be nobody's.
    """
    pairs = [tuple(map(int, pair.split("/"))) for pair in note.split(",")]
    if len(pairs) > MAX_INDEX + 1 or any(taken > total for taken, total in pairs):
        raise Reject(f"{text[:60]!r} takes more than there is")
    taken_in_all = sum(taken for taken, _ in pairs)
    if count and count != taken_in_all:
        raise Reject(f"{text[:60]!r} says {count} and names {taken_in_all}")
    return {
        gpu: -(-taken * WHOLE_PPM // total) for gpu, (taken, total) in enumerate(pairs) if taken
    }
