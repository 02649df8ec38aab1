"""The table of XIDs: no code twice, every simulated fault known, SQL and Python agree."""

import pytest

from agents.faults import KINDS, RANDOM_FAULTS
from pipeline import xids


def test_no_code_stands_twice():
    """A repeated code would hide an entry."""
    assert len(xids.XIDS) == len(xids._LIST)
    assert all(code == xid.code for code, xid in xids.XIDS.items())


@pytest.mark.parametrize(
    ("code", "tier"),
    [(13, "application"), (31, "application"), (43, "application"), (45, "application"),
     (63, "hardware"), (94, "hardware"), (92, "hardware"), (154, "driver"),
     (48, "fatal"), (62, "fatal"), (64, "fatal"), (74, "fatal"), (79, "fatal"), (95, "fatal"),
     (119, "fatal"), (120, "fatal"), (144, "fatal"), (150, "fatal"), (143, "fatal")],
)  # fmt: skip
def test_tiers(code, tier):
    """Application XIDs wake nobody; those that need a reset now are fatal."""
    assert xids.XIDS[code].tier == tier
    assert [t for t in xids.TIERS if code in xids.codes(t)] == [tier]


def test_every_entry_says_something():
    """A name short enough for a table, and an action that is a sentence."""
    for xid in xids.XIDS.values():
        assert 0 < len(xid.name) <= 30, xid
        assert xid.action.endswith("."), xid
        assert len(xid.action) <= 100, xid


def test_tiers_share_out_all_codes():
    """Each code is in one tier."""
    shared = [code for tier in xids.TIERS for code in xids.codes(tier)]
    assert sorted(shared) == sorted(xids.XIDS)


def test_the_simulators_xids_are_listed():
    """What the demonstration shows is named."""
    said = {code for does in KINDS.values() for kind, code in does.events if kind == "xid"}
    said |= {code for _, kind, code, _ in RANDOM_FAULTS if kind == "xid"}
    assert said <= xids.XIDS.keys()


@pytest.mark.parametrize("field", ["name", "tier", "action"])
def test_sql_says_the_same(store, field):
    """Every code up to 300 as the table has it; apostrophes survive."""
    sql = xids.sql(field, "toUInt32(number)")
    found = store.query(f"SELECT number, {sql} FROM numbers(300) ORDER BY number").rows
    assert [tuple(row) for row in found] == [
        (n, getattr(xids.XIDS[n], field) if n in xids.XIDS else xids.UNLISTED) for n in range(300)
    ]
