"""Known mistakes are named with a correct form, and correct rules pass in silence."""

import json
import re
from pathlib import Path

import pytest
import yaml

from alerts.lint import lint, lint_paths, run
from alerts.lint_checks import CHECKS
from alerts.lint_files import rules
from alerts.lint_rule import Rule
from alerts.promql import parse

HERE = Path(__file__).parent / "fixtures/lint"
WRONG = sorted(HERE.glob("wrong_*.yaml"))
CORRECT = sorted(HERE.glob("correct_*.yaml"))


def file_of(*entries: str) -> str:
    """A rule file of alerts with these expressions."""
    listed = [{"alert": f"Rule{i}", "expr": expr} for i, expr in enumerate(entries)]
    return json.dumps({"groups": [{"name": "g", "rules": listed}]})


def checks_of(*entries: str) -> list[str]:
    """What is found in a file of these expressions."""
    return [f.check for f in lint(rules(file_of(*entries), "f")).findings]


def intended(path: Path) -> list[tuple[str, str]]:
    """Each rule of a fixture with each mistake that it was made with."""
    groups = yaml.safe_load(path.read_text())["groups"]
    return [
        (rule["alert"], mistake)
        for group in groups
        for rule in group["rules"]
        for mistake in rule.get("annotations", {}).get("mistake", "").split()
    ]


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_each_mistake_is_named_and_nothing_else(path):
    report = lint_paths([path])
    assert not report.unread
    assert sorted((f.rule, f.check) for f in report.findings) == sorted(intended(path))


@pytest.mark.parametrize("path", CORRECT, ids=lambda p: p.stem)
def test_correct_rules_pass_in_silence(path):
    report = lint_paths([path])
    assert report.rules_n > 5
    assert report.findings == ()
    assert report.unread == ()


def test_every_check_has_a_wrong_form():
    assert {mistake for path in WRONG for _, mistake in intended(path)} == set(CHECKS)


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_the_correct_form_can_be_pasted(path):
    """It parses, and mends the mistake: another round does not find it again."""
    rules_of = {rule.name: rule for rule in rules(path.read_text(), "f")}
    for finding in lint_paths([path]).findings:
        if finding.correct == "for: 0s":
            continue
        parse(finding.correct)
        old = rules_of[finding.rule]
        mended = Rule(
            file="f", group="g", name="r", alerts=True, expr=finding.correct, line=1,
            severity=old.severity,
        )  # fmt: skip
        again = lint([mended]).findings
        assert finding.check not in [f.check for f in again], finding


@pytest.mark.parametrize(
    ("expr", "correct"),
    [
        (
            'increase(DCGM_FI_DEV_XID_ERRORS{job="a"}[5m]) > 0',
            'DCGM_EXP_XID_ERRORS_COUNT{job="a"} > 0',
        ),
        ("DCGM_FI_DEV_XID_ERRORS == 79", 'DCGM_EXP_XID_ERRORS_COUNT{xid="79"} > 0'),
        (
            'DCGM_FI_DEV_XID_ERRORS{job="a"} > 0',
            'DCGM_EXP_XID_ERRORS_COUNT{job="a", xid!~"13|31|43|45"} > 0',
        ),
        (
            'DCGM_FI_DEV_FB_USED / DCGM_FI_DEV_FB_TOTAL{a="["} > 0.9',
            (
                'DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED{a="["} + DCGM_FI_DEV_FB_FREE{a="["}'
                ' + DCGM_FI_DEV_FB_RESERVED{a="["}) > 0.9'
            ),
        ),
        ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS == 8", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS % 16 >= 8"),
        ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS > 0", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS % 256 >= 32"),
        ("(DCGM_FI_DEV_GPU_TEMP) > 85", "DCGM_FI_DEV_GPU_TEMP_LIMIT < 5"),
        ("DCGM_FI_DEV_GPU_UTIL > 0.9", "DCGM_FI_DEV_GPU_UTIL > 90"),
        ("0.9 < (DCGM_FI_DEV_GPU_UTIL)", "90 < (DCGM_FI_DEV_GPU_UTIL)"),
        ("DCGM_FI_DEV_FB_USED > 80 * 1024^3", None),
        ("DCGM_FI_DEV_FB_USED > 80 * 1073741824", "DCGM_FI_DEV_FB_USED > 81920"),
        ("DCGM_FI_DEV_FB_FREE_BYTES < 70000", "DCGM_FI_DEV_FB_FREE_BYTES < 73400320000"),
        (
            "sum by (namespace) (DCGM_FI_DEV_POWER_USAGE) > 9000",
            (
                "sum by (namespace) (max by (namespace, Hostname, gpu) (DCGM_FI_DEV_POWER_USAGE))"
                " > 9000"
            ),
        ),
        (
            "avg by (gpu) (DCGM_FI_DEV_GPU_UTIL) < 5",
            "avg by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL) < 5",
        ),
        (
            "count(DCGM_FI_DEV_GPU_TEMP_CELSIUS) == 0",
            (
                "((count by (hostname) (DCGM_FI_DEV_GPU_TEMP_CELSIUS) or 0 * count by (hostname)"
                " (DCGM_FI_DEV_GPU_TEMP_CELSIUS offset 15m)) < count by (hostname)"
                " (DCGM_FI_DEV_GPU_TEMP_CELSIUS offset 15m))"
            ),
        ),
    ],
)
def test_the_correct_form_is_this(expr, correct):
    found = [f.correct for f in lint(rules(file_of(expr), "f")).findings]
    assert found == ([correct] if correct else [])


