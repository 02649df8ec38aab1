-- The newest tick of every GPU, at most 5 s old.
CREATE TABLE IF NOT EXISTS ${db}gpu_latest${on_cluster}
(
    gpu UInt64,
    ts DateTime64(3, 'UTC'),
    node UInt64,
    site UInt64,
    tenant UInt64,
    workload UInt64,
    flags UInt16,
    ${latest_columns}
)
ENGINE = ReplacingMergeTree(ts)
ORDER BY gpu
SETTINGS ${plain}
