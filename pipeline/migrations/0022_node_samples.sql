-- One node's rows by its name: node_samples(node = 'h01-r03-n07'). The name becomes GPU ids first, so
-- that only that node's rows are read.
CREATE VIEW IF NOT EXISTS ${db}node_samples${on_cluster} AS
SELECT * FROM ${db}gpu_samples
WHERE gpu IN (SELECT gpu_id FROM ${db}inventory WHERE node = {node:String})
