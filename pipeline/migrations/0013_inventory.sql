-- Which GPU was where, and when: intervals, since UUIDs move and hostnames are reused.
CREATE TABLE IF NOT EXISTS ${db}inventory${on_cluster}
(
    site String,
    node String,
    hall String,
    row String,
    rack String,
    pdu String,
    gpu_index UInt16,
    uuid String,
    model String,
    serial String,
    pci_bus_id String,
    vbios String,
    memory_mib UInt64,
    site_id UInt64,
    node_id UInt64,
    gpu_id UInt64,
    from_ts DateTime64(3, 'UTC'),
    until_ts Nullable(DateTime64(3, 'UTC')),
    source String,
    layout String,
    agent_version String,
    driver_version String,
    asserted_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(asserted_at)
ORDER BY (site_id, node_id, gpu_id, from_ts)
SETTINGS ${durable}
