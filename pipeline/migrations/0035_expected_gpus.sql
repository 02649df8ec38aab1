-- GPUs come (1) and go (-1): the sum up to a time is how many the inventory expects then.
CREATE VIEW IF NOT EXISTS ${db}expected_gpus${on_cluster} AS
SELECT site_id AS site, from_ts AS at, toInt64(count()) AS delta
FROM ${db}inventory FINAL GROUP BY site, at
UNION ALL SELECT site_id AS site, assumeNotNull(until_ts) AS at, -toInt64(count()) AS delta
FROM ${db}inventory FINAL WHERE until_ts IS NOT NULL GROUP BY site, at
