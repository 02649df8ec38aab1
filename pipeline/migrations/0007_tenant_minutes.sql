-- A tenant's minute on a site: sums, extremes, and value x time of every gauge (mean = _ms / _dt_ms).
CREATE TABLE IF NOT EXISTS ${db}tenant_minutes${on_cluster}
(
    site UInt64 CODEC(ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ingested_at SimpleAggregateFunction(max, DateTime('UTC')) CODEC(Delta, ZSTD(1)),
    ${tenant_minutes_columns}
)
ENGINE = AggregatingMergeTree
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, tenant, ts)
TTL ingested_at + INTERVAL ${minutes_ttl_days} DAY
SETTINGS ${durable}