def test_a_metric_under_both_names_is_no_mistake_whichever_rule_has_the_other():
    both = ("DCGM_FI_DEV_POWER_USAGE > 680", "DCGM_FI_DEV_BOARD_POWER_WATTS > 680")
    assert checks_of(*both) == []
    assert checks_of(both[0]) == []
    assert checks_of(*both, "DCGM_FI_DEV_PSTATE > 2") == ["dialect-missing"]


def test_a_recording_rule_may_keep_what_an_alert_may_not_ask():
    text = "groups: [{name: g, rules: [{record: x, expr: DCGM_FI_DEV_XID_ERRORS > bool 0}]}]"
    assert lint(rules(text, "f")).findings == ()


def test_rules_on_other_metrics_are_not_even_parsed():
    assert lint(rules(file_of("rate(x[$__interval]) !!"), "f")).unread == ()


def test_an_expression_that_is_not_understood_is_said_to_be():
    report = lint(rules(file_of("DCGM_FI_DEV_GPU_TEMP if up", "DCGM_FI_DEV_GPU_UTIL > 0.9"), "f"))
    assert report.status == 2
    assert "Rule0: not understood: 'if' at character 22" in report.unread[0]
    assert [f.check for f in report.findings] == ["threshold-unit"]


def test_it_prints_place_reason_and_correct_form(capsys, tmp_path):
    path = tmp_path / "gpu.yaml"
    path.write_text("groups:\n- name: g\n  rules:\n  - alert: A\n    expr: |\n      "
                    "DCGM_FI_DEV_GPU_UTIL\n        > 0.9\n")  # fmt: skip
    assert run([str(path)], as_json=False) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{path}:6: g/A: ")
    assert "  why: " in said
    assert said.endswith("  use: DCGM_FI_DEV_GPU_UTIL > 90\n\n")


def test_json_is_all_of_standard_output(capsys, tmp_path):
    path = tmp_path / "gpu.yaml"
    path.write_text(file_of("DCGM_FI_DEV_GPU_UTIL > 0.9"))
    assert run([str(path), str(tmp_path / "none.yaml")], as_json=True) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["rules_n"] == 1
    assert report["findings"][0]["correct"] == "DCGM_FI_DEV_GPU_UTIL > 90"
    assert report["findings"][0]["line"] == 1
    assert "cannot be read" in report["unread"][0]


def test_nothing_found_is_0(capsys, tmp_path):
    path = tmp_path / "gpu.yaml"
    path.write_text(file_of("up == 0"))
    assert run([str(path)], as_json=False) == 0
    assert capsys.readouterr().out == ""


def rendered(template: str) -> str:
    """What Helm makes of the captured template with its defaults, and all rules switched on."""
    text = re.sub(r"\{\{-? ?/\*.*?\*/ ?\}\}", "", template, flags=re.DOTALL)
    text = text[text.index("apiVersion") :]
    text = re.sub(r"^ *\{\{- (?!print).*\}\}\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'\{\{ printf "(\{\{[^"]*\}\})" \}\}', r"\1", text)
    text = re.sub(r'\{\{ dig "\w+" "\w+" "?(\w+)"? \$pr \}\}', r"\1", text)
    text = text.replace('{{ $xidCritical | join "|" }}', "48|62|64|74|79|95|119|120")
    text = text.replace('{{ $xidWarning | join "|" }}', "94")
    return re.sub(r'\{\{ template "[^"]*" \. \}\}', "gpu", text)


def test_the_best_public_rules_have_one_mistake(captures):
    """Off by default there, and its comment says why: safe temperatures differ by model."""
    template = captures / "alert_rules/nvidia_gpu_exporter_prometheusrule.yaml.tpl"
    read = rules(rendered(template.read_text()), "rendered")
    assert len(read) == 15
    report = lint(read)
    assert report.unread == ()
    assert [(f.rule, f.check) for f in report.findings] == [
        ("NvidiaGpuTemperatureHigh", "temperature-constant")
    ]


def test_unrendered_captures_are_refused_in_one_sentence(captures):
    folder = captures / "alert_rules"
    report = lint_paths(sorted(folder.glob("*.tpl")))
    assert report.status == 2
    assert "Helm has not rendered" in report.unread[0]
    values = lint_paths(sorted(folder.glob("*values*.yaml")))
    assert values.status == 2
    assert "no rules" in values.unread[0]


def test_our_own_rules_pass():
    """What we tell others holds for us."""
    folder = Path(__file__).parents[2] / "alerts/generated/prometheus"
    report = lint_paths(sorted(folder.glob("*.yaml")))
    assert report.rules_n > 0
    assert report.findings == ()
    assert report.unread == ()
