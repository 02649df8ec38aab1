"""Rules as data: well-formed, explained, in step with runbooks and dashboards, and cheap to ask."""

import datetime as dt
import json
import re
import shlex
import string
from pathlib import Path
from typing import Final

import pytest

from alerts import command
from alerts.compile import bound, query
from alerts.rule import PAGES, Rule, by_signal
from alerts.rules import RULES, THEMES
from dashboards.pages import PAGES as DASHBOARDS
from pipeline import arguments
from pipeline.records import id64
from pipeline.settings import Alerts

RUNBOOKS: Final = Path(command.__file__).parent / "runbooks"
SECTIONS: Final = ("Meaning", "Likely causes", "Check", "Resolve", "Escalate")
LABELS: Final = {
    "site", "hall", "row", "rack", "pdu", "node", "gpu", "tenant", "workload", "xid", "meter",
    "topic", "disk", "table",
}  # fmt: skip
SERIES_LABELS: Final = {"instance"}
SIGNALS: Final = by_signal(RULES)
MAX_SIGNALS: Final = 14
AT: Final = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def test_there_are_enough_and_no_name_twice() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names) >= 40
    assert sum(map(len, THEMES.values())) == len(names)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_a_rule_is_well_formed(rule: Rule) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]+", rule.name)
    assert rule.question.endswith(("?", "alarm."))
    assert (rule.above is None) != (rule.below is None)
    assert (rule.signal is None) == (not rule.value)
    assert rule.signal or rule.promql
    assert rule.for_s % 15 == rule.keep_firing_s % 15 == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_a_summary_names_only_what_the_rule_knows(rule: Rule) -> None:
    names = {name for _, name, _, _ in string.Formatter().parse(rule.summary) if name}
    known = set(rule.signal.labels) if rule.signal else SERIES_LABELS
    assert names <= known | {"value"}
    assert rule.summary.format(**dict.fromkeys(names, "7"))


def test_labels_are_few_and_known() -> None:
    for rules in SIGNALS.values():
        assert rules[0].signal is not None
        assert set(rules[0].signal.labels) <= LABELS


def test_what_needs_to_be_folded_says_where_it_is() -> None:
    """An alert about a GPU without its rack cannot be told as part of the rack's."""
    for rule in RULES:
        if rule.signal and rule.scope in ("gpu", "node", "rack"):
            assert {"site", "hall", "row", "rack", "pdu"} <= set(rule.signal.labels), rule.name


def test_nobody_is_woken_for_what_a_job_did_or_for_one_gpu() -> None:
    for rule in RULES:
        if rule.severity == "page":
            assert rule.scope not in ("gpu", "node", "job"), rule.name
            # What is dark has been silent for SILENT_S before it breaks its rule.
            waits = rule.name.endswith("Dark") or rule.promql or rule.for_s >= 15
            assert waits or rule.keep_firing_s >= 300, rule.name


def test_the_dead_mans_switch_is_no_page() -> None:
    (switch,) = [rule for rule in RULES if rule.name == "DeadMansSwitch"]
    assert (switch.severity, switch.for_s, switch.no_data) == ("info", 0, "ok")


def test_a_rule_points_to_a_dashboard_that_exists() -> None:
    there = {page.uid for page in DASHBOARDS}
    missing = {PAGES[rule.page] for rule in RULES} - there
    assert not missing


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_a_runbook_has_its_sections_and_the_rules_question(rule: Rule) -> None:
    text = (RUNBOOKS / rule.runbook).read_text()
    assert text.startswith(f"# {rule.name}\n\n{rule.question}\n")
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == SECTIONS
    assert all(
        len(part.strip()) > 10 for part in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    )
    assert PAGES[rule.page] in text


def test_no_runbook_is_left_over() -> None:
    assert {p.name for p in RUNBOOKS.iterdir()} == {
        "Incident.md",
        *(rule.runbook for rule in RULES),
    }


def commands() -> dict[str, str]:
    """Every command that a runbook shows, and one runbook that does."""
    return {
        line: path.name
        for path in sorted(RUNBOOKS.iterdir())
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    }


