-- Who held which GPUs, said by whom and when: append-only, a correction is a later assertion.
CREATE TABLE IF NOT EXISTS ${db}allocations${on_cluster}
(
    site String,
    source String,
    tenant String,
    workload String,
    account String,
    node String,
    gpus Array(UInt16),
    share_ppm UInt32,
    from_ts DateTime64(3, 'UTC'),
    until_ts Nullable(DateTime64(3, 'UTC')),
    asserted_at DateTime64(3, 'UTC'),
    site_id UInt64,
    node_id UInt64,
    tenant_id UInt64,
    workload_id UInt64
)
ENGINE = ReplacingMergeTree
ORDER BY (site_id, node_id, from_ts, source, tenant_id, workload_id, gpus, asserted_at)
SETTINGS ${durable}
