"""Publishing into a Grafana: repeatable, and nothing is touched that is somebody else's."""

import importlib.util
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from dashboards import command
from dashboards import publish as publishing
from pipeline.clock import ManualClock
from pipeline.errors import Refuse, Retry
from pipeline.records import id64
from pipeline.settings import ClickHouse
from tests.dashboards import fake_grafana
from tests.dashboards.fake_grafana import PLUGIN, TOKEN, says
from tests.deploy.files import DEPLOY, mapping

PASSWORD = "correct horse battery staple"
LAB_A = f"{id64('', 'lab-a'):016x}"


def page(uid: str, **more: object) -> dict[str, object]:
    variables: list[dict[str, object]] = [{"name": "ds", "type": "datasource", "query": PLUGIN}]
    if uid == "megawatch-tenant":
        query: dict[str, object] = {
            "name": "tenant",
            "type": "query",
            "datasource": {"uid": "${ds}"},
        }
        variables += [query, {"name": "step", "type": "interval"}]
    sql = "SELECT 1 WHERE tenant = toUInt64(${tenant:singlequote})"
    target = {"refId": "A", "datasource": {"type": PLUGIN, "uid": "${ds}"}, "rawSql": sql}
    panel = {"id": 1, "datasource": {"type": PLUGIN, "uid": "${ds}"}, "targets": [target]}
    return {
        "uid": uid, "title": uid.title(), "tags": ["megawatch"], "schemaVersion": 41,
        "panels": [panel], "templating": {"list": variables}, **more,
    }  # fmt: skip


@pytest.fixture
def pages(tmp_path, monkeypatch):
    folder = tmp_path / "generated"
    folder.mkdir()
    monkeypatch.setattr(publishing, "FOLDER", folder)

    def write(uid: str, **more: object) -> None:
        (folder / f"{uid}.json").write_text(json.dumps(page(uid, **more)))

    write("megawatch-site")
    write("megawatch-tenant")
    return write


