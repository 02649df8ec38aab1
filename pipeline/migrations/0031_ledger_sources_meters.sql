CREATE MATERIALIZED VIEW IF NOT EXISTS ${db}ledger_sources_meters${on_cluster} TO ${db}ledger_sources AS
SELECT site, toDateTime(toStartOfFifteenMinutes(meters.ts), 'UTC') AS ts,
    toUInt64(0) AS minutes_version, count() AS readings
FROM ${db}meters
GROUP BY site, ts
