-- MIG instances: one row per instance and tick. Power belongs to the device, never here.
CREATE TABLE IF NOT EXISTS ${db}slice_samples${on_cluster}
(
    gpu UInt64 CODEC(Delta, ZSTD(1)),
    gi UInt8 CODEC(ZSTD(1)),
    ci UInt8 CODEC(ZSTD(1)),
    ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    node UInt64 CODEC(ZSTD(1)),
    site UInt64 CODEC(ZSTD(1)),
    stream UInt64 CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    ingested_at DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ${slice_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(ts)
ORDER BY (gpu, gi, ci, ts)
TTL ingested_at + INTERVAL ${health_ttl_days} DAY
SETTINGS ${lasting}
