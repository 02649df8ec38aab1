-- Slow columns and raw counters, one row per GPU and message; ts is the message's first tick.
CREATE TABLE IF NOT EXISTS ${db}gpu_health${on_cluster}
(
    gpu UInt64 CODEC(Delta, Default),
    ts DateTime64(3, 'UTC') CODEC(Delta, Default),
    node UInt64 CODEC(Default),
    site UInt64 CODEC(Default),
    stream UInt64 CODEC(Default),
    seq UInt64 CODEC(Delta, Default),
    boot_epoch UInt32 CODEC(Default),
    driver_epoch UInt32 CODEC(Default),
    ingested_at DateTime('UTC') CODEC(Delta, Default),
    ${slow_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(ts)
ORDER BY (gpu, ts)
TTL ingested_at + INTERVAL ${health_ttl_days} DAY
SETTINGS ${lasting}
