"""What crosses module borders besides samples: identities, intervals, events, readings.

These are small and rare, so they travel as JSON, one record a message; samples travel as columns
(pipeline/wire.py). A node is (site, hostname), a GPU is its UUID; both have a 64-bit id.
"""

import hashlib
from typing import Annotated, Final, Literal

import msgspec

UNALLOCATED: Final = 0
"""Tenant and workload id of a GPU that nobody holds."""
SHARED: Final = 1
"""Tenant or workload id of a GPU that several hold at once; the ledger divides it."""

# Bits of a sample's `flags`.
FLAG_HELD: Final = 1  # repeated at the edge from a source slower than 1 Hz
FLAG_NEGATIVE_POWER: Final = 2
FLAG_ABSURD_POWER: Final = 4
FLAG_CLOCK_SUSPECT: Final = 8  # the node's clock is more than 60 s off the broker's
FLAG_ABSURD_ENERGY: Final = 16
BAD_POWER: Final = FLAG_NEGATIVE_POWER | FLAG_ABSURD_POWER
"""Readings with one of these bits are kept, and left out of every sum."""

ENERGY_NONE: Final = 0
ENERGY_COUNTER: Final = 1
ENERGY_TRAPEZOID: Final = 2

# What fits its column; a record beyond it is rejected when it is read.
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800_000)]
"""Milliseconds since 1970, until 2100."""
Index = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Code = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Watts = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]

MeterKind = Literal["node", "rack", "pdu", "row", "hall", "site"]


def id64(scope: str, key: str = "") -> int:
    """The 64-bit id of a natural key within a scope (a site), never UNALLOCATED or SHARED.

    First 8 bytes, little-endian, of SHA-256 over scope, NUL, key. Among a million keys a collision
    has a chance of 3e-8; inventory refuses one loudly.
    """
    digest = hashlib.sha256(f"{scope}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") | 2  # keeps 0 and 1 free


class Gpu(msgspec.Struct, frozen=True):
    """One GPU as its node knows it; `index` is NVML's, which is not CUDA's."""

    index: Index
    uuid: str
    model: str = ""
    serial: str = ""
    pci_bus_id: str = ""
    vbios: str = ""
    memory_mib: Count = 0


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """A node and its GPUs from `from_ms` on: the whole node, so that what is missing is gone.

    `until_ms` closes the interval; None is until further notice. `layout` is the wire layout that
    the node's messages use, see pipeline/wire.py.
    """

    site: str
    node: str
    from_ms: TimeMs
    until_ms: TimeMs | None = None
    hall: str = ""
    row: str = ""
    rack: str = ""
    pdu: str = ""
    gpus: tuple[Gpu, ...] = ()
    layout: str = ""
    source: str = ""
    agent_version: str = ""
    driver_version: str = ""

    @property
    def node_id(self) -> int:
        """The id that messages of this node carry."""
        return id64(self.site, self.node)


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody holds GPUs of a node for a while, says `source` at `asserted_at_ms`.

    `gpus` are NVML indices; empty means the whole node. `share_ppm` is the part of each of them that
    is held, in millionths; 0 is an equal part of what others leave. Append-only: a correction is a
    new record with the same source, tenant, workload, node, gpus and from_ms.
    """

    site: str
    source: str
    tenant: str
    node: str
    from_ms: TimeMs
    until_ms: TimeMs | None = None
    workload: str = ""
    account: str = ""
    gpus: tuple[Index, ...] = ()
    share_ppm: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    asserted_at_ms: TimeMs = 0


class MeterReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a power meter said; for a node the meter is called as its host."""

    site: str
    meter: str
    kind: MeterKind
    ts_ms: TimeMs
    watts: Watts


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened to a GPU or an agent: an XID, a lost GPU, a driver reload, a dropped span.

    `code` is the XID for kind "xid"; `count` how many things a drop concerns.
    """

    site: str
    node: str
    ts_ms: TimeMs
    kind: str
    uuid: str = ""
    code: Code = 0
    count: Count = 1
    detail: str = ""


Record = Inventory | Allocation | MeterReading | Event
