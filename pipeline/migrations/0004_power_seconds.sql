-- Watts of a tenant on a site, second by second: power_w_ms / 1000 is the second's watts.
CREATE TABLE IF NOT EXISTS ${db}power_seconds${on_cluster}
(
    site UInt64 CODEC(ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ingested_at SimpleAggregateFunction(max, DateTime('UTC')) CODEC(Delta, ZSTD(1)),
    ${power_seconds_columns}
)
ENGINE = AggregatingMergeTree
PARTITION BY toStartOfDay(ts)
ORDER BY (site, tenant, ts)
TTL ingested_at + INTERVAL ${seconds_ttl_days} DAY
SETTINGS ${durable}
