"""What the hardware says of itself: memory errors, links, recovery, XIDs by who must act."""

from collections.abc import Iterable, Sequence
from typing import Final

from alerts.rule import PLACE, Rule, Severity, Signal
from alerts.rules.topology import GPU, GPU_NAMES, by_gpu, masked
from pipeline.xids import XIDS, Tier, codes

NEWEST_S: Final = 75
"""Every GPU that is heard has a row of slow columns so young: one a minute, and one with each
change, so that the newest of them says how it is."""
APART_S: Final = 60
"""Growth is told over so long: what did not change since has its row within NEWEST_S before."""
_COUNTERS: Final = {
    "ecc": ("ecc_uncorrected_volatile",),
    "links": ("nvlink_replay_errors", "nvlink_recovery_errors"),
    "replays": ("pcie_replays",),
}
_STATES: Final = (
    "remap_failure", "remap_pending", "retired_pages_pending", "recovery_action",
)  # fmt: skip
_NOW: Final = f"ts > $at - {NEWEST_S} AND ts <= $at"
_BEFORE: Final = f"ts > $at - {APART_S + NEWEST_S} AND ts <= $at - {APART_S}"


def _grown(name: str, counters: Iterable[str]) -> str:
    """By how much counters grew; NULL where the driver was reloaded.

    A counter that was not reported on either side did not grow: the newest that was counts.
    """
    sides = [
        (
            f"argMaxIf(toInt64({counter}), ts, {_NOW})",
            f"argMaxIf(toInt64({counter}), ts, {_BEFORE})",
        )
        for counter in counters
    ]
    grown = " + ".join(f"ifNull({now} - {before}, 0)" for now, before in sides)
    return f"if(same_driver, {grown}, NULL) AS {name}"


def _newest(state: str) -> str:
    return f"argMaxIf(ifNull({state}, 0), ts, {_NOW}) AS now_{state}"


_EVER: Final = " OR ".join(
    f"ifNull({column}, 0) > 0"
    for column in (*_STATES, *(c for counters in _COUNTERS.values() for c in counters))
)
_CHANGED: Final = " OR ".join(
    (*(f"{name} > 0" for name in _COUNTERS), *(f"now_{state} > 0" for state in _STATES))
)
HEALTH: Final = Signal(
    name="health",
    every_s=60,
    clock="data",
    labels=GPU,
    names=GPU_NAMES,
    present=f"count() + (SELECT count() FROM gpu_health WHERE {_NOW})",  # noqa: S608
    source=f"""(
    SELECT gpu AS of_gpu, any(site) AS of_site,
        argMaxIf(driver_epoch, ts, {_NOW}) = argMaxIf(driver_epoch, ts, {_BEFORE}) AS same_driver,
        {", ".join(_grown(*item) for item in _COUNTERS.items())},
        {", ".join(map(_newest, _STATES))}
    FROM gpu_health
    PREWHERE ts > $at - {APART_S + NEWEST_S} AND ts <= $at
    WHERE gpu IN (SELECT gpu FROM gpu_health PREWHERE {_NOW} WHERE {_EVER})
    GROUP BY gpu
    HAVING {_CHANGED}
)""",  # noqa: S608
)

_KNOWN: Final = ", ".join(map(str, sorted(XIDS)))


def _in(*tiers: Tier) -> str:
    listed = ", ".join(str(code) for tier in tiers for code in codes(tier))
    return f"kind = 'xid' AND code IN ({listed})"


