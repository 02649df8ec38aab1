-- What a GPU did for a holder in a quarter of an hour. A quarter is closed anew as a whole: only rows
-- of the version that ledger_closes has last for (site, ts) count, see the view `ledger`.
CREATE TABLE IF NOT EXISTS ${db}ledger_quarters${on_cluster}
(
    site UInt64 CODEC(ZSTD(1)),
    ts DateTime('UTC') CODEC(Delta, ZSTD(1)),
    gpu UInt64 CODEC(Delta, ZSTD(1)),
    tenant UInt64 CODEC(ZSTD(1)),
    workload UInt64 CODEC(ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    ${ledger_columns},
    power_w_max Decimal(9, 1) CODEC(T64, ZSTD(1)),
    gap_cause String CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, ts, gpu, tenant, workload)
SETTINGS ${durable}