@pytest.fixture
def fake(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_grafana.running() as server:
        yield server


@pytest.fixture
def run(fake, pages, capsys):
    """Publish: status, and what was said about each thing."""

    def publish(section: object = None, clickhouse: ClickHouse | None = None, **given: object):
        args = Namespace(
            **{
                "grafana": fake.url, "dry_run": False, "check": False, "folder": None, "force": False,
                "tenant": [], "password_file": [], "user": [], "viewer": [], "json": True,
            } | given
        )  # fmt: skip
        status = command.publish(
            args, section or configured(),  # type: ignore[arg-type]
            clickhouse or ClickHouse(url="https://click.example:9443"), ManualClock(0),
        )  # fmt: skip
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        assert PASSWORD not in out + err
        summary = json.loads(out.splitlines()[-1])
        said = {(t["kind"], t["name"]): (t["state"], t["why"]) for t in summary["things"]}
        return SimpleNamespace(status=status, said=said, out=out, err=err, summary=summary)

    return publish


def configured(**changes: str) -> SimpleNamespace:
    """[grafana] as in a file."""
    return SimpleNamespace(
        **{
            "url": "", "token": TOKEN, "token_file": "", "ca_file": "", "folder": "Megawatch",
            "clickhouse_url": "", "reader": "reader", "reader_password": PASSWORD,
            "reader_password_file": "",
        } | changes
    )  # fmt: skip


def states(done) -> set[str]:
    return {state for state, _ in done.said.values()}


def test_the_first_run_creates_everything(fake, run):
    done = run()
    assert done.status == 0
    assert states(done) == {"created"}
    assert list(done.said) == [
        ("folder", "Megawatch"), ("data source", "megawatch-clickhouse"),
        ("dashboard", "megawatch-site"), ("dashboard", "megawatch-tenant"),
    ]  # fmt: skip
    assert "Grafana 13.2.3" in done.err
    (folder,) = fake.folders.values()
    assert folder["title"] == "Megawatch"
    stored = fake.dashboards["megawatch-site"]
    assert stored["meta"]["folderUid"] == folder["uid"]
    assert stored["dashboard"]["panels"] == page("megawatch-site")["panels"]
    assert fake.secrets["megawatch-clickhouse"] == {"password": PASSWORD}


@pytest.mark.parametrize("migrates", [False, True])
def test_the_second_run_changes_nothing(fake, run, migrates):
    """Not even where Grafana shows a stored dashboard in the form of its own version."""
    run()
    fake.migrates = migrates
    before = len(fake.writes())
    done = run()
    assert states(done) == {"unchanged"}
    assert done.status == 0
    assert len(fake.writes()) == before
    assert fake.dashboards["megawatch-site"]["dashboard"]["version"] == 1


@pytest.mark.parametrize("migrates", [False, True])
def test_only_the_dashboard_that_differs_is_updated(fake, run, pages, migrates):
    run()
    fake.migrates = migrates
    pages("megawatch-site", title="Sites")
    before = len(fake.writes())
    done = run()
    assert done.said["dashboard", "megawatch-site"][0] == "updated"
    assert len(fake.writes()) == before + 1
    assert fake.dashboards["megawatch-site"]["dashboard"]["title"] == "Sites"
    assert run().said["dashboard", "megawatch-site"][0] == "unchanged"


def test_a_dry_run_writes_nothing_and_shows_the_difference(fake, run, pages):
    done = run(dry_run=True)
    assert not fake.writes()
    assert "would be created" in done.err
    assert done.summary["dry_run"] is True
    run()
    pages("megawatch-site", title="Sites")
    before = len(fake.writes())
    done = run(dry_run=True)
    assert len(fake.writes()) == before
    lines = done.out.splitlines()
    assert "--- grafana/megawatch-site" in lines
    assert '-  "title": "Megawatch-Site",' in lines
    assert '+  "title": "Sites",' in lines
    assert "dashboard megawatch-site: would be updated" in done.err
    assert "dashboard megawatch-tenant: unchanged" in done.err


def test_what_somebody_changed_is_left_alone_unless_forced(fake, run, pages):
    run()
    fake.edit("megawatch-site", title="My own")
    done = run()
    assert done.status == 1
    state, why = done.said["dashboard", "megawatch-site"]
    assert (state, "somebody changed it in Grafana" in why) == ("refused", True)
    assert done.said["dashboard", "megawatch-tenant"][0] == "unchanged"
    assert fake.dashboards["megawatch-site"]["dashboard"]["title"] == "My own"
    done = run(dry_run=True)
    assert '-  "title": "My own",' in done.out.splitlines()
    assert run(force=True).said["dashboard", "megawatch-site"][0] == "updated"
    assert fake.dashboards["megawatch-site"]["dashboard"]["title"] == "Megawatch-Site"
    assert states(run()) == {"unchanged"}


def test_a_change_that_was_taken_back_is_no_change(fake, run):
    run()
    title = fake.dashboards["megawatch-site"]["dashboard"]["title"]
    fake.edit("megawatch-site", title="My own")
    fake.edit("megawatch-site", title=title)
    assert states(run()) == {"unchanged"}


def test_a_dashboard_of_somebody_else_with_our_uid_is_left_alone(fake, run):
    run()
    fake.edit("megawatch-site", tags=["ops"], title="Theirs")
    done = run()
    assert done.said["dashboard", "megawatch-site"] == (
        "refused", "it has not the tag megawatch: --force overwrites it",
    )  # fmt: skip
    assert fake.dashboards["megawatch-site"]["dashboard"]["title"] == "Theirs"


def test_an_edit_between_look_and_save_wins(fake, run, pages):
    run()
    pages("megawatch-site", title="Sites")

    def race(handler, asked):
        fake.edit("megawatch-site", title="A moment before")
        with pytest.raises(fake_grafana.Error) as error:
            fake.answer(asked)
        return says(error.value.code, json.dumps(error.value.body).encode())(handler, asked)

    fake.faults = [("POST /api/dashboards/db", race)]
    state, why = run(force=True).said["dashboard", "megawatch-site"]
    assert state == "refused"
    assert "somebody changed it meanwhile (The dashboard has been changed by someone else)" in why
    assert fake.dashboards["megawatch-site"]["dashboard"]["title"] == "A moment before"


def test_a_dashboard_from_provisioning_files_is_left_to_them(fake, run, pages):
    run()
    fake.dashboards["megawatch-site"]["meta"]["provisioned"] = True
    assert states(run()) == {"unchanged"}
    pages("megawatch-site", title="Sites")
    done = run(force=True)
    assert done.status == 1
    assert "provisioning files" in done.said["dashboard", "megawatch-site"][1]


def test_a_dashboard_stays_in_the_folder_into_which_somebody_moved_it(fake, run, pages):
    run()
    fake.folders["mine"] = {"uid": "mine", "title": "Mine"}
    fake.dashboards["megawatch-site"]["meta"]["folderUid"] = "mine"
    assert run().said["dashboard", "megawatch-site"] == ("unchanged", "it stays in folder 'Mine'")
    pages("megawatch-site", title="Sites")
    assert run().said["dashboard", "megawatch-site"][0] == "updated"
    assert fake.dashboards["megawatch-site"]["meta"]["folderUid"] == "mine"


def test_a_folder_that_is_there_by_name_is_used(fake, run):
    fake.folders["ops1"] = {"uid": "ops1", "title": "Operations"}
    done = run(folder="Operations")
    assert done.said["folder", "Operations"][0] == "unchanged"
    assert fake.dashboards["megawatch-site"]["meta"]["folderUid"] == "ops1"


def test_a_folder_that_somebody_renamed_is_used_and_keeps_its_name(fake, run):
    run()
    (folder,) = fake.folders.values()
    folder["title"] = "Power"
    assert states(run()) == {"unchanged"}
    assert [f["title"] for f in fake.folders.values()] == ["Power"]


def test_the_data_source_is_what_the_provisioning_file_says(fake, run):
    """Two ways to have it, one data source."""
    run(clickhouse=ClickHouse(url="http://clickhouse:8123"))
    file = mapping(DEPLOY / "grafana/provisioning/datasources/megawatch.yaml")["datasources"][0]
    made = fake.sources["megawatch-clickhouse"]
    assert {k: file[k] for k in ("name", "uid", "type", "access")} == {
        k: made[k] for k in ("name", "uid", "type", "access")
    }
    expected = file["jsonData"] | {"host": "clickhouse"}
    assert {k: v for k, v in made["jsonData"].items() if k in expected} == expected
    assert set(made["jsonData"]) - set(expected) == {"megawatch", "megawatchSecret"}
    assert set(file["secureJsonData"]) == set(made["secureJsonFields"])


@pytest.mark.parametrize(
    ("url", "host", "port", "secure"),
    [
        ("http://c", "c", 8123, False), ("https://c", "c", 8443, True),
        ("https://c:9", "c", 9, True), ("http://[::1]:1", "::1", 1, False),
    ],
)  # fmt: skip
def test_the_address_of_clickhouse_is_taken_apart(fake, run, url, host, port, secure):
    run(section=configured(clickhouse_url=url))
    fields = fake.sources["megawatch-clickhouse"]["jsonData"]
    assert (fields["host"], fields["port"], fields["secure"]) == (host, port, secure)


def test_a_password_in_the_address_of_clickhouse_is_refused(run):
    with pytest.raises(Refuse) as error:
        run(section=configured(clickhouse_url=f"http://u:{PASSWORD}@c"))
    assert PASSWORD not in str(error.value)


def test_a_data_source_follows_settings_and_password(fake, run):
    run()
    assert run(section=configured(reader="eye")).said["data source", "megawatch-clickhouse"] == (
        "updated", "",
    )  # fmt: skip
    assert fake.sources["megawatch-clickhouse"]["jsonData"]["username"] == "eye"
    done = run(section=configured(reader="eye", reader_password="new"))
    assert done.said["data source", "megawatch-clickhouse"][0] == "updated"
    assert fake.secrets["megawatch-clickhouse"] == {"password": "new"}
    assert states(run(section=configured(reader="eye", reader_password="new"))) == {"unchanged"}


def test_the_hash_of_a_password_is_of_no_use_without_the_token():
    reader = publishing.Reader(url="http://c", database="d", user="u", password=PASSWORD)
    made = [publishing.source("megawatch-x", "X", reader, key)["jsonData"] for key in "ab"]
    assert made[0]["megawatchSecret"] != made[1]["megawatchSecret"]
    assert made[0]["megawatch"] == made[1]["megawatch"]
    assert PASSWORD not in json.dumps(made)


def test_a_data_source_that_somebody_changed_is_left_alone_unless_forced(fake, run):
    run()
    fields = fake.sources["megawatch-clickhouse"]["jsonData"]
    fake.sources["megawatch-clickhouse"]["jsonData"] = {**fields, "queryTimeout": 600}
    done = run()
    assert done.status == 1
    assert "somebody changed it" in done.said["data source", "megawatch-clickhouse"][1]
    assert fake.sources["megawatch-clickhouse"]["jsonData"]["queryTimeout"] == 600
    assert run(force=True).status == 0
    assert fake.sources["megawatch-clickhouse"]["jsonData"]["queryTimeout"] == 60


def test_a_change_of_a_data_source_between_look_and_save_wins(fake, run):
    run()

    def race(handler, asked):
        fake.sources["megawatch-clickhouse"]["version"] += 1
        with pytest.raises(fake_grafana.Error) as error:
            fake.answer(asked)
        return says(error.value.code, json.dumps(error.value.body).encode())(handler, asked)

    fake.faults = [("PUT /api/datasources", race)]
    done = run(section=configured(reader="eye"))
    assert "updated by someone else" in done.said["data source", "megawatch-clickhouse"][1]
    assert fake.sources["megawatch-clickhouse"]["jsonData"]["username"] == "reader"


def test_a_data_source_of_somebody_else_with_our_uid_is_left_alone(fake, run):
    common = {"uid": "megawatch-clickhouse", "name": "Mine", "access": "proxy", "jsonData": {},
              "readOnly": False, "version": 3, "id": 1}  # fmt: skip
    fake.sources = {"megawatch-clickhouse": {**common, "type": PLUGIN}}
    assert "it was not made here" in run().said["data source", "megawatch-clickhouse"][1]
    fake.sources = {"megawatch-clickhouse": {**common, "type": "mysql"}}
    assert run(force=True).said["data source", "megawatch-clickhouse"] == (
        "refused", "it is a mysql, not one of ours",
    )  # fmt: skip
    assert not [a for a in fake.writes() if "datasources" in a.path]


def test_a_data_source_whose_name_is_taken_is_refused_and_the_rest_goes_on(fake, run):
    fake.sources["x"] = {"uid": "x", "name": "Megawatch", "type": "mysql"}
    done = run()
    assert done.status == 1
    assert (
        "409 data source with the same name" in done.said["data source", "megawatch-clickhouse"][1]
    )
    assert done.said["dashboard", "megawatch-site"][0] == "created"


def test_a_data_source_from_provisioning_files_is_left_to_them(fake, run):
    run()
    fake.sources["megawatch-clickhouse"]["readOnly"] = True
    assert run(section=configured(reader="eye")).said["data source", "megawatch-clickhouse"] == (
        "unchanged", "it comes from Grafana's provisioning files",
    )  # fmt: skip


def test_without_an_address_of_clickhouse_a_data_source_must_be_there(fake, run):
    done = run(clickhouse=ClickHouse(data="d"))
    assert done.status == 1
    assert "clickhouse_url" in done.said["data source", "megawatch-clickhouse"][1]
    run()
    assert run(clickhouse=ClickHouse(data="d")).status == 0


def test_a_missing_plugin_is_named_with_what_installs_it(fake, run):
    fake.plugins.clear()
    with pytest.raises(Refuse, match=f"grafana cli plugins install {PLUGIN}"):
        run()
    assert not fake.writes()


def test_a_wrong_token_stops_before_anything_is_written(fake, run):
    with pytest.raises(Refuse, match="the token of Grafana at"):
        run(section=configured(token="glsa_other"))
    assert not fake.writes()


def test_the_token_may_be_in_a_file(fake, run, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert run(section=configured(token="", token_file=str(tmp_path / "token"))).status == 0


def test_a_missing_right_is_said_for_each_thing_and_the_rest_goes_on(fake, run):
    fake.rights_missing = {"datasources:create"}
    done = run()
    assert done.status == 1
    assert (
        "it has not the right datasources:create"
        in done.said["data source", "megawatch-clickhouse"][1]
    )
    assert done.said["dashboard", "megawatch-site"][0] == "created"


def test_a_lost_answer_ends_it_and_the_next_run_finishes(fake, run):
    """The first save arrived, nobody heard of it: what is there is then seen to be ours."""

    def lost(handler, asked):
        fake.answer(asked)
        return fake_grafana.reset(handler, asked)

    fake.faults = [("POST /api/dashboards/db", lost)]
    with pytest.raises(Retry):
        run()
    done = run()
    assert done.status == 0
    assert done.said["dashboard", "megawatch-site"][0] == "unchanged"
    assert done.said["dashboard", "megawatch-tenant"][0] == "created"


def test_the_address_may_be_configured_and_must_be_somewhere(fake, run):
    assert run(section=configured(url=fake.url), grafana=None).status == 0
    with pytest.raises(Refuse, match="which Grafana"):
        run(grafana=None)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"uid": "x", "tags": ["megawatch"]}',
             '{"uid": "megawatch-a", "tags": []}',
             '{"uid": "megawatch-' + "a" * 31 + '", "tags": ["megawatch"]}'],
)  # fmt: skip
def test_a_file_that_is_no_dashboard_of_ours_is_refused(fake, run, text):
    (publishing.FOLDER / "odd.json").write_text(text)
    with pytest.raises(Refuse, match=r"odd\.json"):
        run()
    assert not fake.asked


