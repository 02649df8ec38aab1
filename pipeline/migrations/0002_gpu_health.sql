-- Slow columns and raw counters, one row per GPU and message; ts is the message's first tick.
CREATE TABLE IF NOT EXISTS ${db}gpu_health${on_cluster}
(
    gpu UInt64 CODEC(Delta, ZSTD(1)),
    ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    node UInt64 CODEC(ZSTD(1)),
    site UInt64 CODEC(ZSTD(1)),
    stream UInt64 CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    boot_epoch UInt32 CODEC(ZSTD(1)),
    driver_epoch UInt32 CODEC(ZSTD(1)),
    ingested_at DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ${slow_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(ts)
ORDER BY (gpu, ts)
TTL ingested_at + INTERVAL ${health_ttl_days} DAY
SETTINGS ${lasting}
