"""How fast is this machine? The cost of a plain insert that was also measured elsewhere.

    python -m pipeline.bench.reference

2.2 million rows of 27 quantised columns in inserts of 440,000 into one MergeTree with two views and
no merges. A quiet 2.5 GHz Xeon took 0.64 CPU-s per million rows: CPU figures of another machine, or
of the same one beside busy neighbours, are to be read by the ratio.
"""

import json
import sys
import tempfile
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import ClickHouse
from pipeline.store import Store

ELSEWHERE_CPU_S: Final = 0.64
"""CPU-s per million rows on the machine that the budgets were set by."""

_NODES, _GPUS, _SECONDS, _INSERTS = 5_500, 8, 10, 5
_T64, _PLAIN = "T64, ZSTD(1)", "ZSTD(1)"
_COLUMNS: Final = {
    "gpu_id": ("UInt32", "Delta, ZSTD(1)"), "ts": ("DateTime64(3)", "Delta, ZSTD(1)"),
    "site_id": ("UInt16", _PLAIN), "tenant_id": ("UInt16", _PLAIN), "job_id": ("UInt32", _PLAIN),
    "power_dw": ("UInt16", _T64), "de_mj": ("UInt32", _T64),
    "temp_gpu": ("UInt8", "Delta, ZSTD(1)"), "temp_mem": ("UInt8", "Delta, ZSTD(1)"),
    "sm_clock": ("UInt16", _PLAIN), "mem_clock": ("UInt16", _PLAIN), "util_gpu": ("UInt8", _PLAIN),
    "util_mem": ("UInt8", _PLAIN), "mem_used": ("UInt32", _PLAIN), "throttle": ("UInt32", _PLAIN),
    "pcie_tx": ("UInt16", _T64), "pcie_rx": ("UInt16", _T64), "nvl_tx": ("UInt32", _T64),
    "nvl_rx": ("UInt32", _T64), "ecc_sbe": ("UInt32", _PLAIN), "ecc_dbe": ("UInt32", _PLAIN),
    "power_limit": ("UInt16", _PLAIN), "pstate": ("UInt8", _PLAIN), "sm_active": ("UInt16", _T64),
    "tensor_active": ("UInt16", _T64), "dram_active": ("UInt16", _T64), "xid": ("UInt32", _PLAIN),
}  # fmt: skip
_NOISY: Final = {
    "power_dw": 7000, "de_mj": 700_000, "util_gpu": 100, "util_mem": 100, "pcie_tx": 3000,
    "pcie_rx": 3000, "nvl_tx": 40_000, "nvl_rx": 40_000, "sm_active": 1000, "tensor_active": 1000,
    "dram_active": 1000,
}  # fmt: skip
_VIEW: Final = """
CREATE TABLE {name} ({key}, ts DateTime, energy SimpleAggregateFunction(sum, UInt64),
    power SimpleAggregateFunction(sum, UInt64), peak SimpleAggregateFunction(max, UInt16),
    util SimpleAggregateFunction(sum, UInt64), rows SimpleAggregateFunction(sum, UInt64))
ENGINE = AggregatingMergeTree ORDER BY ({key_name}, ts)
"""
_FILL: Final = """
CREATE MATERIALIZED VIEW {name}_view TO {name} AS SELECT {key_name},
    toStartOfInterval(toDateTime(reference.ts), INTERVAL {seconds} SECOND) AS ts,
    sum(de_mj) AS energy, sum(power_dw) AS power, max(power_dw) AS peak, sum(util_gpu) AS util,
    count() AS rows
FROM reference GROUP BY {key_name}, ts
"""


def measure() -> float:
    """CPU seconds per million rows of this process, now."""
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        store = Store(ClickHouse(data=folder))
        _make(store)
        blocks = [_block(np.random.default_rng(k), k) for k in range(_INSERTS)]
        store.insert("reference", blocks[0])  # the first one pays for everybody's loading
        begun = time.process_time()
        for block in blocks[1:]:
            store.insert("reference", block)
        spent = time.process_time() - begun
        store.close()
    return spent / (_INSERTS - 1) / (_NODES * _GPUS * _SECONDS) * 1e6


def _make(store: Store) -> None:
    columns = ", ".join(f"{name} {kind} CODEC({how})" for name, (kind, how) in _COLUMNS.items())
    store.command(
        f"CREATE TABLE reference ({columns}, INDEX ix ts TYPE minmax GRANULARITY 1)"
        " ENGINE = MergeTree PARTITION BY toStartOfInterval(ts, INTERVAL 6 HOUR)"
        " ORDER BY (gpu_id, ts) SETTINGS auto_statistics_types = ''"
    )
    for name, key, key_name, seconds in (
        ("tenant_1m", "tenant_id UInt16", "tenant_id", 60),
        ("site_10s", "site_id UInt16", "site_id", 10),
    ):
        store.command(_VIEW.format(name=name, key=key, key_name=key_name))
        store.command(_FILL.format(name=name, key_name=key_name, seconds=seconds))
    store.command("SYSTEM STOP MERGES")


def _block(rng: np.random.Generator, k: int) -> dict[str, NDArray[np.generic]]:
    """An insert of messages in random order, each of a node's GPUs over 10 s."""
    nodes = rng.permutation(_NODES)
    shape = (_NODES, _SECONDS, _GPUS)
    gpu = np.broadcast_to(nodes[:, None, None] * _GPUS + np.arange(_GPUS), shape).reshape(-1)
    second = np.broadcast_to(np.arange(_SECONDS)[:, None], shape).reshape(-1) + k * _SECONDS
    busy = (gpu // 512 + second // 5) % 2 == 0  # jobs as square waves
    block: dict[str, NDArray[np.generic]] = {
        name: np.full(len(gpu), 7, np.uint32) for name in _COLUMNS
    }
    block |= {"gpu_id": gpu, "ts": 1_790_000_000_000 + second * 1000 + rng.integers(0, 4, len(gpu))}
    block |= {"tenant_id": gpu // 22_000, "job_id": gpu // 512}
    for name, top in _NOISY.items():
        level = np.where(busy, top * 0.85, top * 0.15)
        block[name] = (level + rng.normal(0, top * 0.006, len(gpu))).clip(0)
    return {name: values.astype(_dtype(name)) for name, values in block.items()}


def _dtype(name: str) -> str:
    kind = _COLUMNS[name][0]
    return "<i8" if kind.startswith("Date") else f"<u{int(kind.removeprefix('UInt')) // 8}"


if __name__ == "__main__":
    print(json.dumps({"cpu_s_per_million_rows": round(measure(), 3)}))
    sys.exit(0)
