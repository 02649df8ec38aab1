-- One row per insert (kind insert), per import and per filling of minutes: what came, what was found.
CREATE TABLE IF NOT EXISTS ${db}ingest_log${on_cluster}
(
    at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    kind String,
    topic String,
    partition UInt32,
    first UInt64,
    last UInt64,
    messages UInt32,
    rows UInt64,
    duplicates UInt32,
    rejected UInt32,
    gaps UInt64,
    bytes UInt64,
    from_ts DateTime64(3, 'UTC'),
    until_ts DateTime64(3, 'UTC'),
    watermark DateTime64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(at)
ORDER BY at
TTL toDateTime(at) + INTERVAL 28 DAY
SETTINGS ${durable}
