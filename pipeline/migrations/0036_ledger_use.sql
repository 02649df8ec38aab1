-- Holders' sums of every closed quarter's last version: what may be added up.
CREATE VIEW IF NOT EXISTS ${db}ledger_use${on_cluster} AS
SELECT * FROM ${db}ledger_holders
WHERE (site, ts, version) IN
(
    SELECT site, ts, max(version) FROM ${db}ledger_closes WHERE state = 'closed' GROUP BY site, ts
)
