-- What a meter read in a quarter of an hour; a node's is divided among the holders of its GPUs.
CREATE TABLE IF NOT EXISTS ${db}ledger_meters${on_cluster}
(
    site UInt64 CODEC(ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    kind String CODEC(ZSTD(1)),
    meter String CODEC(ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    workload UInt64 CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    energy_j Decimal(18, 3) CODEC(T64, ZSTD(1)),
    measured_ms UInt64 CODEC(T64, ZSTD(1)),
    allocated_ms UInt64 CODEC(T64, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, ts, kind, meter, tenant, workload)
SETTINGS ${durable}
