-- Rows that stand for more than one second, or for parts of two (logs at 3.5 Hz, exporters at 15 s,
-- a tick after a missed one): cut at the seconds' borders, so that each second shows its true watts.
-- A row of up to a second stands for [ts, ts + dt), a longer one also for the time before its tick:
-- [ts + 1 s - dt, ts + 1 s). Power x time is cut exactly; energy by differences of rounded-down
-- cumulative shares, whose sum is the row's energy to the millijoule.
CREATE MATERIALIZED VIEW IF NOT EXISTS ${db}power_seconds_across${on_cluster} TO ${db}power_seconds AS
SELECT site, tenant, toDateTime(second, 'UTC') AS ts, max(at) AS ingested_at,
    sum(toDecimal64(assumeNotNull(power), 1) * if(good, part, 0)) AS power_w_ms,
    sum(if(good, part, 0)) AS power_w_dt_ms,
    sum(toDecimal128(share_to - share_from, 3) / 1000) AS energy_j,
    sum(upto = dt) AS rows,
    sum(part) AS dt_ms,
    sum(if(bitTest(flags, 0), part, 0)) AS held_ms
FROM
(
    SELECT site, tenant, flags, s.ingested_at AS at, toInt64(s.dt_ms) AS dt,
        ifNull(power_w, 0) AS power, isNotNull(power_w) AND bitAnd(flags, ${bad_power}) = 0 AS good,
        toInt64(ifNull(s.energy_j, 0) * 1000) AS mj,
        toUnixTimestamp64Milli(s.ts) + least(dt, 1000) AS stop, stop - dt AS start,
        arrayJoin(range(intDiv(start, 1000), intDiv(stop - 1, 1000) + 1)) AS second,
        greatest(start, second * 1000) - start AS since,
        least(stop, (second + 1) * 1000) - start AS upto,
        upto - since AS part,
        intDiv(mj * since, dt) AS share_from, intDiv(mj * upto, dt) AS share_to
    FROM ${db}gpu_samples AS s
    WHERE s.dt_ms > 1000 - toUnixTimestamp64Milli(s.ts) % 1000
)
GROUP BY site, tenant, ts
