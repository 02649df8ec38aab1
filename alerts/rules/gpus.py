"""GPUs beside their peers, and what their last minutes say: hot, slow, slowed, stuck."""

from typing import Final

from alerts.rule import Rule, Signal
from alerts.rules.topology import GPU, GPU_NAMES, by_gpu

_FRESH: Final = "ts > $at - 60 AND ts <= $at + 60"
_UNEVEN: Final = f"""
    SELECT node FROM
    (
        SELECT node, arraySort(groupArray(ifNull(temp_gpu_c, 0))) AS temps,
            arraySort(groupArray(reinterpretAsInt32(ifNull(power_w, 0)))) AS watts,
            max(bitAnd(flags, 6)) AS bad
        FROM gpu_latest FINAL WHERE {_FRESH} GROUP BY node
    )
    WHERE bad > 0 OR temps[-1] > temps[intDiv(length(temps) + 1, 2)] + 8
        OR watts[1] < 0.75 * watts[intDiv(length(watts) + 1, 2)]"""  # noqa: S608
"""Nodes whose GPUs differ: few, so that only theirs are looked at one by one."""
_ODD: Final = f"""
    SELECT of_site, g.1 AS of_gpu, g.2 AS of_tenant, g.3 AS of_workload,
        g.4 - temp AS hotter_c, if(g.3 > 1 AND g.6 >= 90 AND watts > 200, 100 * g.5 / watts, NULL) AS power_pct,
        g.7 AS bad
    FROM
    (
        SELECT site AS of_site, node, groupArray((gpu, tenant, workload,
                toFloat64(ifNull(temp_gpu_c, 0)), toFloat64(ifNull(power_w, 0)),
                ifNull(util_gpu_pct, 0), bitAnd(flags, 6) != 0)) AS all,
            medianExact(toFloat64(ifNull(temp_gpu_c, 0))) AS temp,
            medianExact(toFloat64(ifNull(power_w, 0))) AS watts
        FROM gpu_latest FINAL WHERE {_FRESH} AND node IN ({_UNEVEN})
        GROUP BY site, node
    )
    ARRAY JOIN arrayFilter(g -> g.7 OR (g.4 > temp + 8 AND g.5 <= 1.2 * watts)
        OR (g.3 > 1 AND g.6 >= 90 AND g.5 < 0.75 * watts), all) AS g"""  # noqa: S608

LATEST: Final = Signal(
    name="latest",
    every_s=60,
    clock="data",
    labels=GPU | {
        "tenant": "if(of_tenant < 2, '', toString(of_tenant))",
        "workload": "if(of_workload < 2, '', toString(of_workload))",
    },
    names=GPU_NAMES | {"tenant": "tenants", "workload": "workloads"},
    present=f"count() + (SELECT count() FROM gpu_latest WHERE {_FRESH})",  # noqa: S608
    source=f"({_ODD}\n)",
)  # fmt: skip

_MINUTES: Final = "ts >= toStartOfMinute($at) - 300 AND ts < toStartOfMinute($at)"
_STEADY: Final = "power_w_min = power_w_max AND rows >= 30 AND held_ms * 2 < m.dt_ms"
_STUCK: Final = f"({_STEADY} AND active_ms * 2 > m.dt_ms)"
_STILL: Final = f"""({_STEADY} AND active_ms * 2 <= m.dt_ms AND power_w_max > 0
            AND ifNull(energy_counter_first_j = energy_counter_last_j, 0))"""
"""Who is idle may well draw the same to a tenth of a watt; but not while its counter stands still.
A minute may have one reading of the counter: only several minutes tell whether it does."""
_SLOWED: Final = "throttle_hw_thermal_ms > 0 OR throttle_power_brake_ms > 0"
_MISCOUNTED: Final = """(m.dt_ms >= 55000 AND power_w_dt_ms >= 55000 AND reinterpretAsInt64(energy_j) > 0
                AND abs(reinterpretAsInt64(energy_j) * 10 - reinterpretAsInt64(power_w_ms)) * 10
                    > reinterpretAsInt64(power_w_ms))"""
"""The sums of a minute as what they are underneath, millijoules and tenths of them: 64 bits hold
them, and as decimals of 128 they cost twice as much to compare."""
_LOOKED: Final = f"({_SLOWED} OR power_w_min = power_w_max OR {_MISCOUNTED})"
"""The other columns are read of few rows."""
_SUSPECT: Final = f"({_SLOWED} OR {_STUCK} OR {_STILL} OR {_MISCOUNTED})"

