-- Every GPU where it was last seen.
CREATE VIEW IF NOT EXISTS ${db}gpus${on_cluster} AS
SELECT gpu_id, argMax(site, from_ts) AS site, argMax(node, from_ts) AS node,
    argMax(gpu_index, from_ts) AS gpu_index, argMax(uuid, from_ts) AS uuid,
    argMax(model, from_ts) AS model, argMax(hall, from_ts) AS hall, argMax(row, from_ts) AS row,
    argMax(rack, from_ts) AS rack, argMax(pdu, from_ts) AS pdu
FROM ${db}inventory FINAL
GROUP BY gpu_id
