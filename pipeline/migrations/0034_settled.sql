-- Seconds before `until` are complete: 5 s behind the newest watermark of the last ten minutes (agents
-- flush every 4 s). Without a live pipeline, in 2105: everything that is there is all there will be.
CREATE VIEW IF NOT EXISTS ${db}settled${on_cluster} AS
SELECT if(count() = 0, toDateTime('2105-01-01 00:00:00', 'UTC'),
    toDateTime(max(watermark), 'UTC') - INTERVAL 5 SECOND) AS until
FROM ${db}ingest_log
WHERE kind = 'insert' AND at > now64(3) - INTERVAL 10 MINUTE AND toUnixTimestamp64Milli(watermark) > 0
