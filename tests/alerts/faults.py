"""Three racks of nine nodes of eight GPUs in a store, and a table that says which are broken."""

from collections.abc import Iterable

from alerts.rule import Rule, Signal
from pipeline.records import id64
from pipeline.store import Store

FAULTS = Signal(
    name="faults",
    clock="wall",
    labels={"site": "site", "hall": "hall", "rack": "rack", "node": "node"},
    source="faults",
    present="count()",
    every_s=1,
)
SILENT = Rule(
    name="NodeSilent", question="Is a node silent?", severity="page", scope="node", signal=FAULTS,
    value="max(value)", above=0.0, unit="GPUs", summary="{node} is silent",
)  # fmt: skip


def fill(store: Store, now_ms: int) -> None:
    """The inventory, and the newest tick of every GPU: 700 W, two tenants to a rack."""
    store.command(
        "CREATE TABLE faults (site String, hall String, rack String, node String, value Float64)"
        " ENGINE = MergeTree ORDER BY node"
    )
    store.command(
        "INSERT INTO inventory (site, hall, row, rack, pdu, node, gpu_index, uuid, site_id,"
        " gpu_id, node_id, from_ts) SELECT 's', 'h1', concat('row', rack), rack, '',"
        " concat(rack, '-n', toString(n)) AS node, i, concat('GPU-', node, '-', toString(i)) AS uuid,"
        f" {id64('s')}, cityHash64(uuid), cityHash64(node), toDateTime64(1780000000, 3)"
        " FROM (SELECT concat('r', toString(intDiv(number, 72) + 1)) AS rack,"
        " intDiv(number, 8) % 9 + 1 AS n, number % 8 AS i FROM numbers(216))"
    )
    store.command(
        "INSERT INTO allocations (site, source, tenant, node, site_id, tenant_id, from_ts)"
        f" VALUES ('s', 'import', 'lab-a', 'x', {id64('s')}, 11, 0),"
        f" ('s', 'import', 'lab-b', 'x', {id64('s')}, 12, 0)"
    )
    store.command(
        "INSERT INTO gpu_latest (gpu, ts, site, tenant, power_w) SELECT gpu_id,"
        f" toDateTime64({now_ms / 1000}, 3), site_id, if(gpu_index < 2, 12, 11), 700 FROM inventory"
    )


def break_(store: Store, nodes: Iterable[str]) -> None:
    """Nodes like r2-n1 are silent from now on."""
    rows = ", ".join(f"('s', 'h1', '{node[:2]}', '{node}', 8)" for node in nodes)
    store.command(f"INSERT INTO faults VALUES {rows}")
