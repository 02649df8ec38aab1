"""The site that the simulator plays: where nodes stand, who leases them, what runs.

Chance comes from random.Random over (seed, what, which), so that a job or a lease is the same
however often the simulator was asked in between.
"""

import hashlib
import heapq
import math
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from msgspec.structs import replace

from agents.faults import Scope
from pipeline.records import Allocation, Gpu, Inventory, Record
from pipeline.wire import LAYOUT

SOURCE: Final = "simulator"
DRIVER: Final = "570.133.20"
FIRST_SERIAL: Final = 1_650_000_000_000
_LAYOUT: Final = LAYOUT.describe()

TENANTS: Final = tuple(
    f"lab-{name}"
    for name in (
        "aurora", "borealis", "cygnus", "draco", "eridanus", "fornax", "gemini", "hydra", "indus",
        "lyra", "mensa", "norma", "orion", "pavo", "scutum", "vela",
    )
)  # fmt: skip
SLOT_NODES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLOT_ODDS: Final = (4, 6, 8, 8, 6, 4, 3, 2, 1)
"""How many nodes a job spans, and how often."""
MAX_TURNS: Final = 16  # changes of a slot, on average, in one call of advance
SERVING_NODES: Final = 8
SERVING_ODDS: Final = 0.3
IDLE_AT_FIRST: Final = 0.15
DAY_S: Final = 86_400

NO_JOB, TRAINS, SERVES = range(3)
DURATION_S: Final = (
    (90, 4, 20, 900),  # between two jobs
    (2700, 8, 300, DAY_S),
    (6 * 3600, 4, 3600, 2 * DAY_S),
)
"""How long a slot stays so, by what it runs: median, spread (a factor), least, most."""

SHAPES: Final = ((256, 4, 4, 2), (4096, 4, 8, 4), (1 << 31, 8, 16, 8))
"""Sites of up to so many nodes have so many nodes a rack, racks a row, rows a hall."""
RACKS_PER_PDU: Final = 2

