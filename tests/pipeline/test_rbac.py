"""Access control: parsed by the engine, since only a server can run it, and read closely."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Refuse
from pipeline.rbac import commented, statements
from pipeline.records import id64
from pipeline.settings import ClickHouse

SETTINGS = ClickHouse(database="watts")
VIEWS = (
    "power_seconds", "tenant_minutes", "ledger_use", "contracts", "tenants", "sites", "settled",
)  # fmt: skip
HOSTILE = [
    "Acme", "acme", "ac`me", "ac'me", 'ac"me', "a\\", "a\\`", "a\0b", "a\nDROP DATABASE watts;--",
    "a\r\nb", "*/ x /*", "-- x", "; GRANT ALL ON *.* TO x", "\u2028\u2029\x85", "Ünïcødé 🜚", "{db}",
    "$1 %s", "' OR 1", "x" * 10_000, " ", "(shared)", "default", "\x7f\x1b[31m",
]  # fmt: skip


def parsed(store, sql):
    """The statement as the engine writes it; a syntax error raises."""
    return store.query("SELECT formatQuery({sql:String})", {"sql": sql}).rows[0][0]


def bare(sql):
    """Without the lines of comment above it."""
    return re.sub(r"\A(--[^\n]*\n)*", "", sql)


def of(tenant):
    """What is there for a tenant and would not be without it."""
    common = statements(SETTINGS, [])
    return [sql for sql in statements(SETTINGS, [tenant]) if sql not in common]


def role(tenant):
    return f"watts_tenant_{id64('', tenant):016x}"


def test_every_statement_is_one_that_the_engine_can_parse(store):
    """One statement each, whatever tenants are called; the name stands in the comment alone."""
    made = statements(SETTINGS, HOSTILE)
    for sql in made:
        again = parsed(store, sql)
        assert parsed(store, bare(sql)) == again
        assert again.startswith(("CREATE ", "GRANT "))
        assert sql.isascii()
        assert ";" not in sql
    code = "\n".join(map(bare, made)).lower()
    assert not [name for name in HOSTILE if name not in (" ", "default") and name.lower() in code]


def test_a_database_of_any_name_is_quoted(store):
    """Also where roles are called after it, and in comments."""
    for database in ("a`b", "a\\", "a b", "ä", "a;b", "{db}", "--", "'"):
        for sql in statements(ClickHouse(database=database), ["Acme"]):
            assert parsed(store, sql) == parsed(store, bare(sql))


@pytest.mark.parametrize("database", ["", "a\0b", "x\ny", "x\u2028y"])
def test_a_database_that_cannot_be_named_is_refused(database):
    """A line's end would end the comment that it stands in."""
    with pytest.raises(Refuse, match="database"):
        statements(ClickHouse(database=database), [])


@given(st.text())
def test_a_comment_stays_one(text):
    """One line of printable ASCII."""
    made = commented(text)
    assert made.isascii()
    assert made.isprintable()
    assert ";" not in made


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=5))
@settings(max_examples=50, deadline=None)
def test_no_two_tenants_share_anything(names):
    """Each has its own roles, users, databases and policies, and repeating a name adds none."""
    per_tenant = [{bare(sql) for sql in of(name)} for name in names]
    for i, one in enumerate(per_tenant):
        assert all(role(names[i]) in sql for sql in one)
        assert all(not one & other for other in per_tenant[:i])
    assert statements(SETTINGS, names + names) == statements(SETTINGS, names)


def test_tenants_that_would_share_a_role_are_refused(monkeypatch):
    """Two names of one id; and a name that is none."""
    monkeypatch.setattr("pipeline.rbac.id64", lambda scope, key: 7)
    with pytest.raises(Refuse, match="'a' and 'b' have the same id"):
        statements(SETTINGS, ["a", "b"])
    monkeypatch.undo()
    for name in ("", "\ud800"):
        with pytest.raises(Refuse):
            statements(SETTINGS, ["a", name])


def test_a_tenants_role_reads_its_views_and_nothing_else():
    """One grant, replacing whatever was granted before; no table, no source, no other role."""
    grants = [bare(sql) for sql in of("Acme") if bare(sql).startswith("GRANT")]
    to = re.compile(r"^GRANT (.+) TO `([^`]+)` WITH REPLACE OPTION$")
    matches = [match for sql in grants if (match := to.match(sql))]
    assert len(matches) == len(grants)
    found = {match[2]: match[1].split(", SELECT") for match in matches}
    name = role("Acme")
    assert set(found) == {name, f"{name}_definer"}
    assert [f"SELECT{one.removeprefix('SELECT')}" for one in found[name]] == [
        f"SELECT ON `{name}`.{view}" for view in VIEWS
    ]


def test_nobody_is_granted_tables_of_others_or_sources():
    """Over all statements: whatever is granted lies in a named database, or is an engine."""
    for sql in statements(SETTINGS, HOSTILE):
        if bare(sql).startswith("GRANT"):
            assert not re.search(
                r"\*\.\*|\bALL\b|GRANT OPTION|\bREAD\b|\bURL\b|REMOTE|dictGet", sql
            )
            names = set(re.findall(r" ON ([^ ,]+)", sql))
            tenant = r"`watts_tenant_[0-9a-f]{16}`\.\w+"
            allowed = rf"`watts`\.(\*|\w+)|system\.parts|\w*MergeTree|{tenant}"
            assert all(re.fullmatch(allowed, name) for name in names)