def test_the_committed_dashboards_can_be_published(fake, run, monkeypatch):
    monkeypatch.undo()
    done = run()
    assert done.status == 0
    assert len(fake.dashboards) == len(list(publishing.FOLDER.glob("*.json"))) > 0
    assert states(run()) == {"unchanged"}


# -- tenants ------------------------------------------------------------------------------------


@pytest.fixture
def for_lab_a(run, tmp_path):
    (tmp_path / "secret").write_text(PASSWORD)

    def publish(**given: object):
        given = {"tenant": ["lab-a"], "password_file": [str(tmp_path / "secret")]} | given
        return run(**given)

    return publish


def test_a_tenant_gets_its_own_of_everything(fake, for_lab_a):
    done = for_lab_a()
    assert done.status == 0
    assert list(fake.folders) == [f"megawatch-tenant-{LAB_A}"]
    made = fake.sources[f"megawatch-clickhouse-{LAB_A}"]
    assert made["jsonData"]["defaultDatabase"] == f"megawatch_tenant_{LAB_A}"
    assert made["jsonData"]["username"] == f"megawatch_tenant_{LAB_A}_grafana"
    assert fake.secrets[made["uid"]] == {"password": PASSWORD}
    (stored,) = fake.dashboards.values()
    document = stored["dashboard"]
    assert document["uid"] == f"megawatch-tenant-{LAB_A}"
    assert "${ds}" not in json.dumps(document)
    assert document["panels"][0]["targets"][0]["datasource"]["uid"] == made["uid"]
    names = {v["name"]: v for v in document["templating"]["list"]}
    assert set(names) == {"tenant", "step"}
    assert names["tenant"]["type"] == "constant"
    assert names["tenant"]["query"] == str(id64("", "lab-a"))
    before = len(fake.writes())
    assert states(for_lab_a()) == {"unchanged"}
    assert len(fake.writes()) == before


