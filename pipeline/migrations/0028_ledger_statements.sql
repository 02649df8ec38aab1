-- Statements that were sealed, as they were given out: each tenant's is a chain, the site's has
-- tenant ''.
CREATE TABLE IF NOT EXISTS ${db}ledger_statements${on_cluster}
(
    site String,
    tenant String,
    sequence UInt64,
    hash String,
    made_at DateTime64(3, 'UTC'),
    document String CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (site, tenant, sequence)
SETTINGS ${durable}
