-- The ledger: of every closed quarter its last version.
CREATE VIEW IF NOT EXISTS ${db}ledger${on_cluster} AS
SELECT * FROM ${db}ledger_quarters
WHERE (site, ts, version) IN
(
    SELECT site, ts, max(version) FROM ${db}ledger_closes WHERE state = 'closed' GROUP BY site, ts
)