@pytest.mark.parametrize("viewer", ["team:lab a & co", "user:ada"])
def test_with_enterprise_only_the_tenants_people_see_and_query_it(fake, for_lab_a, viewer):
    fake.edition = "enterprise"
    dry = for_lab_a(viewer=[viewer], dry_run=True)
    assert not fake.writes()
    assert dry.status == 0
    done = for_lab_a(viewer=[viewer])
    assert done.status == 0
    field, number = ("teamId", 7) if viewer.startswith("team") else ("userId", 3)
    own = [p for p in fake.folder_permissions[f"megawatch-tenant-{LAB_A}"] if not p["inherited"]]
    assert [(p["role"], p["permission"]) for p in own if p[field] == number] == [("", 1)]
    assert not [p for p in own if p["role"]]
    assert [p for p in own if p["userId"] == 99], "who made it keeps it"
    rights = fake.source_permissions[f"megawatch-clickhouse-{LAB_A}"]
    assert rights == [
        {"builtInRole": "Admin", "permission": "Edit"}, {field: number, "permission": "Query"},
    ]  # fmt: skip
    before = len(fake.writes())
    assert states(for_lab_a(viewer=[viewer])) == {"unchanged"}
    assert len(fake.writes()) == before


def test_what_an_administrator_granted_besides_stays(fake, for_lab_a):
    for_lab_a(viewer=["team:lab-b"])
    uid = f"megawatch-tenant-{LAB_A}"
    fake.folder_permissions[uid].append(
        {"userId": 5, "teamId": 0, "role": "", "permission": 1, "inherited": False}
    )
    fake.folder_permissions[uid].append(
        {"userId": 0, "teamId": 0, "role": "Viewer", "permission": 1, "inherited": False}
    )
    assert for_lab_a(viewer=["team:lab-b"]).said["permissions", uid][0] == "updated"
    own = fake.folder_permissions[uid]
    assert {p["userId"] for p in own} == {0, 5, 99}
    assert "Viewer" not in {p["role"] for p in own}


