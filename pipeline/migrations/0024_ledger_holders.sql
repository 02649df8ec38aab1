-- The same, added up over GPUs: what statements are written from.
CREATE TABLE IF NOT EXISTS ${db}ledger_holders${on_cluster}
(
    site UInt64 CODEC(ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    workload UInt64 CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    gpus UInt32 CODEC(T64, ZSTD(1)),
    ${ledger_columns},
    gap_ms_by_cause Array(UInt64) CODEC(ZSTD(1)),
    util_ms_by_bin Array(UInt64) CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, tenant, ts, workload)
SETTINGS ${durable}
