-- One row per GPU and tick: the raw truth. ts is the scheduled tick, dt_ms the time it stands for.
-- tenant and workload are provisional stamps for live panels; money goes through allocations.
CREATE TABLE IF NOT EXISTS ${db}gpu_samples${on_cluster}
(
    gpu UInt64 CODEC(Delta, Default),
    ts DateTime64(3, 'UTC') CODEC(Delta, Default),
    node UInt64 CODEC(Default),
    site UInt64 CODEC(Default),
    tenant UInt64 CODEC(Default),
    workload UInt64 CODEC(Default),
    stream UInt64 CODEC(Default),
    seq UInt64 CODEC(Delta, Default),
    dt_ms UInt32 CODEC(Default),
    flags UInt16 CODEC(Default),
    energy_kind Enum8('none' = 0, 'counter' = 1, 'trapezoid' = 2) CODEC(Default),
    ingested_at DateTime('UTC') CODEC(Delta, Default),
    ${fast_columns}
)
ENGINE = MergeTree
PARTITION BY toStartOfHour(ts)
ORDER BY (gpu, ts)
TTL ingested_at + INTERVAL ${samples_ttl_days} DAY
SETTINGS ${bulk}
