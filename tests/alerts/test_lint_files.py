"""Rule files in all their shapes, and what is no rule file at all."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.lint import lint
from alerts.lint_files import RULES_MAX, SIZE_MAX, read, rules
from alerts.lint_rule import Rule
from pipeline.errors import Refuse
from tests.alerts.test_promql import PIECES

RULE_FILE = """\
groups:
  - name: gpu
    interval: 30s
    rules:
      - alert: Hot
        expr: DCGM_FI_DEV_GPU_TEMP > 85
        for: 1h30m
        labels: {severity: critical}
        annotations: {summary: "{{ $labels.gpu }} {{ if gt $value 90.0 }}!{{ end }}"}
      - record: x
        expr: |
          # why
          up
"""
RESOURCE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: gpu}
spec:
  groups:
    - name: g
      rules: [{alert: A, expr: up == 0}]
"""


def test_a_rule_is_read_with_its_lines():
    hot, x = rules(RULE_FILE, "f")
    assert hot == Rule(
        file="f", group="gpu", name="Hot", alerts=True, expr="DCGM_FI_DEV_GPU_TEMP > 85", line=6,
        for_s=5400, for_line=7, severity="critical",
    )  # fmt: skip
    assert (x.name, x.alerts, x.line, x.for_s) == ("x", False, 12, 0)


def test_several_documents_resources_and_lists():
    service = "kind: Service\nspec: {groups: 1}\n"
    text = f"---\n{RULE_FILE}---\n{RESOURCE}---\n{service}"
    assert [r.name for r in rules(text, "f")] == ["Hot", "x", "A"]
    item = RESOURCE.replace("\n", "\n    ").rstrip()
    listed = f"kind: List\nitems:\n  - {item}\n"
    assert [r.name for r in rules(listed, "f")] == ["A"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "groups: []", "groups:\n", "---\n---\n"])
def test_no_rules_is_no_error(text):
    assert rules(text, "f") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "f:1: not YAML"),
        ("groups:\n\t- x", "f:2: not YAML"),
        ("a: 1", "f: no rules"),
        ("kind: ConfigMap", "f: no rules"),
        ("[1, 2]", "f: no rules"),
        ("groups: 5", "f:1: `groups` is not a list"),
        ("groups:\n- rules: {a: 1}", "f:2: `rules` is not a list"),
        ("groups:\n- rules:\n  - alert: A", "f:3: a rule needs `expr`"),
        ("groups:\n- rules:\n  - expr: up", "f:3: a rule needs `expr`"),
        ("groups:\n- rules:\n  - {alert: A, expr: [up]}", "f:3: a rule needs `expr`"),
        ("groups:\n- rules:\n  - {alert: A, expr: up, for: soon}", "f:3: `for` is not a duration"),
        ("{{- if .Values.on }}\ngroups: []\n{{- end }}", "Helm has not rendered"),
        ("groups:\n- rules:\n  - {alert: A, expr: 'x > {{ .Values.x }}'}", "f:3: is a template"),
        ("groups:\n- rules:\n  - {alert: A, expr: up, for: '{{ .x }}'}", "is a template"),
        ("a: *b", "not YAML"),
        ("a: \x00", "not YAML"),
        ("[" * 5000, "f"),
        ("- " * 5000, "f"),
    ],
)
def test_what_is_refused_and_where(text, sentence):
    with pytest.raises(Refuse) as caught:
        rules(text, "f")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    binary, large = tmp_path / "b", tmp_path / "l"
    binary.write_bytes(b"groups: \xff")
    large.write_bytes(b"#" * (SIZE_MAX + 1))
    for path, why in (
        (binary, "UTF-8"),
        (large, "larger"),
        (tmp_path, "cannot"),
        (tmp_path / "n", "No"),
    ):
        with pytest.raises(Refuse, match=why):
            read(path)


def test_aliases_do_not_multiply_without_end():
    rule = "&r {alert: A, expr: up}"
    one = f"rules: &l [{rule}, {', '.join(['*r'] * 300)}]"
    text = f"groups:\n- {one}\n" + "- rules: *l\n" * 300
    started = time.process_time()
    with pytest.raises(Refuse, match=f"more than {RULES_MAX}"):
        rules(text, "f")
    assert time.process_time() - started < 20


def test_an_alias_to_itself_ends():
    with pytest.raises(Refuse, match="needs `expr`"):
        rules("groups: &g\n- rules: *g\n", "f")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([*PIECES, *"[]{}:-&*!|>'\"% \n\t", "groups:", "- rules:"]), max_size=30
    )
)
def test_any_text_is_rules_or_one_sentence(pieces):
    try:
        rules(" ".join(pieces), "f")
    except Refuse as error:
        assert str(error).startswith("f")


NAMES = [
    "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_TOTAL",
    "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_UTIL_RATIO", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "DCGM_EXP_XID_ERRORS_COUNT", "nvidia_smi_temperature_gpu",
]  # fmt: skip
EXPRESSIONS = st.recursive(
    st.sampled_from([*NAMES, *(f'{n}{{xid=~"13|(a+)+$"}}' for n in NAMES), "5", "0", "1e300", "up"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(
            [">", "==", "<", "/", "-", "*", "%", "and", "or", "unless", "> on (gpu)"]), inner,
        ).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        st.tuples(st.sampled_from(["sum", "avg by (gpu)", "max", "count", "absent", "topk"]), inner)
        .map(lambda t: f"{t[0]} ({t[1]})"),
        st.tuples(st.sampled_from(["rate", "increase", "delta", "changes", "avg_over_time"]),
                  st.sampled_from(NAMES)).map(lambda t: f"{t[0]}({t[1]}[2d])"),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3), st.sampled_from(["", "critical"]))
def test_checks_never_fail_and_every_correct_form_is_understood(exprs, severity):
    read_rules = [
        Rule(file="f", group="g", name=f"R{i}", alerts=True, expr=expr, line=i, for_s=600,
             severity=severity)
        for i, expr in enumerate(exprs)
    ]  # fmt: skip
    report = lint(read_rules)
    assert report.unread == ()
    corrected = [
        Rule(file="f", group="g", name="C", alerts=True, expr=finding.correct, line=1)
        for finding in report.findings
        if finding.correct != "for: 0s"
    ]
    assert lint(corrected).unread == ()
