-- One row per attempt to close a quarter, written last: a version without its row here never was.
-- data_version is the highest version of the minutes that were read, said a number over the contracts,
-- allocations, inventory and meters: when either is another, the quarter is closed anew.
CREATE TABLE IF NOT EXISTS ${db}ledger_closes${on_cluster}
(
    site UInt64,
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    version UInt64,
    state Enum8('closed' = 1, 'refused' = 2, 'failed' = 3),
    reason String,
    gpus UInt32,
    energy_j Decimal(18, 3),
    bridged_j Decimal(18, 3),
    meter_energy_j Decimal(18, 3),
    measured_ms UInt64,
    expected_ms UInt64,
    data_version UInt64,
    said UInt64,
    closed_at DateTime64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, ts, version)
SETTINGS ${durable}
