"""Rules into a Grafana: repeatable, nobody else's are touched, and what is no rule is gone."""

import json
from argparse import Namespace
from types import SimpleNamespace

import msgspec
import pytest

from alerts import publish as publishing
from alerts.render_grafana import FOLDER_UID
from pipeline.clock import ManualClock
from pipeline.errors import Refuse
from pipeline.publishing import PLUGIN, SOURCE_UID
from pipeline.settings import Alerts, Settings
from tests.dashboards import fake_grafana
from tests.dashboards.fake_grafana import TOKEN

DEFAULT = Settings().alerts
POWER = (FOLDER_UID, "megawatch-power-20s")


@pytest.fixture
def fake(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_grafana.running() as server:
        server.sources[SOURCE_UID] = {"uid": SOURCE_UID, "type": PLUGIN, "name": "Megawatch"}
        yield server


@pytest.fixture
def run(fake, capsys):
    """Publish: status, what was said, and what was written."""

    def publish(settings: Alerts = DEFAULT, **given: object) -> SimpleNamespace:
        args = Namespace(
            **{"grafana": fake.url, "dry_run": False, "force": False, "json": True} | given
        )
        section = msgspec.structs.replace(Settings().grafana, token=TOKEN)
        before = len(fake.writes())
        status = publishing.publish(args, section, settings, ManualClock(0))
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        said = {t["name"]: (t["state"], t["why"]) for t in json.loads(out)["things"]}
        return SimpleNamespace(status=status, said=said, writes=fake.writes()[before:])

    return publish


def uids(fake: fake_grafana.FakeGrafana) -> list[str]:
    return [rule["uid"] for group in fake.rule_groups.values() for rule in group["rules"]]


def changed(done: SimpleNamespace) -> dict[str, str]:
    return {name: state for name, (state, _) in done.said.items() if state != "unchanged"}


def test_the_first_run_creates_everything_and_the_second_does_nothing(fake, run) -> None:
    done = run()
    assert done.status == 0
    assert {state for state, _ in done.said.values()} == {"created"}
    assert set(fake.folders) == {FOLDER_UID}
    assert sorted(uids(fake)) == sorted(
        rule["uid"] for body in publishing.groups(DEFAULT).values() for rule in body["rules"]
    )
    assert set(fake.provenance.values()) == {"api"}  # nobody edits them in the browser
    again = run()
    assert (again.status, changed(again), again.writes) == (0, {}, [])


def test_a_dry_run_writes_nothing_and_says_what_it_would(fake, run) -> None:
    done = run(dry_run=True)
    assert done.writes == []
    assert {state for state, _ in done.said.values()} == {"created"}


def test_a_threshold_or_a_cap_changes_the_groups_that_have_it_and_no_other(fake, run) -> None:
    run()
    higher = msgspec.structs.replace(DEFAULT, thresholds={"SiteRampUp": 35.0})
    assert changed(run(higher)) == {POWER[1]: "updated"}
    rule = next(r for r in fake.rule_groups[POWER]["rules"] if r["title"] == "SiteRampUp")
    assert rule["data"][2]["model"]["conditions"][0]["evaluator"]["params"] == [35.0]
    capped = msgspec.structs.replace(higher, cap_kw={"rack h01-r01": 120.0})
    assert {"megawatch-places-20s", "megawatch-meters-30s"} <= changed(run(capped)).keys()


def test_a_rule_that_is_disabled_is_gone_and_with_the_last_one_its_group(fake, run) -> None:
    run()
    off = msgspec.structs.replace(DEFAULT, disabled=("SiteRampUp", "JobIdle", "JobPartlyIdle"))
    assert changed(run(off)) == {POWER[1]: "updated", "megawatch-tenants-120s": "removed"}
    assert {"mw-site-ramp-up", "mw-job-idle", "mw-job-partly-idle"}.isdisjoint(uids(fake))
    assert changed(run(off)) == {}


def test_a_rule_that_moved_is_there_once_and_its_old_group_is_gone(fake, run) -> None:
    run()
    body = fake.rule_groups.pop(POWER)
    old = (FOLDER_UID, "megawatch-power-40s")
    fake.rule_groups[old], fake.provenance[old] = body | {"title": old[1]}, "api"
    assert changed(run(dry_run=True)) == {POWER[1]: "created"}
    assert changed(run()) == {POWER[1]: "created"}
    assert old not in fake.rule_groups
    assert len(uids(fake)) == len(set(uids(fake)))


def test_what_people_made_in_our_folder_stays(fake, run) -> None:
    run()
    theirs = (FOLDER_UID, "night shift")
    fake.rule_groups[theirs] = {"title": "night shift", "rules": [
        {"uid": "theirs", "folderUID": FOLDER_UID, "ruleGroup": "night shift", "annotations": None},
    ]}  # fmt: skip
    fake.provenance[theirs] = ""
    assert changed(run()) == {}
    assert theirs in fake.rule_groups


def test_a_group_with_a_stranger_in_it_is_replaced_only_by_force(fake, run) -> None:
    run()
    rules = fake.rule_groups[POWER]["rules"]
    rules.append({"uid": "theirs", "folderUID": FOLDER_UID, "ruleGroup": POWER[1]})
    done = run()
    assert (done.status, done.writes) == (1, [])
    state, why = done.said[POWER[1]]
    assert state == "refused"
    assert "theirs" in why
    assert "--force" in why
    assert changed(run(force=True)) == {POWER[1]: "updated"}
    assert "theirs" not in uids(fake)


@pytest.mark.parametrize("force", [False, True])
def test_what_comes_from_files_is_left_to_them(fake, run, force) -> None:
    run()
    fake.provenance[POWER] = "file"
    fake.rule_groups[POWER]["rules"][0]["annotations"] = {}
    done = run(force=force)
    assert done.status == 1
    assert "provisioning files" in done.said[POWER[1]][1]
    assert done.writes == []


def test_without_the_data_source_that_rules_ask_nothing_is_written(fake, run) -> None:
    fake.sources.clear()
    with pytest.raises(Refuse, match="dashboards publish"):
        run()
    assert fake.writes() == []


def test_a_missing_right_is_named(fake, run) -> None:
    fake.rights_missing = {"alert.provisioning:write"}
    done = run()
    assert done.status == 1
    assert "alert.provisioning:write" in done.said[POWER[1]][1]