VOLATILE: Final = ("ecc_corrected_volatile", "ecc_uncorrected_volatile")


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of GPU."""

    name: str
    memory_mib: int
    reserved_mib: int
    clock_mem_mhz: int
    vbios: str


class Place(NamedTuple):
    """Where a node stands."""

    node: str
    hall: str
    row: str
    rack: str
    pdu: str


def shape(nodes: int) -> tuple[int, int, int]:
    """Nodes a rack, racks a row and rows a hall of a site of so many nodes."""
    return next(entry[1:] for entry in SHAPES if nodes <= entry[0])


def hall_of(node: int, nodes: int) -> int:
    """The number of the hall in which a node stands, from 0."""
    return node // math.prod(shape(nodes))


def place(node: int, nodes: int) -> Place:
    """Where the node of that number stands in a site of so many."""
    per_rack, racks, rows = shape(nodes)
    in_hall, in_rack = divmod(node % (per_rack * racks * rows), per_rack)
    hall = f"h{hall_of(node, nodes) + 1:02d}"
    rack = f"{hall}-r{in_hall + 1:02d}"
    row = f"{hall}-row{in_hall // racks + 1}"
    return Place(
        f"{rack}-n{in_rack + 1:02d}",
        hall,
        row,
        rack,
        f"{hall}-pdu{in_hall // RACKS_PER_PDU + 1:02d}",
    )


def around(scope: Scope, node: int, nodes: int) -> range:
    """Numbers of the nodes of what a node stands in, of a site of so many; by itself, it alone."""
    per_rack, racks, rows = shape(nodes)
    width = {
        "rack": per_rack, "pdu": RACKS_PER_PDU * per_rack, "hall": per_rack * racks * rows,
        "site": nodes,
    }.get(scope, 1)  # fmt: skip
    first = node // width * width
    return range(first, min(first + width, nodes))


def gpu_uuid(site: str, seed: int, position: int) -> str:
    """The UUID of the GPU at a position of the reading."""
    digest = hashlib.sha256(f"{site}/{seed}/{position}".encode()).digest()
    return f"GPU-{uuid.UUID(bytes=digest[:16])}"


def describe(
    site: str, seed: int, node: int, nodes: int, from_ms: int, models: Sequence[Model]
) -> Inventory:
    """A node of a site with the GPUs in it, one per model given."""
    at = place(node, nodes)
    first = node * len(models)
    gpus = tuple(
        Gpu(
            index=index, uuid=gpu_uuid(site, seed, first + index), model=model.name,
            serial=str(FIRST_SERIAL + first + index), vbios=model.vbios,
            pci_bus_id=f"00000000:{index * 24 + 27:02X}:00.0", memory_mib=model.memory_mib,
        )
        for index, model in enumerate(models)
    )  # fmt: skip
    return Inventory(
        site=site, node=at.node, from_ms=from_ms, hall=at.hall, row=at.row, rack=at.rack,
        pdu=at.pdu, gpus=gpus, layout=_LAYOUT, source=SOURCE, driver_version=DRIVER,
    )  # fmt: skip


class Slot(NamedTuple):
    """Nodes of one tenant that run one job at a time."""

    tenant: str
    first: int
    nodes: int
    serves: bool


def lease(nodes: int, seed: int) -> list[Slot]:
    """Cut a site into tenants, and those into slots; the last nodes stay with nobody."""
    chance = random.Random(f"{seed}/lease")  # noqa: S311 (no secret)
    few = nodes < 4
    tenants = nodes if few else min(len(TENANTS), nodes.bit_length())
    leased = nodes if few else nodes - max(1, nodes // 32)
    weights = [1 / (rank + 1) ** 0.7 for rank in range(tenants)]
    spare = leased - tenants
    shares = [1 + int(spare * weight / sum(weights)) for weight in weights]
    shares[0] += leased - sum(shares)
    slots: list[Slot] = []
    first = 0
    for tenant, share in zip(TENANTS[:tenants], shares, strict=True):
        end = first + share
        while first < end:
            count = min(chance.choices(SLOT_NODES, SLOT_ODDS)[0], end - first)
            small = count <= SERVING_NODES and chance.random() < SERVING_ODDS
            # The first two slots show both kinds of work on the smallest site that has two.
            slots.append(Slot(tenant, first, count, len(slots) == 1 or (len(slots) > 1 and small)))
            first += count
    return slots


class Job(NamedTuple):
    """What runs in a slot, as physics.Work has it; times in seconds since 1970, or of a cycle."""

    kind: int
    since_s: float
    step_s: float
    compute_s: float
    save_every_s: float
    save_s: float
    intensity: float
    phase: float


def draw_job(kind: int, since_s: float, chance: random.Random) -> Job:
    """A job of a kind as users write them; saving takes whole seconds, as starts are."""
    step_s = chance.uniform(1, 10)
    return Job(
        kind=kind,
        since_s=since_s,
        step_s=step_s,
        compute_s=step_s * chance.uniform(0.6, 0.85),
        save_every_s=chance.randint(300, 1200),
        save_s=chance.randint(10, 30),
        intensity=chance.uniform(0.94, 1.1),
        phase=math.pi * chance.uniform(-0.6, -0.4),  # busiest in the evening, UTC
    )


def stray_job(seed: int, start_ms: int) -> Job:
    """What runs where nobody was given anything."""
    return draw_job(TRAINS, start_ms / 1000, random.Random(f"{seed}/stray"))  # noqa: S311


class Schedule:
    """Which job runs in which slot since when; `changed` names slots that nobody has looked at."""

    def __init__(self, site: str, nodes: int, seed: int, start_ms: int) -> None:
        self.slots = lease(nodes, seed)
        self.jobs = [draw_job(NO_JOB, 0, random.Random(0))] * len(self.slots)  # noqa: S311
        self.changed: set[int] = set()
        self._site, self._nodes, self._seed = site, nodes, seed
        chance = random.Random(f"{seed}/first")  # noqa: S311
        late = [chance.random() < IDLE_AT_FIRST for _ in self.slots]
        self._turn = [int(number > 0 and idle) for number, idle in enumerate(late)]
        self._open: list[list[Allocation]] = [[] for _ in self.slots]
        self._due = [(start_ms, number) for number in range(len(self.slots))]  # a heap

    def around(self, scope: Scope, node: int) -> range:
        """Numbers of the nodes of what a node stands in, or of the job that it runs."""
        for slot in self.slots if scope == "job" else ():
            if slot.first <= node < slot.first + slot.nodes:
                return range(slot.first, slot.first + slot.nodes)
        return around(scope, node, self._nodes)

    def advance(self, now_ms: int) -> list[Record]:
        """End and start what is due, in order of time; the allocations that say so."""
        out: list[Record] = []
        # What a very long gap leaves over is caught up at the next tick.
        for _ in range(MAX_TURNS * len(self.slots)):
            at_ms, number = self._due[0]
            if at_ms > now_ms:
                break
            lasts_s, records = self._next(number, at_ms, now_ms)
            heapq.heapreplace(self._due, (at_ms + 1000 * lasts_s, number))
            out += records
        return out

    def _next(self, number: int, at_ms: int, now_ms: int) -> tuple[int, list[Record]]:
        slot, turn, before = self.slots[number], self._turn[number], self._open[number]
        chance = random.Random(f"{self._seed}/{number}/{turn}")  # noqa: S311
        kind = NO_JOB if turn % 2 else SERVES if slot.serves else TRAINS
        age_s = 0 if before else chance.randint(60, 3600)
        self.jobs[number] = draw_job(kind, at_ms / 1000 - age_s, chance)
        self.changed.add(number)
        self._turn[number] = turn + 1
        work = "serve" if slot.serves else "train"
        job = f"{work}-{number + len(self.slots) * (turn // 2) + 1:04d}"
        self._open[number] = [
            Allocation(
                site=self._site, source=SOURCE, tenant=slot.tenant, node=place(n, self._nodes).node,
                workload="" if kind == NO_JOB else job, from_ms=at_ms, asserted_at_ms=now_ms,
            )
            for n in range(slot.first, slot.first + slot.nodes)
        ]  # fmt: skip
        ended = [replace(a, until_ms=at_ms, asserted_at_ms=now_ms) for a in before]
        median_s, spread, least_s, most_s = DURATION_S[kind]
        lasts_s = median_s * spread ** chance.uniform(-1, 1)
        return int(min(max(lasts_s, least_s), most_s)), [*ended, *self._open[number]]
