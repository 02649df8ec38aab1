-- XIDs, lost GPUs, driver reloads, drops.
CREATE TABLE IF NOT EXISTS ${db}events${on_cluster}
(
    site UInt64,
    node String,
    ts DateTime64(3, 'UTC'),
    kind String,
    gpu UInt64,
    uuid String,
    code UInt32,
    count UInt64,
    detail String,
    ingested_at DateTime('UTC')
)
ENGINE = ReplacingMergeTree(ingested_at)
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, ts, node, kind, gpu, code)
SETTINGS ${durable}
