"""What the pipeline knows of the site: who is where, who holds what, which layouts are spoken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pipeline.errors import Reject
from pipeline.holders import FOREVER_MS, NOBODY, Held, Holders, stamps
from pipeline.ledger.contracts import Contract, Place, leases
from pipeline.ledger.holdings import LEASE, Claim, rank
from pipeline.records import UNALLOCATED, Allocation, Gpu, Inventory, id64
from pipeline.settings import Ledger
from pipeline.wire import LAYOUT, Layout, parse_layout

HORIZON_MS = 8 * 86_400_000
"""Intervals that ended longer ago than raw rows live are not stamped any more."""


class Stay(NamedTuple):
    """A GPU is on a node since the inventory that first said so."""

    since: Inventory
    gpu: Gpu


@dataclass(slots=True)
class Directory:
    """Built from inventory and allocations as they arrive, and from the store at start.

    precedence: whose word counts when sources of allocations disagree, the first most.
    """

    precedence: Sequence[str] = Ledger().precedence
    layouts: dict[int, Layout] = field(default_factory=lambda: {LAYOUT.hash: LAYOUT})
    nodes: dict[int, Inventory] = field(default_factory=dict)
    _names: dict[int, tuple[str, str]] = field(default_factory=dict)
    _stays: dict[int, Stay] = field(default_factory=dict)
    _claims: dict[int, dict[tuple[object, ...], Allocation]] = field(default_factory=dict)
    _contracts: Sequence[Contract] = ()
    _tables: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    _touched: set[int] = field(default_factory=set)  # nodes whose table is out of date
    _holders: Holders = NOBODY

    def learn(self, inventory: Inventory) -> list[Inventory]:
        """Take note of a node; returns the intervals that change: what begins, and what ends.

        Raises Reject for two GPUs with one id.
        """
        node = inventory.node_id
        self._register(inventory)
        if inventory.layout:
            layout = parse_layout(inventory.layout)
            self.layouts[layout.hash] = layout
        before = self.nodes.get(node)
        if inventory.until_ms is not None:
            return [inventory]
        if before is not None and before.from_ms > inventory.from_ms:
            return []  # an older assertion that was late; the newer one stands
        changes: list[Inventory] = []
        here, begun = self._settle(inventory, changes)
        stayed = {gpu.uuid for gpu in here}
        for gpu in before.gpus if before is not None else ():
            if gpu.uuid not in stayed:
                changes += self._end(id64(inventory.site, gpu.uuid), inventory.from_ms)
        self.nodes[node] = replace(inventory, gpus=here)
        if begun:
            changes.append(replace(inventory, gpus=begun))
        if begun or before is None or before.gpus != here:
            self._touched.add(node)
        return changes

    def _settle(
        self, inventory: Inventory, changes: list[Inventory]
    ) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
        """A node's GPUs that are on it now, and those of them whose stay begins."""
        here, begun = [], []
        for gpu in inventory.gpus:
            key = id64(inventory.site, gpu.uuid)
            stay = self._stays.get(key)
            if stay is not None and stay.since.from_ms > inventory.from_ms:
                # It has been elsewhere since: this stay is over already.
                changes.append(replace(inventory, gpus=(gpu,), until_ms=stay.since.from_ms))
                continue
            here.append(gpu)
            if stay is None or stay.gpu != gpu or not _alike(stay.since, inventory):
                changes += self._end(key, inventory.from_ms)
                self._stays[key] = Stay(inventory, gpu)
                begun.append(gpu)
        return tuple(here), tuple(begun)

    def _end(self, key: int, at_ms: int) -> list[Inventory]:
        """End a GPU's stay, if it has one, wherever that is."""
        stay = self._stays.pop(key, None)
        if stay is None:
            return []
        node = self.nodes[stay.since.node_id]
        rest = tuple(gpu for gpu in node.gpus if gpu.uuid != stay.gpu.uuid)
        self.nodes[node.node_id] = replace(node, gpus=rest)
        self._touched.add(node.node_id)
        return [replace(stay.since, gpus=(stay.gpu,), until_ms=at_ms)]

    def _register(self, inventory: Inventory) -> None:
        for gpu in inventory.gpus:
            key, name = id64(inventory.site, gpu.uuid), (inventory.site, gpu.uuid)
            if self._names.setdefault(key, name) != name:
                raise Reject(
                    f"GPU {gpu.uuid} of {inventory.site} has the id {key:016x} of {self._names[key]}"
                )

    def claim(self, allocation: Allocation) -> None:
        """Take note of who holds GPUs; a later assertion of the same claim replaces it."""
        node = id64(allocation.site, allocation.node)
        key = (
            allocation.source, allocation.tenant, allocation.workload, allocation.gpus,
            allocation.from_ms,
        )  # fmt: skip
        claims = self._claims.setdefault(node, {})
        known = claims.get(key)
        if known == allocation:
            return
        if known is None or known.asserted_at_ms <= allocation.asserted_at_ms:
            claims[key] = allocation
            self._touched.add(node)

    def lease(self, contracts: Sequence[Contract]) -> None:
        """Take note of all contracts: a lease decides the tenant of everything under it."""
        if contracts != self._contracts:
            self._contracts = contracts
            self._touched.update(self.nodes)

    def claims(self, site: str, node: str) -> list[Allocation]:
        """What is asserted of a node, the newest assertion of each claim."""
        return list(self._claims.get(id64(site, node), {}).values())

    def forget_before(self, horizon_ms: int) -> None:
        """Drop claims that ended before the horizon."""
        for node, claims in self._claims.items():
            old = [k for k, a in claims.items() if (a.until_ms or FOREVER_MS) < horizon_ms]
            for key in old:
                del claims[key]
            if old:
                self._touched.add(node)

    def holders(self) -> Holders:
        """The index for stamping, as of now."""
        if self._touched:
            self._retable([self.nodes[node] for node in self._touched if node in self.nodes])
            self._touched.clear()
            tables = [t for t in self._tables.values() if len(t)]
            self._holders = Holders.of(np.concatenate(tables)) if tables else NOBODY
        return self._holders

    def expected_gpus(self) -> int:
        """GPUs in force by the inventory."""
        return sum(len(i.gpus) for i in self.nodes.values())

    def _retable(self, nodes: Sequence[Inventory]) -> None:
        leased: dict[int, list[Claim]] = {}
        for lease in leases(self._contracts, [p for node in nodes for p in self._places(node)]):
            claim = Claim(lease.from_ms, lease.until_ms, id64("", lease.tenant), 0, LEASE)
            leased.setdefault(lease.gpu, []).append(claim)
        # Thousands of GPUs are in the same hands: each distinct set of claims is worked out once.
        known: dict[tuple[Claim, ...], list[Held]] = {}
        for node in nodes:
            claimed = [
                (a.gpus, self._claim(a)) for a in self._claims.get(node.node_id, {}).values()
            ]
            table: list[tuple[int, ...]] = []
            for gpu in node.gpus:
                key = id64(node.site, gpu.uuid)
                running = [claim for gpus, claim in claimed if not gpus or gpu.index in gpus]
                claims = (*leased.get(key, ()), *running)
                if claims not in known:
                    known[claims] = stamps(claims)
                table += [(key, *held) for held in known[claims]]
            self._tables[node.node_id] = np.array(table, np.uint64).reshape(-1, 5)

    def _places(self, node: Inventory) -> list[Place]:
        """Where a node's GPUs are now, since when."""
        keys = [id64(node.site, gpu.uuid) for gpu in node.gpus]
        where = (node.site, node.hall, node.row, node.rack, node.node)
        return [
            Place(*where, gpu.index, key, self._stays[key].since.from_ms, None)
            for gpu, key in zip(node.gpus, keys, strict=True)
        ]

    def _claim(self, allocation: Allocation) -> Claim:
        return Claim(
            allocation.from_ms,
            FOREVER_MS if allocation.until_ms is None else allocation.until_ms,
            id64("", allocation.tenant) if allocation.tenant else UNALLOCATED,
            id64(allocation.site, allocation.workload) if allocation.workload else UNALLOCATED,
            rank(allocation.source, self.precedence),
            allocation.share_ppm,
        )


_ENTRY = ("site", "node", "hall", "row", "rack", "pdu", "layout", "agent_version", "driver_version")


def _alike(a: Inventory, b: Inventory) -> bool:
    """True if both say the same of a GPU, but for when."""
    return all(getattr(a, name) == getattr(b, name) for name in _ENTRY)