_MINE: Final = f"({_in('application')})"
_ASKED: Final = f"SELECT of_gpu FROM said WHERE {_MINE}"  # noqa: S608
"""GPUs whose job is named: the one that held it then. The newest tick may be the next job's."""
_PLACED: Final = (*PLACE, "of_uuid", "tenant", "workload", "xid")
EVENTS_S: Final = 600
EVENTS: Final = Signal(
    name="events",
    every_s=30,
    clock="wall",
    labels={
        "site": "of_site",
        "hall": "of.2",
        "row": "of.3",
        "rack": "of.4",
        "pdu": "of.5",
        "node": "of.6",
        "gpu": "of.7",
        "tenant": "of.8",
        "workload": "of.9",
        "xid": "of.10",
    },
    names={"site": "sites", "tenant": "tenants", "workload": "workloads"},
    present="1 + count()",
    with_=f"""WITH said AS (
    SELECT site AS of_site, node AS of_node, gpu AS of_gpu, uuid AS of_uuid, kind, code, ts AS of_ts,
        max(count) AS things
    FROM events WHERE ts >= $at - {EVENTS_S} AND ts <= $at + 60 AND kind != 'sxid'
    GROUP BY of_site, of_node, ts, of_gpu, of_uuid, kind, code LIMIT 100000)""",  # noqa: S608
    source=f"""(
    SELECT said.*, arrayJoin(arrayConcat(
        if({_MINE}, {masked([("job", ("tenant", "workload", "xid"))], _PLACED)},
            {masked([("gpu", tuple(c for c in _PLACED if c not in ("tenant", "workload")))], _PLACED)}),
        if({_in("fatal")}, {masked([("rack", ("hall", "row", "rack", "pdu"))], _PLACED)}, [])
    )) AS of
    FROM
    (
        SELECT said.*, p.hall AS hall, p.row AS row, p.rack AS rack, p.pdu AS pdu,
            of_node AS node, if(kind = 'xid', toString(code), '') AS xid,
            if(s.gpu = 0, l.tenant, s.tenant) AS of_tenant,
            if(s.gpu = 0, l.workload, s.workload) AS of_workload,
            if(of_tenant < 2, '', toString(of_tenant)) AS tenant,
            if(of_workload < 2, '', toString(of_workload)) AS workload
        FROM said
        ASOF LEFT JOIN
        (
            SELECT gpu, ts, tenant, workload FROM gpu_samples
            WHERE gpu IN ({_ASKED}) AND ts >= $at - {EVENTS_S + 60} AND ts <= $at + 60
        ) AS s ON s.gpu = of_gpu AND of_ts >= s.ts
        LEFT JOIN
        (
            SELECT gpu, argMax(tenant, ts) AS tenant, argMax(workload, ts) AS workload
            FROM gpu_latest WHERE gpu IN ({_ASKED}) GROUP BY gpu
        ) AS l ON l.gpu = of_gpu
        LEFT JOIN
        (
            SELECT node, site_id AS p_site, argMax(hall, from_ts) AS hall,
                argMax(row, from_ts) AS row, argMax(rack, from_ts) AS rack,
                argMax(pdu, from_ts) AS pdu
            FROM inventory WHERE node IN (SELECT of_node FROM said) GROUP BY node, site_id
        ) AS p ON p.node = of_node AND p.p_site = of_site
    ) AS said
)""",  # noqa: S608
)


def _health(
    name: str, question: str, value: str, above: float, summary: str, promql: str, **more: int
) -> Rule:
    return Rule(
        name=name, question=question, severity="ticket", scope="gpu", signal=HEALTH, value=value,
        above=above, page="node", promql=by_gpu(promql), for_s=more.get("for_s", 0),
        keep_firing_s=more.get("keep_firing_s", 300),
        summary="{site} {node}: {gpu} " + summary,
    )  # fmt: skip


def _xid(
    name: str, question: str, severity: Severity, tiers: Sequence[Tier], above: float, summary: str
) -> Rule:
    unlisted = f" OR (kind = 'xid' AND code NOT IN ({_KNOWN}))" if "driver" in tiers else ""
    return Rule(
        name=name, question=question, severity=severity, scope="gpu", signal=EVENTS,
        value=f"nullIf(countIf(of.1 = 'gpu' AND ({_in(*tiers)}{unlisted})), 0)",
        unit="XIDs", above=above, keep_firing_s=300, summary=summary, page="node",
    )  # fmt: skip


