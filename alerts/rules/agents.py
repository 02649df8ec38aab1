"""Agents and the broker behind them, from what agents say at /metrics/agent."""

from typing import Final

from alerts.rule import Rule

_JOB: Final = 'job="megawatch-agent"'
_ALL: Final = f"count by (job) (up{{{_JOB}}})"
_MANY_DOWN: Final = f"count by (job) (up{{{_JOB}}} == 0) / {_ALL} > 0.1"

RULES: Final = (
    Rule(
        name="AgentsDown",
        question="Are so many agents gone that the cause is common to them?",
        severity="page",
        scope="service",
        unit="%",
        above=10,
        for_s=120,
        keep_firing_s=60,
        page="service",
        promql=f"100 * count by (job) (up{{{_JOB}}} == 0) / {_ALL}",
        summary="{value} % of the agents cannot be scraped",
    ),
    Rule(
        name="AgentDown",
        question="Is one agent gone, and not many at once?",
        severity="ticket",
        scope="node",
        below=1,
        for_s=300,
        keep_firing_s=60,
        page="service",
        promql=f"up{{{_JOB}}} unless on (job) ({_MANY_DOWN})",
        summary="The agent at {instance} cannot be scraped",
    ),
    Rule(
        name="AgentBlind",
        question="Does an agent run, but cannot read its GPUs?",
        severity="ticket",
        scope="node",
        below=1,
        for_s=180,
        keep_firing_s=60,
        page="node",
        promql="megawatch_agent_source_up",
        summary="The agent at {instance} cannot read its GPUs",
    ),
    Rule(
        name="AgentLate",
        question="Does an agent miss its ticks?",
        severity="ticket",
        scope="node",
        unit="%",
        above=5,
        for_s=600,
        keep_firing_s=300,
        page="service",
        promql=(
            "100 * sum by (instance) (rate(megawatch_agent_ticks_skipped_total[5m])) / (sum by"
            " (instance) (rate(megawatch_agent_ticks_skipped_total[5m]))"
            " + sum by (instance) (rate(megawatch_agent_ticks_total[5m])))"
        ),
        summary="The agent at {instance} misses {value} % of its ticks",
    ),
    Rule(
        name="AgentBacklog",
        question="Do samples wait in an agent's spool, while others get theirs through?",
        severity="ticket",
        scope="node",
        unit="s",
        above=120,
        for_s=300,
        keep_firing_s=60,
        page="service",
        promql=(
            "megawatch_agent_spool_oldest_age_seconds unless on (job)"
            " (count by (job) (megawatch_agent_spool_oldest_age_seconds > 120)"
            " / count by (job) (megawatch_agent_spool_oldest_age_seconds) > 0.3)"
        ),
        summary="The oldest sample in the spool of {instance} is {value} s old",
    ),
    Rule(
        name="BrokerUnreachable",
        question="Can so many agents not ship that the broker must be the cause?",
        severity="page",
        scope="service",
        unit="%",
        above=30,
        for_s=120,
        keep_firing_s=120,
        page="service",
        promql=(
            "100 * count by (job) (megawatch_agent_spool_oldest_age_seconds > 60)"
            " / count by (job) (megawatch_agent_spool_oldest_age_seconds)"
        ),
        summary="{value} % of the agents cannot get their samples through to the broker",
    ),
    Rule(
        name="AgentCostly",
        question="Does an agent take more of its node than it may?",
        severity="ticket",
        scope="node",
        unit="% of a core",
        above=1,
        for_s=1800,
        keep_firing_s=600,
        page="service",
        promql="100 * rate(megawatch_agent_cpu_seconds_total[10m])",
        summary="The agent at {instance} takes {value} % of a core",
    ),
    Rule(
        name="DriverSlow",
        question="Does reading the GPUs take so long that the driver may be stuck?",
        severity="ticket",
        scope="node",
        unit="s",
        above=0.5,
        for_s=600,
        keep_firing_s=300,
        page="node",
        promql=(
            "rate(megawatch_agent_source_read_seconds_sum[5m])"
            " / rate(megawatch_agent_source_read_seconds_count[5m])"
        ),
        summary="Reading the GPUs at {instance} takes {value} s",
    ),
)
