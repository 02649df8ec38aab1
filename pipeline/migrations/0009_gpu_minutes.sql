-- A GPU's minute, no tenant: what the ledger is closed from. Filled behind the watermark, again when
-- late rows touch the minute; the highest version of (gpu, ts) is the row.
CREATE TABLE IF NOT EXISTS ${db}gpu_minutes${on_cluster}
(
    gpu UInt64 CODEC(Delta, ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    site UInt64 CODEC(ZSTD(1)),
    version UInt64 CODEC(T64, ZSTD(1)),
    ingested_at DateTime('UTC') CODEC(Delta, ZSTD(1)),
    energy_counter_first_j Nullable(Decimal(18, 3)) CODEC(Delta, ZSTD(1)),
    energy_counter_last_j Nullable(Decimal(18, 3)) CODEC(Delta, ZSTD(1)),
    ${gpu_minutes_columns}
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toStartOfDay(ts)
ORDER BY (gpu, ts)
TTL ingested_at + INTERVAL ${minutes_ttl_days} DAY
SETTINGS ${durable}
