-- MIG instances: one row per instance and tick. Power belongs to the device, never here.
CREATE TABLE IF NOT EXISTS ${db}slice_samples${on_cluster}
(
    gpu UInt64 CODEC(Delta, Default),
    gi UInt8 CODEC(Default),
    ci UInt8 CODEC(Default),
    ts DateTime64(3, 'UTC') CODEC(Delta, Default),
    node UInt64 CODEC(Default),
    site UInt64 CODEC(Default),
    stream UInt64 CODEC(Default),
    seq UInt64 CODEC(Delta, Default),
    ingested_at DateTime('UTC') CODEC(Delta, Default),
    ${slice_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(ts)
ORDER BY (gpu, gi, ci, ts)
TTL ingested_at + INTERVAL ${health_ttl_days} DAY
SETTINGS ${lasting}
