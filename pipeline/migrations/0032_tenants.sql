-- Names of tenant ids, of whoever leases or runs; 0 and 1 are not tenants but say so.
CREATE OR REPLACE VIEW ${db}tenants${on_cluster} AS
SELECT id, any(name) AS name FROM
(
    SELECT tenant_id AS id, any(tenant) AS name FROM ${db}allocations GROUP BY tenant_id
    UNION ALL SELECT tenant_id, any(tenant) FROM ${db}contracts GROUP BY tenant_id
    UNION ALL SELECT toUInt64(${unallocated}), '(unallocated)'
    UNION ALL SELECT toUInt64(${shared}), '(shared)'
)
GROUP BY id
