"""Every rule with PromQL, judged by Prometheus itself: fires in time, not before, and resolves."""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from alerts import generate, render_prometheus
from alerts.rule import Rule
from alerts.rules import RULES
from deploy.fetch import prometheus_programs
from tests.real.conftest import require_real

pytestmark = pytest.mark.real

STEP_S: Final = 15
QUIET_S: Final = 1200
BROKEN_S: Final = 3600
AFTER_S: Final = 4800
RULE_FILES: Final = sorted((generate.FOLDER / "prometheus").glob("*.yaml"))
BY_NAME: Final = {rule.name: rule for rule in RULES if rule.promql}


@dataclass(frozen=True)
class Series:
    """A series that is well, then broken, then well again: values, or increases per second."""

    name: str
    well: float
    broken: float
    counts: bool = False

    def values(self) -> str:
        total, out = 0.0, []
        for at_s in range(0, QUIET_S + BROKEN_S + AFTER_S, STEP_S):
            broken = QUIET_S <= at_s < QUIET_S + BROKEN_S
            now = self.broken if broken else self.well
            total += now * STEP_S
            out.append(f"{total if self.counts else now:g}")
        return " ".join(out)


def agent(name: str, instance: str = "n1", more: str = "") -> str:
    return f'{name}{{job="megawatch-agent",instance="{instance}"{more}}}'


def pipeline(name: str) -> str:
    return f'{name}{{job="megawatch-pipeline",instance="p1"}}'


def gpu(name: str) -> str:
    return f'{name}{{job="gpus",instance="n1",gpu="0",UUID="GPU-7",Hostname="h1-r1-n1"}}'


def others(name: str, value: float, count: int) -> list[Series]:
    return [Series(agent(name, f"n{i}"), value, value) for i in range(2, 2 + count)]


@dataclass(frozen=True)
class Case:
    """Series, the labels by which the alert is known, and how far the rule's window lags behind."""

    series: list[Series]
    labels: str = '{instance="n1"}'
    lag_s: int = 0


_UP, _SPOOL = "up", "megawatch_agent_spool_oldest_age_seconds"
_GPU: Final = '{gpu="GPU-7", node="h1-r1-n1"}'
_NOTHING: Final = "{}"

CASES: Final[Mapping[str, Case]] = {
    "AgentsDown": Case(
        [Series(agent(_UP), 1, 0), *others(_UP, 1, 5)], _NOTHING,
    ),
    "AgentDown": Case([Series(agent(_UP), 1, 0), *others(_UP, 1, 19)]),
    "AgentBlind": Case([Series(agent("megawatch_agent_source_up"), 1, 0)]),
    "AgentLate": Case(
        [Series(agent("megawatch_agent_ticks_skipped_total", more=',reason="late"'), 0, 0.1, True),
         Series(agent("megawatch_agent_ticks_total"), 1, 0.9, True)], lag_s=300,
    ),
    "AgentBacklog": Case([Series(agent(_SPOOL), 4, 500), *others(_SPOOL, 4, 9)]),
    "BrokerUnreachable": Case([Series(agent(_SPOOL), 4, 500), *others(_SPOOL, 4, 1)], _NOTHING),
    "AgentCostly": Case([Series(agent("megawatch_agent_cpu_seconds_total"), 0.003, 0.05, True)], lag_s=600),
    "DriverSlow": Case(
        [Series(agent("megawatch_agent_source_read_seconds_sum"), 0.01, 0.8, True),
         Series(agent("megawatch_agent_source_read_seconds_count"), 1, 1, True)], lag_s=300,
    ),
    "AgentDropping": Case(
        [Series(agent("megawatch_agent_spool_dropped_total", more=',reason="overflow"'), 0, 1, True)],
        lag_s=600,
    ),
    "DeadMansSwitch": Case([], _NOTHING),
    "WatermarkBehind": Case([Series(pipeline("megawatch_pipeline_watermark_age_seconds"), 5, 90)],
                            '{instance="p1"}'),
    "RejectedShareHigh": Case(
        [Series(pipeline("megawatch_pipeline_rejected_total"), 0, 10, True),
         Series(pipeline("megawatch_pipeline_messages_total"), 100, 100, True)],
        '{instance="p1"}', 300,
    ),
    "PipelineDown": Case([Series(pipeline(_UP), 1, 0)], '{instance="p1"}'),
    "PipelineRetrying": Case([Series(pipeline("megawatch_pipeline_retries_total"), 0, 0.5, True)],
                             '{instance="p1"}', 300),
    "PipelineSaturated": Case(
        [Series(pipeline("megawatch_pipeline_insert_seconds_total"), 0.3, 0.95, True)],
        '{instance="p1"}', 300,
    ),
    "LedgerRefused": Case(
        [Series(pipeline("megawatch_pipeline_ledger_not_closed_total"), 0, 0.01, True)],
        '{instance="p1"}', 900,
    ),
    "GpuThermalSlowdown": Case(
        [Series(gpu("DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS"), 0, 5e8, True)], _GPU, 300,
    ),
    "GpuPowerBrake": Case(
        [Series(gpu("DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS"), 0, 1e9, True)],
        _GPU, 300,
    ),
    "GpuUncorrectableEcc": Case([Series(gpu("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"), 0, 0.1, True)], _GPU, 300),
    "GpuRowRemapFailed": Case([Series(gpu("DCGM_FI_DEV_ROW_REMAP_FAILURE"), 0, 1)], _GPU),
    "GpuRemapPending": Case([Series(gpu("DCGM_FI_DEV_ROW_REMAP_PENDING"), 0, 1)], _GPU),
    "GpuRecoveryAction": Case([Series(gpu("DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION"), 0, 2)], _GPU),
    "GpuNvlinkErrors": Case(
        [Series(gpu("DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL"), 0, 5, True),
         Series(gpu("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL"), 0, 1, True)], _GPU, 60,
    ),
    "GpuPcieReplays": Case([Series(gpu("DCGM_FI_DEV_PCIE_REPLAY_COUNTER"), 0.1, 1, True)], _GPU, 60),
}  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> Path:
    return require_real("promtool", prometheus_programs) / "promtool"


