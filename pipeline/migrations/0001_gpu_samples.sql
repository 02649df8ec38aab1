-- One row per GPU and tick: the raw truth. ts is the scheduled tick, dt_ms the time it stands for.
-- tenant and workload are provisional stamps for live panels; money goes through allocations.
CREATE TABLE IF NOT EXISTS ${db}gpu_samples${on_cluster}
(
    gpu UInt64 CODEC(Delta, ZSTD(1)),
    ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    node UInt64 CODEC(ZSTD(1)),
    site UInt64 CODEC(ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    workload UInt64 CODEC(ZSTD(1)),
    stream UInt64 CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    dt_ms UInt32 CODEC(ZSTD(1)),
    flags UInt16 CODEC(ZSTD(1)),
    energy_kind Enum8('none' = 0, 'counter' = 1, 'trapezoid' = 2) CODEC(ZSTD(1)),
    ingested_at DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ${fast_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfHour(ts)
ORDER BY (gpu, ts)
TTL ingested_at + INTERVAL ${samples_ttl_days} DAY
SETTINGS ${bulk}
