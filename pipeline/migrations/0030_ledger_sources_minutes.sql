CREATE MATERIALIZED VIEW IF NOT EXISTS ${db}ledger_sources_minutes${on_cluster} TO ${db}ledger_sources AS
SELECT site, toStartOfFifteenMinutes(gpu_minutes.ts) AS ts, max(version) AS minutes_version,
    toUInt64(0) AS readings
FROM ${db}gpu_minutes
GROUP BY site, ts