def test_without_enterprise_two_tenants_do_not_share_an_organisation(fake, run, tmp_path):
    (tmp_path / "secret").write_text(PASSWORD)
    done = run(tenant=["lab-a", "lab-b"], password_file=[str(tmp_path / "secret")] * 2)
    assert done.status == 1
    state, why = done.said["tenant", "lab-b"]
    assert state == "refused"
    assert f"could query data source megawatch-clickhouse-{LAB_A}" in why
    assert len(fake.sources) == len(fake.dashboards) == len(fake.folders) == 1


def test_a_tenant_is_not_put_beside_the_sites_data_source(fake, run, for_lab_a):
    run()
    before = len(fake.writes())
    assert for_lab_a().said["tenant", "lab-a"][0] == "refused"
    fake.edition = "enterprise"
    assert for_lab_a(viewer=["user:ada"]).said["tenant", "lab-a"][0] == "refused"
    assert len(fake.writes()) == before
    fake.source_permissions["megawatch-clickhouse"] = [
        {"builtInRole": "Admin", "permission": "Edit"}
    ]
    assert for_lab_a(viewer=["user:ada"]).status == 0
    assert run().status == 0


def test_the_site_is_not_published_beside_a_tenant(fake, run, for_lab_a):
    for_lab_a()
    before = len(fake.writes())
    with pytest.raises(Refuse, match="could query the whole site"):
        run()
    assert len(fake.writes()) == before


