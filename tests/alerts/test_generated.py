"""The generated forms: committed as the rules say, complete, and in each server's own terms."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from alerts import command, generate, render_grafana, render_prometheus
from alerts.rule import PAGES
from alerts.rules import RULES
from pipeline.settings import Alerts

DOCUMENTS: Final = generate.documents()
PROMETHEUS: Final = {n: t for n, t in DOCUMENTS.items() if n.startswith("prometheus/")}
API: Final = {n: json.loads(t) for n, t in DOCUMENTS.items() if n.startswith("grafana/api/")}
FILE: Final = yaml.safe_load(DOCUMENTS["grafana/file/megawatch.yaml"])
BACKEND: Final = {"fromTime", "toTime", "timeFilter", "timeFilter_ms", "interval_s"}
"""Macros that the ClickHouse data source expands where alert rules run."""
WITH_SQL: Final = {rule.name for rule in RULES if rule.signal}


def api_rules() -> list[dict[str, Any]]:
    return [rule for group in API.values() for rule in group["rules"]]


def file_rules() -> list[dict[str, Any]]:
    return [rule for group in FILE["groups"] for rule in group["rules"]]


def test_what_is_committed_is_what_the_rules_say() -> None:
    assert generate.drift() == []


def test_a_change_a_loss_and_a_stray_file_are_drift_and_are_mended(tmp_path: Path) -> None:
    generate.write(tmp_path)
    assert generate.drift(tmp_path) == []
    (tmp_path / "prometheus/agents.yaml").write_text("groups: []\n")
    (tmp_path / "grafana/file/megawatch.yaml").unlink()
    (tmp_path / "grafana/api/old.json").write_text("{}")
    stale = ["grafana/api/old.json", "grafana/file/megawatch.yaml", "prometheus/agents.yaml"]
    assert generate.drift(tmp_path) == stale
    assert sorted(str(p.relative_to(tmp_path)) for p in generate.write(tmp_path)) == stale
    assert generate.write(tmp_path) == []


def test_every_rule_with_promql_is_in_one_group_of_prometheus() -> None:
    found = {}
    for text in PROMETHEUS.values():
        for group in yaml.safe_load(text)["groups"]:
            for rule in group["rules"]:
                assert rule["alert"] not in found
                found[rule["alert"]] = rule
    assert set(found) == {rule.name for rule in RULES if rule.promql}
    for rule in RULES:
        if rule.promql:
            made = found[rule.name]
            assert made["expr"] == render_prometheus.expression(rule, {})
            assert made.get("for", "0s") == f"{rule.for_s}s"
            assert made.get("keep_firing_for", "0s") == f"{rule.keep_firing_s}s"
            assert made["labels"]["severity"] == rule.severity
            assert made["annotations"]["runbook_url"].endswith(f"/{rule.name}.md")
            assert ("$value" in made["annotations"]["summary"]) == ("{value}" in rule.summary)


def test_both_forms_of_grafana_have_every_rule_with_sql_once() -> None:
    for rules in (api_rules(), file_rules()):
        assert sorted(rule["title"] for rule in rules) == sorted(WITH_SQL)
        uids = [rule["uid"] for rule in rules]
        assert len(set(uids)) == len(uids)
        assert all(re.fullmatch(r"[a-z0-9-]{1,40}", uid) for uid in uids)


def test_uids_do_not_change() -> None:
    """An alert rule of another uid is another rule, without the history of the first."""
    uids = {rule.name: render_grafana.uid(rule) for rule in RULES}
    assert uids["SiteRampUp"] == "mw-site-ramp-up"
    assert uids["LedgerConservationBroken"] == "mw-ledger-conservation-broken"
    assert max(map(len, uids.values())) <= 40


def test_the_api_form_has_what_its_documentation_requires() -> None:
    for group in API.values():
        assert set(group) == {"title", "folderUid", "interval", "rules"}
        assert isinstance(group["interval"], int)
    for rule in api_rules():
        assert {
            "uid", "title", "ruleGroup", "folderUID", "orgID", "condition", "data", "noDataState",
            "execErrState", "for", "keep_firing_for", "labels", "annotations", "isPaused",
        } == set(rule)  # fmt: skip


def test_the_file_form_has_what_its_documentation_requires() -> None:
    assert FILE["apiVersion"] == 1
    for group in FILE["groups"]:
        assert set(group) == {"orgId", "name", "folder", "interval", "rules"}
        assert re.fullmatch(r"\d+s", group["interval"])
    for rule in file_rules():
        assert not {"ruleGroup", "folderUID", "orgID"} & set(rule)


@pytest.mark.parametrize("rule", api_rules(), ids=lambda r: r["title"])
def test_a_rule_of_grafana_asks_reduces_and_compares(rule) -> None:
    source = next(r for r in RULES if r.name == rule["title"])
    ask, reduce, compare = rule["data"]
    assert [n["refId"] for n in rule["data"]] == ["A", "B", "C"]
    assert rule["condition"] == "C"
    assert (ask["model"]["format"], ask["model"]["editorType"]) == (1, "sql")
    assert (reduce["model"]["type"], reduce["model"]["expression"]) == ("reduce", "A")
    assert (compare["model"]["type"], compare["model"]["expression"]) == ("threshold", "B")
    (condition,) = compare["model"]["conditions"]
    kind = "gt" if source.above is not None else "lt"
    assert condition["evaluator"] == {"type": kind, "params": [source.threshold]}
    assert (
        rule["noDataState"]
        == {"ok": "OK", "alerting": "Alerting", "keep": "KeepLast"}[source.no_data]
    )
    assert rule["annotations"]["dashboard_uid"] == PAGES[source.page]


@pytest.mark.parametrize("rule", api_rules(), ids=lambda r: r["title"])
def test_only_macros_that_the_backend_expands_stand_in_a_rules_sql(rule, store) -> None:
    sql = rule["data"][0]["model"]["rawSql"]
    assert set(re.findall(r"\$__(\w+)", sql)) <= BACKEND
    plain = sql.replace("$__toTime", "toDateTime(1795000000)")
    assert "$" not in plain
    assert "{at:" not in plain
    ((text,),) = store.query("SELECT formatQuery({sql:String})", {"sql": plain}).rows
    assert text


def test_sql_of_every_signal_runs_as_grafana_would_send_it(store) -> None:
    done: set[str] = set()
    for rule in api_rules():
        source = next(r for r in RULES if r.name == rule["title"])
        assert source.signal is not None
        if source.signal.name in done and source.no_data == "ok":
            continue
        done.add(source.signal.name)
        sql = rule["data"][0]["model"]["rawSql"].replace("$__toTime", "toDateTime(1795000000)")
        names = [row[0] for row in store.query(f"DESCRIBE ({sql})").rows]
        assert names == [*source.signal.labels, source.name]
        store.query(sql)


def test_a_rule_for_which_silence_matters_asks_for_all_rows() -> None:
    for rule in RULES:
        if rule.signal is not None:
            every = f"HAVING {rule.name} IS NOT NULL" in render_grafana.sql(rule, {}, {})
            assert every == (rule.no_data != "ok"), rule.name


def test_where_silence_is_an_alarm_what_is_well_has_rows_too(store) -> None:
    store.command(
        "INSERT INTO ingest_log (at, kind, topic, rows, until_ts, watermark) VALUES"
        " (toDateTime64(1794999999, 3), 'insert', 'samples', 5, toDateTime64(1794999998, 3),"
        " toDateTime64(1794999998, 3))"
    )
    rule = next(r for r in RULES if r.name == "SamplesStopped")
    sql = render_grafana.sql(rule, {}, {}).replace("$__toTime", "toDateTime(1795000000)")
    assert store.query(sql).rows == [(1.0,)]


def test_configured_caps_and_thresholds_are_written_where_one_asks_for_them(
    tmp_path, capsys
) -> None:
    settings = Alerts(
        cap_kw={"rack h01-r'03": 45.0}, thresholds={"AgentLate": 9.0}, disabled=("GpuLost",)
    )
    assert command.generate(settings, str(tmp_path), check=False) == 0
    assert "> 9" in (tmp_path / "prometheus/agents.yaml").read_text()
    text = (tmp_path / "grafana/api/places-20s.json").read_text()
    queries = [rule["data"][0]["model"]["rawSql"] for rule in json.loads(text)["rules"]]
    assert all("""[["rack", 45000.0, ["h01-r\\'03"]]]""" in query for query in queries)
    assert "GpuLost" not in (tmp_path / "grafana/file/megawatch.yaml").read_text()


def test_the_check_says_what_differs_and_changes_nothing(monkeypatch, capsys) -> None:
    assert command.generate(Alerts(), "", check=True) == 0
    monkeypatch.setattr(generate, "drift", lambda: ["prometheus/agents.yaml"])
    assert command.generate(Alerts(), "", check=True) == 1
    assert "prometheus/agents.yaml" in capsys.readouterr().err
