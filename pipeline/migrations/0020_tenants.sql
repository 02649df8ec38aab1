-- Names of tenant ids; 0 and 1 are not tenants but say so.
CREATE VIEW IF NOT EXISTS ${db}tenants${on_cluster} AS
SELECT tenant_id AS id, any(tenant) AS name FROM ${db}allocations GROUP BY tenant_id
UNION ALL SELECT toUInt64(${unallocated}), '(unallocated)'
UNION ALL SELECT toUInt64(${shared}), '(shared)'
