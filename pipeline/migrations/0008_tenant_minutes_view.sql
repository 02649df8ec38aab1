CREATE MATERIALIZED VIEW IF NOT EXISTS ${db}tenant_minutes_view${on_cluster} TO ${db}tenant_minutes AS
SELECT site, tenant, toStartOfMinute(s.ts) AS ts, max(s.ingested_at) AS ingested_at,
    ${tenant_minutes_select}
FROM ${db}gpu_samples AS s
GROUP BY site, tenant, ts
