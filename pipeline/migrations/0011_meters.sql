-- What power meters said. A node's meter is called as its host.
CREATE TABLE IF NOT EXISTS ${db}meters${on_cluster}
(
    site UInt64,
    meter String,
    kind Enum8('node' = 1, 'rack' = 2, 'pdu' = 3, 'row' = 4, 'hall' = 5, 'site' = 6),
    ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    watts Decimal(18, 3) CODEC(T64, ZSTD(1)),
    ingested_at DateTime('UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(ingested_at)
PARTITION BY toStartOfMonth(ts)
ORDER BY (site, kind, meter, ts)
SETTINGS ${durable}
