-- What a tenant leases, and on which terms: append-only, a correction is a later assertion. The
-- newest of each (site, tenant, from_ts, selectors) holds; one with until_ts = from_ts is withdrawn.
CREATE TABLE IF NOT EXISTS ${db}contracts${on_cluster}
(
    site String,
    tenant String,
    tenant_id UInt64,
    selectors Array(String),
    timezone String,
    from_ts DateTime64(3, 'UTC'),
    until_ts Nullable(DateTime64(3, 'UTC')),
    contracted_gpus UInt32,
    contracted_kw Decimal(18, 3),
    price_per_gpu_hour Decimal(18, 6),
    price_per_kwh Decimal(18, 6),
    currency String,
    availability_pct Decimal(9, 4),
    pue Nullable(Decimal(9, 4)),
    asserted_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(asserted_at)
ORDER BY (site, tenant, from_ts, selectors, asserted_at)
SETTINGS ${durable}