def test_everything_that_a_tenant_sees_is_filtered_by_its_id_alone():
    """Views and policies; no other number of that size stands in its statements."""
    for name in HOSTILE:
        number = id64("", name)
        for sql in map(bare, of(name)):
            if "VIEW" in sql and ".settled " not in sql:
                assert re.search(rf" WHERE (tenant|tenant_id|id) = {number}\b", sql)
                assert len(re.findall(r"\bWHERE ", sql)) == len(re.findall(r"\bSELECT ", sql))
            if "ROW POLICY" in sql:
                assert re.search(rf" USING (tenant|tenant_id) = {number} AS RESTRICTIVE TO ", sql)
            assert set(re.findall(r"\d{15,}", re.sub(r"_tenant_\w+|'0+'", "", sql))) <= {
                str(number)
            }


def test_a_view_reads_as_a_definer_who_is_bound_by_the_same_policy():
    """A condition outside a view can be evaluated before the one inside, but not before a policy."""
    made = list(map(bare, of("Acme")))
    definer = f"`{role('Acme')}_definer`"
    views = [sql for sql in made if "VIEW" in sql]
    read = {table for sql in views for table in re.findall(r"SELECT \* FROM `watts`\.(\w+)", sql)}
    assert read == set(VIEWS)
    (grant,) = [sql for sql in made if sql.startswith("GRANT") and f" TO {definer} " in sql]
    tables = set(re.findall(r" ON `watts`\.(\w+)", grant))
    for sql in views:
        assert f" DEFINER = {definer} SQL SECURITY DEFINER AS SELECT" in sql
    bound = {
        match[1]
        for sql in made
        if (match := re.search(r"ON `watts`\.(\w+) FOR SELECT .* RESTRICTIVE TO (.*)$", sql))
        and match[2] == f"`{role('Acme')}`, {definer}"
    }
    views_of_site = {"ledger_use", "tenants", "sites", "settled"}
    without_tenants = {"ledger_closes", "inventory", "ingest_log"}
    assert tables - views_of_site - without_tenants <= bound
    for table in without_tenants:
        # Of tables that no policy divides, only columns that say nothing about use.
        assert re.search(rf"SELECT\([a-z_, ]+\) ON `watts`\.{table}\b", grant)


def test_every_table_with_a_tenant_has_its_policies(store):
    """By the tables of a real store: one policy that lets all read, and one of each tenant."""
    rows = store.query(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase()"
        " AND name IN ('tenant', 'tenant_id') AND type = 'UInt64' AND table IN"
        " (SELECT name FROM system.tables WHERE engine LIKE '%MergeTree')"
    ).rows
    assert {"gpu_samples", "gpu_latest", "allocations", "contracts"} < {table for table, _ in rows}
    made = statements(SETTINGS, ["Acme"])
    both = f"`{role('Acme')}`, `{role('Acme')}_definer`"
    for table, column in rows:
        policies = [sql for sql in made if f"ON `watts`.{table} FOR SELECT" in sql]
        assert [re.sub(r"^.* USING ", "", sql) for sql in policies] == [
            "1 AS PERMISSIVE TO ALL",
            f"{column} = {id64('', 'Acme')} AS RESTRICTIVE TO {both}",
        ]


def asked(store, *tenants):
    """What each tenant's views give: {(tenant, view): rows}; run here without their definers."""
    made = map(bare, statements(ClickHouse(database="default"), tenants))
    found = {}
    for sql in made:
        if named := re.match(r"CREATE OR REPLACE VIEW `default_tenant_(\w{16})`\.(\w+) ", sql):
            text = sql.split(" SECURITY DEFINER AS ")[1]
            found[named[1], named[2]] = store.query(text).dicts()
    return {
        (name, view): found[f"{id64('', name):016x}", view] for name in tenants for view in VIEWS
    }


def test_the_views_give_a_tenants_rows(store):
    """Of two tenants, one; of three closes, the last that counts."""
    ids = {"tenant": [id64("", "Acme"), id64("", "Rival")]}
    for table in ("power_seconds", "tenant_minutes"):
        store.insert(table, {"site": [1, 1], "ts": [60, 60], **ids})
    for version, state in ((1, "closed"), (2, "closed"), (3, "failed")):
        store.insert("ledger_holders", {"site": [1, 1], "ts": [900] * 2, **ids,
                                        "version": [version] * 2})  # fmt: skip
        store.command(
            "INSERT INTO ledger_closes (site, ts, version, state)"
            f" VALUES (1, toDateTime(900, 'UTC'), {version}, '{state}')"
        )
    found = asked(store, "Acme", "Nobody")
    for view in ("power_seconds", "tenant_minutes", "ledger_use"):
        assert [row["tenant"] for row in found["Acme", view]] == [id64("", "Acme")]
        assert found["Nobody", view] == []
    assert [row["version"] for row in found["Acme", "ledger_use"]] == [2]
    assert len(found["Nobody", "settled"]) == 1


