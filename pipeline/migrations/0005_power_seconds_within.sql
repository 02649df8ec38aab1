-- Rows that lie within one second: every live tick.
CREATE MATERIALIZED VIEW IF NOT EXISTS ${db}power_seconds_within${on_cluster} TO ${db}power_seconds AS
SELECT site, tenant, toStartOfSecond(s.ts) AS ts, max(s.ingested_at) AS ingested_at,
    ${power_seconds_select}
FROM ${db}gpu_samples AS s
WHERE s.dt_ms <= 1000 - toUnixTimestamp64Milli(s.ts) % 1000
GROUP BY site, tenant, ts
