"""Sample messages made by hand, with known watts and millijoules."""

from array import array
from collections.abc import Mapping
from typing import Any

from pipeline.catalog import ARRAY_CODE, NULL_CODE, SLICE
from pipeline.records import Gpu, Inventory, id64
from pipeline.wire import LAYOUT, Header, Message, encode

T0_MS = 1_795_000_000_000
SITE = "test"


def uuid(node: str, index: int) -> str:
    return f"GPU-{node}-{index}"


def inventory(node: str, gpus: int = 2, **changes: Any) -> Inventory:
    members = tuple(Gpu(i, uuid(node, i), "H100") for i in range(gpus))
    fields: dict[str, Any] = {
        "from_ms": T0_MS,
        "layout": LAYOUT.describe(),
        "gpus": members,
    } | changes
    return Inventory(site=SITE, node=node, **fields)


def message(
    node: str = "n1",
    seq: int = 0,
    t0_ms: int = T0_MS,
    *,
    ticks: int = 4,
    gpus: int = 2,
    stream: int | None = None,
    values: Mapping[str, int | list[int]] | None = None,
    instances: tuple[tuple[int, int, int], ...] = (),
    period_ms: int = 1000,
) -> bytes:
    """A message of constant values; `values` replaces columns (one integer, or one per row)."""
    known: dict[str, int | list[int]] = {
        "dt_ms": period_ms, "flags": 0, "energy_kind": 1, "power_w": 5000,
        "energy_j": 500 * period_ms, "util_gpu_pct": 90, "temp_gpu_c": 60,
        "energy_counter_j": 1_000_000 + seq,
    }  # fmt: skip
    known |= values or {}
    fast, slow = (
        tuple(_column(c, known.get(c.name, NULL_CODE[c.storage]), n) for c in columns)
        for columns, n in ((LAYOUT.fast, ticks * gpus), (LAYOUT.slow, gpus))
    )
    gpu, gi, ci = (bytes(i[k] for i in instances) for k in range(3))
    slices = tuple(_column(c, 7, ticks * len(instances)) for c in LAYOUT.slices)
    assert len(slices) == len(SLICE)
    header = Header(
        site=id64(SITE), node=id64(SITE, node), stream=stream or id64("stream", node), seq=seq,
        t0_ms=t0_ms, period_ms=period_ms, ticks=ticks, gpus=gpus, slices=len(instances),
        boot_epoch=1, driver_epoch=1,
    )  # fmt: skip
    gpu_ids = tuple(id64(SITE, uuid(node, i)) for i in range(gpus))
    return encode(Message(header, gpu_ids, (gpu, gi, ci), fast, slow, slices))


def _column(column, value: int | list[int], count: int) -> bytes:
    values = value if isinstance(value, list) else [value] * count
    return array(ARRAY_CODE[column.storage], values).tobytes()