def run(promtool: Path, *words: str) -> None:
    done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_every_rule_with_promql_has_a_case() -> None:
    assert set(CASES) == set(BY_NAME)


def test_prometheus_reads_the_rule_files(promtool) -> None:
    run(promtool, "check", "rules", *map(str, RULE_FILES))


def moments(rule: Rule, case: Case) -> Iterator[tuple[int, bool]]:
    """Times, and whether the rule fires then."""
    if rule.name == "DeadMansSwitch":
        yield from ((0, True), (QUIET_S, True))
        return
    broken, mended = QUIET_S, QUIET_S + BROKEN_S
    yield broken - STEP_S, False
    yield broken + rule.for_s - STEP_S, False
    yield broken + case.lag_s + rule.for_s + 2 * STEP_S, True
    yield mended - STEP_S, True
    if rule.keep_firing_s >= 60:
        yield mended + rule.keep_firing_s - 2 * STEP_S, True
    yield mended + case.lag_s + rule.keep_firing_s + 4 * STEP_S, False


def unit_test(name: str) -> dict[str, Any]:
    """What promtool reads: one rule's series, and what Prometheus says of its alert when."""
    rule, case = BY_NAME[name], CASES[name]
    by = ", ".join(
        part.partition("=")[0].strip() for part in case.labels.strip("{}").split(",") if part
    )
    expr = f'count by ({by}) (ALERTS{{alertname="{name}",alertstate="firing"}})'
    return {
        "interval": f"{STEP_S}s",
        "name": name,
        "input_series": [{"series": s.name, "values": s.values()} for s in case.series],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": f"{at_s}s",
                "exp_samples": [{"labels": case.labels, "value": 1}] if fires else [],
            }
            for at_s, fires in moments(rule, case)
        ],
    }


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_in_time_not_before_and_resolves(promtool, tmp_path, name) -> None:
    document = {
        "rule_files": [str(path) for path in RULE_FILES], "evaluation_interval": f"{STEP_S}s",
        "tests": [unit_test(name)],
    }  # fmt: skip
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(document))
    run(promtool, "test", "rules", str(path))


def check_alerts(promtool: Path, tmp_path: Path, series: list[Series], **test: Any) -> None:
    document = {
        "rule_files": [str(path) for path in RULE_FILES], "evaluation_interval": f"{STEP_S}s",
        "tests": [{
            "interval": f"{STEP_S}s", "alert_rule_test": [test],
            "input_series": [{"series": s.name, "values": s.values()} for s in series],
        }],
    }  # fmt: skip
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(document))
    run(promtool, "test", "rules", str(path))


def test_the_person_woken_reads_the_value_and_the_name(promtool, tmp_path) -> None:
    rule = BY_NAME["GpuRecoveryAction"]
    check_alerts(
        promtool, tmp_path, CASES[rule.name].series, alertname=rule.name, eval_time="30m",
        exp_alerts=[{
            "exp_labels": render_prometheus.labels(rule) | {
                "job": "gpus", "instance": "n1", "gpu": "GPU-7", "UUID": "GPU-7",
                "Hostname": "h1-r1-n1", "node": "h1-r1-n1",
            },
            "exp_annotations": {
                "summary": " h1-r1-n1: GPU-7 asks for recovery action 2"
                " (1 reset, 2 reboot, 3 drain peers, 4 drain and reset)",
                "question": rule.question, "runbook_url": "alerts/runbooks/GpuRecoveryAction.md",
                "dashboard_uid": "megawatch-node",
            },
        }],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "common", "metric", "well", "broken"),
    [("AgentDown", "AgentsDown", _UP, 1, 0), ("AgentBacklog", "BrokerUnreachable", _SPOOL, 4, 900)],
)
def test_what_is_common_to_many_is_told_once(
    promtool, tmp_path, one, common, metric, well, broken
) -> None:
    """Forty agents at once are one page, not forty tickets."""
    series = [Series(agent(metric, f"n{i}"), well, broken) for i in range(40)]
    check_alerts(promtool, tmp_path, series, alertname=one, eval_time="40m", exp_alerts=[])
    with pytest.raises(AssertionError, match=common):
        check_alerts(promtool, tmp_path, series, alertname=common, eval_time="40m", exp_alerts=[])


def test_no_pipeline_known_at_all_is_a_page(promtool, tmp_path) -> None:
    with pytest.raises(AssertionError, match="PipelineDown"):
        check_alerts(
            promtool, tmp_path, [], alertname="PipelineDown", eval_time="5m", exp_alerts=[]
        )
