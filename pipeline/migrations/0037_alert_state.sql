-- Where every alert stands, for an evaluator that starts again; alert_history tells people the story.
-- The row with no rule and fingerprint 0 says when the evaluator last lived.
CREATE TABLE IF NOT EXISTS ${db}alert_state${on_cluster}
(
    rule String,
    fingerprint UInt64,
    saved_at DateTime64(3, 'UTC'),
    version String,
    state Enum8('gone' = 0, 'pending' = 1, 'firing' = 2, 'resolved' = 3),
    severity String,
    labels String,
    annotations String,
    value Float64,
    active_ms Int64,
    fired_ms Int64,
    missed_ms Int64,
    resolved_ms Int64,
    sent_ms Int64,
    told String
)
ENGINE = ReplacingMergeTree(saved_at)
ORDER BY (rule, fingerprint)
TTL toDateTime(saved_at) + INTERVAL 7 DAY
SETTINGS ${durable}
