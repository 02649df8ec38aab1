-- Names of workload ids: what ran, on whose account, from when on.
CREATE VIEW IF NOT EXISTS ${db}workloads${on_cluster} AS
SELECT workload_id AS id, any(site_id) AS site, any(workload) AS name, argMax(tenant, asserted_at) AS tenant,
    argMax(account, asserted_at) AS account, min(from_ts) AS first_ts
FROM ${db}allocations
WHERE workload_id != ${unallocated}
GROUP BY workload_id
