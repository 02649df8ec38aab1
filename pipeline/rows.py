"""Records as rows of their tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from pipeline.records import Allocation, Event, Inventory, MeterReading, Record, id64

Row = dict[str, object]


def inventory_rows(record: Inventory, now_ms: int) -> list[Row]:
    """One row per GPU of the node."""
    place = {name: getattr(record, name) for name in ("site", "node", "hall", "row", "rack", "pdu")}
    return [
        place
        | {
            "gpu_index": gpu.index, "uuid": gpu.uuid, "model": gpu.model, "serial": gpu.serial,
            "pci_bus_id": gpu.pci_bus_id, "vbios": gpu.vbios, "memory_mib": gpu.memory_mib,
            "site_id": id64(record.site), "node_id": record.node_id,
            "gpu_id": id64(record.site, gpu.uuid),
            "from_ts": record.from_ms, "until_ts": record.until_ms, "source": record.source,
            "layout": record.layout, "agent_version": record.agent_version,
            "driver_version": record.driver_version, "asserted_at": now_ms,
        }
        for gpu in record.gpus
    ]  # fmt: skip


def allocation_rows(record: Allocation, now_ms: int) -> list[Row]:
    """One row."""
    return [
        {
            "site": record.site, "source": record.source, "tenant": record.tenant,
            "workload": record.workload, "account": record.account, "node": record.node,
            "gpus": record.gpus, "share_ppm": record.share_ppm, "from_ts": record.from_ms, "until_ts": record.until_ms,
            "asserted_at": record.asserted_at_ms or now_ms, "site_id": id64(record.site),
            "node_id": id64(record.site, record.node),
            "tenant_id": id64("", record.tenant) if record.tenant else 0,
            "workload_id": id64(record.site, record.workload) if record.workload else 0,
        }
    ]  # fmt: skip


def _meter_rows(record: MeterReading, now_ms: int) -> list[Row]:
    return [
        {
            "site": id64(record.site), "meter": record.meter, "kind": _METER_KINDS[record.kind],
            "ts": record.ts_ms, "watts": round(record.watts * 1000), "ingested_at": now_ms // 1000,
        }
    ]  # fmt: skip


def _event_rows(record: Event, now_ms: int) -> list[Row]:
    return [
        {
            "site": id64(record.site), "node": record.node, "ts": record.ts_ms,
            "kind": record.kind, "gpu": id64(record.site, record.uuid) if record.uuid else 0,
            "uuid": record.uuid, "code": record.code, "count": record.count,
            "detail": record.detail, "ingested_at": now_ms // 1000,
        }
    ]  # fmt: skip


_METER_KINDS: Final = {"node": 1, "rack": 2, "pdu": 3, "row": 4, "hall": 5, "site": 6}
_TABLES: Final[Mapping[type, tuple[str, Callable[..., list[Row]]]]] = {
    Inventory: ("inventory", inventory_rows),
    Allocation: ("allocations", allocation_rows),
    MeterReading: ("meters", _meter_rows),
    Event: ("events", _event_rows),
}


def by_table(records: Iterable[Record], now_ms: int) -> dict[str, dict[str, list[object]]]:
    """Blocks for the tables that these records belong to."""
    rows: dict[str, list[Row]] = {}
    for record in records:
        table, make = _TABLES[type(record)]
        rows.setdefault(table, []).extend(make(record, now_ms))
    return {table: columns(found) for table, found in rows.items() if found}


def columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    """Rows of the same names, side by side."""
    return {name: [row[name] for row in rows] for name in rows[0]}
