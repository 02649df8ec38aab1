-- Messages that could not be read, whole, with the reason; replayed_at says when one got through.
CREATE TABLE IF NOT EXISTS ${db}dead_letters${on_cluster}
(
    topic String,
    partition UInt32,
    offset UInt64,
    at DateTime64(3, 'UTC'),
    reason String,
    key String,
    payload String,
    replayed_at Nullable(DateTime64(3, 'UTC')),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (topic, partition, offset, at)
TTL toDateTime(at) + INTERVAL 28 DAY
SETTINGS ${durable}