def test_with_enterprise_two_tenants_share_an_organisation(fake, run, tmp_path):
    fake.edition = "enterprise"
    (tmp_path / "secret").write_text(PASSWORD)
    done = run(
        tenant=["lab-a", "lab-b"], password_file=[str(tmp_path / "secret")] * 2,
        viewer=["team:lab a & co", "team:lab-b"], user=["a", "b"],
    )  # fmt: skip
    assert done.status == 0
    assert [s["jsonData"]["username"] for s in fake.sources.values()] == ["a", "b"]
    assert len(fake.dashboards) == 2


def test_a_right_to_set_permissions_that_is_missing_shows(fake, for_lab_a):
    fake.edition = "enterprise"
    fake.rights_missing = {"datasources.permissions:write"}
    done = for_lab_a(viewer=["user:ada"])
    assert done.status == 1
    assert "datasources.permissions:write" in done.err


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"password_file": []}, "1 --tenant, 0 --password-file"),
        ({"tenant": ["a", "a"], "password_file": ["f", "f"]}, "named twice"),
        ({"tenant": [""]}, "no name"),
        ({"tenant": ["\udc80"]}, "no Unicode"),
        ({"password_file": ["/nowhere"]}, "cannot read the secret"),
        ({"password_file": ["/dev/null"]}, "is empty"),
        ({"viewer": ["ada"]}, "team:NAME or user:LOGIN"),
        ({"viewer": ["team:"]}, "team:NAME or user:LOGIN"),
        ({"viewer": ["team:nobody"]}, "no team 'nobody'"),
        ({"viewer": ["user:ada", "user:ada"]}, "1 --tenant, 2 --viewer"),
        ({"user": ["x", "y"]}, "1 --tenant, 2 --user"),
        ({"folder": "F"}, "--folder"),
        ({"clickhouse": ClickHouse(data="d")}, "clickhouse_url"),
        ({"tenant": []}, "--password-file is about a tenant"),
    ],
)
def test_a_mistake_about_a_tenant_is_found_before_anything_is_done(fake, for_lab_a, given, part):
    with pytest.raises(Refuse, match=part):
        for_lab_a(**given)
    assert not fake.writes()