RULES: Final = (
    _health(
        "GpuUncorrectableEcc", "Did a GPU's memory lose data within the last minute?",
        "max(ecc)", 0, "had {value} uncorrectable memory errors within a minute",
        "increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL[5m])", keep_firing_s=1800,
    ),
    _health(
        "GpuRowRemapFailed", "Has a GPU run out of spare memory rows, so that it must be replaced?",
        "max(now_remap_failure)", 0, "could not remap a memory row: replace it",
        "DCGM_FI_DEV_ROW_REMAP_FAILURE", for_s=60,
    ),
    _health(
        "GpuRemapPending", "Does a GPU wait for a reset to retire bad memory?",
        "max(greatest(now_remap_pending, now_retired_pages_pending))", 0,
        "waits for a reset to retire bad memory", "DCGM_FI_DEV_ROW_REMAP_PENDING", for_s=600,
    ),
    _health(
        "GpuRecoveryAction", "Does the driver ask for a reset, a reboot or a drain?",
        "max(now_recovery_action)", 0,
        "asks for recovery action {value} (1 reset, 2 reboot, 3 drain peers, 4 drain and reset)",
        "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION", for_s=60,
    ),
    _health(
        "GpuNvlinkErrors", "Does an NVLink replay or recover again and again?",
        "max(links)", 20, "had {value} NVLink replays and recoveries within a minute",
        "increase(DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL[1m])"
        " + increase(DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL[1m])", for_s=60,
    ),
    _health(
        "GpuPcieReplays", "Does a GPU's PCIe link replay so often that it slows the job?",
        "max(replays)", 8, "had {value} PCIe replays within a minute",
        "increase(DCGM_FI_DEV_PCIE_REPLAY_COUNTER[1m])", for_s=60,
    ),
    _xid(
        "XidFatal", "Did a GPU report something after which it cannot be trusted?", "ticket",
        ("fatal",), 0, "{site} {node}: {gpu} had XID {xid}, {value} times in ten minutes",
    ),
    _xid(
        "XidHardware", "Did a GPU report that memory, a link or power is worse than it was?",
        "ticket", ("hardware",), 0, "{site} {node}: {gpu} had XID {xid}, {value} times in ten minutes",
    ),
    _xid(
        "XidDriver", "Does driver or firmware complain again and again, or with an unknown code?",
        "info", ("driver",), 2, "{site} {node}: {gpu} had XID {xid}, {value} times in ten minutes",
    ),
    Rule(
        name="XidApplication", question="Did a job die of its own doing?", severity="info",
        scope="job", signal=EVENTS,
        value=f"nullIf(countIf(of.1 = 'job' AND {_in('application')}), 0)",
        unit="XIDs", above=0, keep_firing_s=300, page="job", tenant_visible=True,
        summary="{workload} of {tenant}: XID {xid}, {value} times in ten minutes",
    ),
    Rule(
        name="XidBurst", question="Do several GPUs of one rack fail together?", severity="page",
        scope="rack", signal=EVENTS, value="nullIf(uniqExactIf(of_gpu, of.1 = 'rack'), 0)",
        unit="GPUs", above=3, keep_firing_s=300, page="fleet",
        summary="{site} {rack}: {value} GPUs had fatal XIDs within ten minutes",
    ),
    Rule(
        name="GpuLost", question="Did a GPU fall off its bus?", severity="ticket", scope="gpu",
        signal=EVENTS, value="nullIf(countIf(of.1 = 'gpu' AND kind = 'gpu_lost'), 0)",
        unit="events", above=0, keep_firing_s=1800, page="node",
        summary="{site} {node}: {gpu} fell off the bus",
    ),
    Rule(
        name="AgentDropping", question="Does an agent throw samples away?", severity="ticket",
        scope="node", signal=EVENTS,
        value="nullIf(sumIf(things, of.1 = 'gpu' AND startsWith(kind, 'spool_')), 0)",
        unit="messages", above=0, keep_firing_s=600, page="service",
        promql="sum by (instance) (increase(megawatch_agent_spool_dropped_total[10m]))",
        summary="{site} {node}: the agent threw {value} messages away in ten minutes",
    ),
)  # fmt: skip
