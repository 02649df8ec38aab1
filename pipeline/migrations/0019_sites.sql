CREATE VIEW IF NOT EXISTS ${db}sites${on_cluster} AS
SELECT site_id AS id, any(site) AS name FROM ${db}inventory GROUP BY site_id