def test_without_a_page_for_tenants_it_is_said(run, for_lab_a):
    (publishing.FOLDER / "megawatch-tenant.json").unlink()
    with pytest.raises(Refuse, match="no dashboard megawatch-tenant"):
        for_lab_a()


def test_a_page_without_the_variable_is_none_for_a_tenant(fake, pages, for_lab_a):
    pages("megawatch-tenant", templating={"list": []})
    assert "no variable `tenant`" in for_lab_a().said["tenant", "lab-a"][1]
    assert not fake.dashboards


@pytest.mark.parametrize("name", ["lab-ä", "x" * 300, "a/b?c&d", "${ds}", 'q"uote'])
def test_any_name_of_a_tenant_makes_uids_that_grafana_takes(fake, for_lab_a, name):
    assert for_lab_a(tenant=[name]).status == 0
    assert states(for_lab_a(tenant=[name])) == {"unchanged"}


# -- generating ---------------------------------------------------------------------------------


def generating(**given: object) -> Namespace:
    """What the command line gives."""
    return Namespace(**{"dry_run": False, "grafana": None} | given)


def test_an_option_of_the_other_action_does_not_pass_in_silence(fake, run):
    """Whoever writes `publish --check` or `generate --dry-run` expects that nothing is written."""
    with pytest.raises(Refuse, match="--dry-run"):
        run(check=True)
    assert not fake.asked
    with pytest.raises(Refuse, match="--check"):
        command.generate(generating(dry_run=True, check=False, json=False))


@pytest.mark.parametrize("as_json", [False, True])
def test_drift_is_reported_and_mended(tmp_path, monkeypatch, capsys, as_json):
    from dashboards import generate

    def run(check: bool) -> int:
        return command.generate(generating(check=check, json=as_json))

    for function in (generate.write, generate.drift):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(generate, "documents", lambda: {"megawatch-a.json": "{}\n"})
    assert run(check=True) == 1
    assert "megawatch-a.json: is not what the pages say" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run(check=False) == 0
    assert (tmp_path / "megawatch-a.json").read_text() == "{}\n"
    assert run(check=True) == 0
    capsys.readouterr()
    (tmp_path / "megawatch-old.json").write_text("{}")
    assert run(check=True) == 1
    out = capsys.readouterr().out
    assert out == ('{"drift": ["megawatch-old.json"]}\n' if as_json else "")


@pytest.mark.parametrize(
    ("package", "part"),
    [("grafana_foundation_sdk", r"megawatch\[dev\]"), ("grafana_api", r"megawatch\[grafana\]")],
)
def test_a_package_that_is_not_installed_is_named(monkeypatch, package, part):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a)
    )
    with pytest.raises(Refuse, match=part):
        if package == "grafana_api":
            command.publish(Namespace(check=False), configured(), ClickHouse(), ManualClock())
        else:
            command.generate(generating(check=True, json=False))