def test_the_views_give_a_tenants_names_and_terms(store):
    """Also of a tenant that only leases, or only runs; sites of others have no name here."""
    names = ["Acme", "Rival"]
    store.insert("contracts", {"site": ["north", "south"], "tenant": names,
                               "tenant_id": [id64("", name) for name in names]})  # fmt: skip
    store.insert("allocations", {"site": ["east"], "tenant": ["Acme"], "site_id": [id64("east")],
                                 "tenant_id": [id64("", "Acme")]})  # fmt: skip
    sites = ["north", "south", "east", "west"]
    store.insert("inventory", {"site": sites, "site_id": [id64(site) for site in sites],
                               "gpu_id": [1, 2, 3, 4]})  # fmt: skip
    found = asked(store, "Acme", "Rival", "Nobody")
    assert {row["name"] for row in found["Acme", "sites"]} == {"north", "east"}
    assert [row["id"] for row in found["Rival", "sites"]] == [id64("south")]
    for name in names:
        assert [row["tenant"] for row in found[name, "contracts"]] == [name]
        assert [(r["id"], r["name"]) for r in found[name, "tenants"]] == [(id64("", name), name)]
    assert all(found["Nobody", view] == [] for view in VIEWS if view != "settled")


def test_each_statement_names_only_what_is_there():
    """Roles, users and databases are made before they are granted, bound or filled."""
    made = {"system", "watts"}
    for sql in map(bare, statements(SETTINGS, ["Acme", "Rival"])):
        kind = re.match(r"CREATE (ROLE|USER|DATABASE) IF NOT EXISTS ", sql)
        names = re.findall(r"`([^`]+)`", sql)
        if kind:
            made.update(names)
            continue
        used = re.findall(r"(?:TO |DEFINER = )((?:`[^`]+`(?:, )?)+)", sql)
        spaces = re.findall(r"(?:VIEW|ON|FROM) `([^`]+)`\.", sql)
        assert {name for one in used for name in re.findall(r"`([^`]+)`", one)} <= made
        assert set(spaces) <= made
    assert {role("Acme"), f"{role('Rival')}_definer", "watts_operator"} <= made


def test_users_and_passwords():
    """The definers cannot log in; people's users are left to people, in a comment."""
    text = statements(SETTINGS, ["Acme"])
    users = [bare(sql) for sql in text if "CREATE USER IF" in sql]
    assert [sql.split(" IDENTIFIED WITH ") for sql in users] == [
        [
            f"CREATE USER IF NOT EXISTS `{role('Acme')}_definer`",
            f"sha256_hash BY '{'0' * 64}' HOST NONE DEFAULT ROLE NONE GRANTEES NONE",
        ]
    ]
    joined = "\n".join(text)
    assert "no_password" not in joined
    for line in joined.splitlines():
        if "sha256_password" in line:
            assert line.startswith("-- CREATE USER name IDENTIFIED WITH sha256_password BY '...'")
    assert f"DEFAULT ROLE `{role('Acme')}` DEFAULT DATABASE `{role('Acme')}`" in joined


def test_limits_hold_and_cannot_be_changed():
    """Each tenant has its profile and its quota; settings are constants, read-only first.

    But for the time: Grafana's plugin sends its own with every query, which a constant refuses.
    """
    made = list(map(bare, of("Acme")))
    (profile,) = [sql for sql in made if "PROFILE" in sql]
    (quota,) = [sql for sql in made if "QUOTA" in sql]
    (values,) = re.findall(r" SETTINGS (.*) TO ", profile)
    constants = [value for value in values.split(", ") if value.endswith(" CONST")]
    assert set(values.split(", ")) - set(constants) == {
        "max_execution_time = 60 MIN 1 MAX 120 CHANGEABLE_IN_READONLY"
    }
    for name in ("readonly = 1", "max_execution_time", "max_memory_usage", "max_rows_to_read"):
        assert name in values
    for name in ("queries", "read_rows", "execution_time"):
        assert re.search(rf"\b{name} = [1-9]", quota)
    for sql in (profile, quota):
        assert sql.endswith(f" TO `{role('Acme')}`")


def test_the_sites_own_roles():
    """The writer cannot change tables, the operator cannot change anything."""
    grants = {
        match[2]: match[1]
        for sql in statements(SETTINGS, [])
        if (match := re.search(r"GRANT (.*) TO `(\w+)`", sql))
    }
    assert grants["watts_writer"] == "SELECT, INSERT ON `watts`.*"
    assert grants["watts_operator"] == "SELECT ON `watts`.*, SELECT ON system.parts"
    assert grants["watts_owner"].startswith("SELECT, INSERT, CREATE TABLE, CREATE VIEW, ")
    assert "TABLE ENGINE ON ReplacingMergeTree" in grants["watts_owner"]
    profiles = [sql for sql in statements(SETTINGS, []) if "PROFILE" in sql]
    assert len(profiles) == 1
    assert "readonly = 1 CONST" in profiles[0]
    assert profiles[0].endswith(" TO `watts_operator`")
