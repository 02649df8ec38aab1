-- What each quarter of an hour can be closed from: the highest version of its minutes, and how many
-- readings of meters. Small, so that what is open can be asked of a month.
CREATE TABLE IF NOT EXISTS ${db}ledger_sources${on_cluster}
(
    site UInt64,
    ts DateTime('UTC'),
    minutes_version SimpleAggregateFunction(max, UInt64),
    readings SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (site, ts)
SETTINGS ${durable}