def test_what_a_runbook_says_to_run_runs(store) -> None:
    for line, where in commands().items():
        words = shlex.split(line)[1:]
        arguments.parser().parse_args(words)
        if words[0] == "sql":
            assert store.query(f"DESCRIBE ({words[1]})").rows, where


def test_runbooks_and_summaries_name_rules_that_exist() -> None:
    names = {rule.name for rule in RULES}
    camel = re.compile(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b")
    for path in sorted(RUNBOOKS.iterdir()):
        said = set(camel.findall(path.read_text())) - {"ClickHouse"}
        assert not {n for n in said if n.endswith("s") is False and n not in names} - {"SystemD"}, (
            path.name
        )


def test_a_round_asks_one_query_per_table() -> None:
    assert len(SIGNALS) <= MAX_SIGNALS
    often = {n for n, rules in SIGNALS.items() if rules[0].signal and rules[0].signal.every_s == 15}
    assert often <= {"seconds", "places", "ingest"}


def test_no_rule_waits_longer_to_be_asked_than_it_waits_anyway() -> None:
    """A rule is asked again within its `for`, or, if it has none, within a minute."""
    for rules in SIGNALS.values():
        for rule in rules:
            assert rule.signal is not None
            assert rule.signal.every_s <= max(rule.for_s, 60), rule.name


def test_labels_that_are_ids_are_named() -> None:
    """Each label that names what a view knows; none that is already a text."""
    of = {"site": "sites", "tenant": "tenants", "workload": "workloads", "gpu": "gpus"}
    for rules in SIGNALS.values():
        signal = rules[0].signal
        assert signal is not None
        ids = {n: of[n] for n in signal.labels if n in of}
        if signal.labels.get("node") != "''":  # these rows know UUIDs, and where they are
            ids.pop("gpu", None)
        assert signal.names == ids, signal.name


def test_a_site_has_its_own_cap_and_that_of_any_site(store) -> None:
    caps = {"site": 7.0, "site north": 5.0, "rack r1": 2.0, "rack r'2": 2.0, "pdu p 1": 3.0}
    text = bound("SELECT $site_caps", caps)
    assert store.query(text).rows == [([(0, 7.0), (id64("north"), 5.0)],)]
    text = bound("SELECT scope, name, watts FROM $caps ORDER BY ALL", caps)
    assert store.query(text).rows == [
        ("pdu", "p 1", 3.0), ("rack", "r'2", 2.0), ("rack", "r1", 2.0),
        ("site", "", 7.0), ("site", "north", 5.0),
    ]  # fmt: skip
    assert store.query(bound("SELECT $site_caps, count() FROM $caps", {})).rows == [([], 0)]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signals_query_says_whether_there_is_data(store, name: str) -> None:
    signal = SIGNALS[name][0].signal
    assert signal is not None
    sql = f"{signal.with_} SELECT toFloat64({signal.present}) FROM {signal.source}"
    ((found,),) = store.query(bound(sql, {}), {"at": AT}).rows
    always = {"events", "dead_letters", "disks", "parts"}
    assert (found > 0) == (name in always)


@pytest.mark.parametrize("name", SIGNALS)
def test_thresholds_are_configurable_and_each_rule_can_be_asked_alone(store, name: str) -> None:
    for rule in SIGNALS[name][:1]:
        assert rule.signal is not None
        text = query(rule.signal, [rule], {rule.name: 12345.5})
        assert f"HAVING {rule.name} {rule.operator} 12345.5" in text
        described = store.query(f"DESCRIBE ({bound(text, {'site': 5.0})})", {"at": AT}).rows
        name, kind = described[-1][:2]
        assert (name, kind.removeprefix("Nullable(").rstrip(")")) == (rule.name, "Float64")


def test_the_list_has_every_rule_as_it_is_configured(capsys) -> None:
    settings = Alerts(thresholds={"SiteRampUp": 7.0}, disabled=("AgentLate",))
    assert command.list_rules(settings, as_json=True) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(listed) == {rule.name for rule in RULES}
    assert listed["SiteRampUp"]["threshold"] == 7.0
    assert listed["AgentLate"]["disabled"]
    assert command.list_rules(settings, as_json=False) == 0
    table = capsys.readouterr().out
    assert re.search(r"SiteRampUp +page +site +> 7 MW/min", table)
    assert re.search(r"AgentLate .* disabled", table)
