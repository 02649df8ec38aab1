-- Alert states as they change.
CREATE TABLE IF NOT EXISTS ${db}alert_history${on_cluster}
(
    at DateTime64(3, 'UTC'),
    rule String,
    fingerprint UInt64,
    state Enum8('pending' = 1, 'firing' = 2, 'resolved' = 3),
    severity String,
    labels String,
    annotations String,
    value Float64
)
ENGINE = MergeTree
ORDER BY (at, rule, fingerprint)
TTL toDateTime(at) + INTERVAL 400 DAY
SETTINGS ${durable}