GPU_MINUTES: Final = Signal(
    name="gpu_minutes",
    every_s=60,
    clock="data",
    labels=GPU,
    names=GPU_NAMES,
    present=f"count() + (SELECT count() FROM gpu_minutes WHERE {_MINUTES})",  # noqa: S608
    source=f"""(
    SELECT gpu AS of_gpu, ts, any(site) AS of_site, argMax(m.dt_ms, version) AS dt_ms,
        argMax(throttle_hw_thermal_ms, version) AS hot_ms,
        argMax(throttle_power_brake_ms, version) AS brake_ms,
        argMax({_STUCK}, version) AS stuck, argMax({_STILL}, version) AS still,
        argMax(energy_counter_first_j, version) AS first_j,
        argMax(energy_counter_last_j, version) AS last_j,
        argMax(toFloat64(energy_j) * 1000, version) AS counted,
        argMax(toFloat64(power_w_ms), version) AS integrated
    FROM gpu_minutes AS m PREWHERE {_MINUTES} AND {_LOOKED} WHERE {_SUSPECT} GROUP BY gpu, ts
)""",  # noqa: S608
)

RULES: Final = (
    Rule(
        name="GpuHotAgainstPeers",
        question="Is a GPU hotter than its node's others, which work as hard and breathe the same air?",
        severity="ticket",
        scope="gpu",
        signal=LATEST,
        value="max(hotter_c)",
        unit="°C",
        above=15,
        for_s=180,
        keep_firing_s=300,
        page="node",
        summary="{site} {node}: {gpu} is {value} °C hotter than the node's median",
    ),
    Rule(
        name="GpuStraggler",
        question="Does a busy GPU draw far less than its node's others on the same kind of work?",
        severity="ticket",
        scope="gpu",
        signal=LATEST,
        value="min(power_pct)",
        unit="%",
        below=60,
        for_s=300,
        keep_firing_s=300,
        page="node",
        tenant_visible=True,
        summary="{site} {node}: {gpu} draws {value} % of the node's median; {workload} waits for it",
    ),
    Rule(
        name="GpuPowerUnreadable",
        question="Does a GPU report negative or absurd watts, which no sum includes?",
        severity="ticket",
        scope="gpu",
        signal=LATEST,
        value="max(bad)",
        unit="",
        above=0,
        for_s=300,
        keep_firing_s=300,
        page="node",
        summary="{site} {node}: {gpu} reports impossible watts; they are left out of every sum",
    ),
    Rule(
        name="GpuThermalSlowdown",
        question="Does hardware slow a GPU down because it is too hot?",
        severity="ticket",
        scope="gpu",
        signal=GPU_MINUTES,
        value="100 * sum(hot_ms) / 300e3",
        unit="%",
        above=10,
        for_s=60,
        keep_firing_s=300,
        page="node",
        tenant_visible=True,
        promql=by_gpu("100 * rate(DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS[5m]) / 1e9"),
        summary="{site} {node}: heat slowed {gpu} for {value} % of the last five minutes",
    ),
    Rule(
        name="GpuPowerBrake",
        question="Is a GPU slowed by the external power brake?",
        severity="ticket",
        scope="gpu",
        signal=GPU_MINUTES,
        value="100 * sum(brake_ms) / 300e3",
        unit="%",
        above=10,
        for_s=60,
        keep_firing_s=300,
        page="node",
        promql=by_gpu(
            "100 * rate(DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS[5m]) / 1e9"
        ),
        summary="{site} {node}: the power brake slowed {gpu} for {value} % of the last five minutes",
    ),
    Rule(
        name="GpuFrozen",
        question="Does a GPU repeat one value, so that what it shows is not what it does?",
        severity="ticket",
        scope="gpu",
        signal=GPU_MINUTES,
        value=("sum(stuck) + if(minIf(first_j, still) = maxIf(last_j, still), sum(still), 0)"),
        unit="min",
        above=2,
        for_s=60,
        keep_firing_s=120,
        page="node",
        summary="{site} {node}: {gpu} has repeated the same watts for {value} of five minutes",
    ),
    Rule(
        name="GpuEnergyMismatch",
        question="Do a GPU's energy counter and its watts tell different stories?",
        severity="ticket",
        scope="gpu",
        signal=GPU_MINUTES,
        value=(
            "if(countIf(counted > 0 AND NOT stuck) >= 4,"
            " 100 * abs(sumIf(counted, counted > 0) / nullIf(sumIf(integrated, counted > 0), 0) - 1), NULL)"
        ),
        unit="%",
        above=10,
        for_s=600,
        keep_firing_s=600,
        page="node",
        summary="{site} {node}: energy counter and watts of {gpu} differ by {value} %",
    ),
)
