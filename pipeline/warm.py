"""The directory as the store remembers it: what a pipeline knows before its first message."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from pipeline.directory import HORIZON_MS, Directory
from pipeline.ledger import contract_store
from pipeline.records import Allocation, Gpu, Inventory
from pipeline.settings import Ledger
from pipeline.store import Store
from pipeline.wire import parse_layout

_GPU: Final = ("gpu_index", "uuid", "model", "serial", "pci_bus_id", "vbios", "memory_mib")
_NODE: Final = (
    "site", "node", "hall", "row", "rack", "pdu", "source", "layout", "agent_version",
    "driver_version",
)  # fmt: skip


def warmed(store: Store, now_ms: int, precedence: Sequence[str] = Ledger().precedence) -> Directory:
    """A directory with the inventory and contracts in force, and the allocations of raw rows."""
    directory = Directory(precedence)
    directory.lease(contract_store.read(store))
    # Also those that no node speaks any more: a backlog may still be in them.
    for (text,) in store.query("SELECT DISTINCT layout FROM inventory WHERE layout != ''").rows:
        layout = parse_layout(text)
        directory.layouts[layout.hash] = layout
    found = store.query(
        f"SELECT {', '.join(_NODE)}, toUnixTimestamp64Milli(from_ts) AS from_ms,"  # noqa: S608
        f" {', '.join(_GPU)} FROM inventory FINAL WHERE until_ts IS NULL"
        " ORDER BY site, node, from_ms, gpu_index"
    ).dicts()
    for _, on_node in groupby(found, key=lambda row: (row["site"], row["node"])):
        members: tuple[Gpu, ...] = ()
        # As it was told: each GPU's stay keeps its own beginning.
        for from_ms, begun in groupby(on_node, key=lambda row: row["from_ms"]):
            rows = list(begun)
            members += tuple(Gpu(*(row[name] for name in _GPU)) for row in rows)
            node = {name: rows[0][name] for name in _NODE}
            directory.learn(Inventory(**node, from_ms=from_ms, gpus=members))
    for claim in allocations(store, now_ms - HORIZON_MS):
        directory.claim(claim)
    return directory


def allocations(store: Store, since_ms: int, asserted_ms: int = 0) -> list[Allocation]:
    """The newest assertion of every claim that lasts beyond a time, of all sources.

    Only of claims that were asserted at `asserted_ms` or later.
    """
    found = store.query(
        "SELECT site, source, tenant, workload, any(account), node, gpus,"
        " toUnixTimestamp64Milli(from_ts),"
        # In a tuple, since argMax passes over a bare NULL, which here means: until further notice.
        " toUnixTimestamp64Milli(argMax(tuple(until_ts), asserted_at).1 AS until),"
        " toUnixTimestamp64Milli(max(asserted_at)), argMax(share_ppm, asserted_at)"
        " FROM allocations WHERE asserted_at >= fromUnixTimestamp64Milli({asserted:Int64}, 'UTC')"
        " GROUP BY site, source, tenant, workload, node, gpus, from_ts"
        " HAVING until IS NULL OR until > fromUnixTimestamp64Milli({since:Int64}, 'UTC')",
        {"since": since_ms, "asserted": asserted_ms},
    ).rows
    return [
        Allocation(
            site=site, source=source, tenant=tenant, workload=workload, account=account,
            node=node, gpus=tuple(gpus), from_ms=from_ms, until_ms=until_ms,
            asserted_at_ms=asserted, share_ppm=share,
        )
        for site, source, tenant, workload, account, node, gpus, from_ms, until_ms, asserted, share
        in found
    ]  # fmt: skip
