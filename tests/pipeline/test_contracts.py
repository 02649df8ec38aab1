"""Contracts: read exactly or refused, matched as the shell would, never two tenants on one GPU."""

import fnmatch
import io
import json
import tomllib
import zoneinfo
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import rows
from pipeline.clock import ManualClock
from pipeline.commands import Context
from pipeline.errors import Refuse
from pipeline.holders import FOREVER_MS
from pipeline.ledger import contract_import, contract_store
from pipeline.ledger.contracts import (
    Contract,
    Lease,
    Place,
    Selector,
    conflicts,
    leases,
    overlaps,
    parse,
)
from pipeline.records import Gpu, Inventory, id64
from pipeline.settings import Settings, Site
from pipeline.store import Store

HOUR = 3_600_000
EXAMPLE = Path(__file__).parents[2] / "deploy" / "contracts.example.toml"
GOOD = {
    "tenant": '"acme"', "select": '[{hall = "A"}]', "timezone": '"Europe/Berlin"',
    "from": "2026-03-29", "contracted_gpus": "8", "contracted_kw": "10",
    "price_per_gpu_hour": '"2.10"', "price_per_kwh": "0.185", "currency": '"EUR"',
    "availability_pct": "99.5",
}  # fmt: skip


def toml(**changes: str | None) -> str:
    """A contract; `begin` is its from, None leaves a key out."""
    changes = {{"begin": "from"}.get(key, key): value for key, value in changes.items()}
    lines = [f"{key} = {value}" for key, value in (GOOD | changes).items() if value is not None]
    return "\n".join(["[[contract]]", *lines, ""])


def read(text: str, asserted_at_ms: int = 0) -> list[Contract]:
    return parse(text, "c.toml", "north", asserted_at_ms)


def one(**changes: str | None) -> Contract:
    (found,) = read(toml(**changes))
    return found


def refusal(text: str) -> str:
    with pytest.raises(Refuse) as error:
        read(text)
    found = str(error.value)
    assert "\n" not in found
    assert found.startswith("c.toml")
    return found


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


# What a file says.


def test_the_example_is_a_contract_with_every_key():
    """What the documentation shows can be imported."""
    text = EXAMPLE.read_text()
    (found,) = parse(text, "example", "elsewhere", 7)
    assert found == Contract(
        tenant="acme", site="site",
        selectors=(
            Selector(hall=("A",), rack=("r01", "r02*")),
            Selector(hall=("B",), row=("3",), gpus=(0, 4, 5, 6, 7)),
            Selector(node=("n[0-9]*",), gpus=(0, 1, 2, 3)),
        ),
        timezone="Europe/Berlin", from_ms=ms("2026-03-29T00:00+01:00"),
        until_ms=ms("2027-03-29T00:00+02:00"), contracted_gpus=512, contracted_kw=Decimal(640),
        price_per_gpu_hour=Decimal("2.1"), price_per_kwh=Decimal("0.185"), currency="EUR",
        availability_pct=Decimal("99.5"), pue=Decimal("1.25"), asserted_at_ms=7,
    )  # fmt: skip
    (table,) = tomllib.loads(text)["contract"]
    assert table.keys() == GOOD.keys() | {"site", "until", "pue"}


def test_what_may_be_left_out():
    """The site is the configured one, the end is open, no PUE is declared."""
    found = one()
    assert (found.site, found.until_ms, found.pue) == ("north", None, None)
    assert one(site='"south"').site == "south"


def test_selectors_have_one_form_however_they_are_written():
    """Or else the same contract would be another one."""
    forms = [
        '[{rack = ["r2", "r1"], gpus = "0-2"}]', '[{gpus = [2, "0,1"], rack = ["r1", "r2", "r1"]}]',
        '["rack=r1,r2 gpus=0-2"]', '["gpus=2 rack=r2 rack=r1 gpus=0-1", "rack=r2,r1 gpus=0,1,2"]',
    ]  # fmt: skip
    found = {one(select=form).key for form in forms}
    assert len(found) == 1
    assert one().selectors[0].text == '{"hall":["A"]}'
    assert one(select='["node=b", "node=a"]') == one(select='[{node = "a"}, {node = "b"}]')


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (toml(tenant=None), ("contract 1: tenant is missing", "write a printable name")),
        (toml(currency=None), ("contract 1 ('acme'): currency is missing", '"EUR"')),
        (toml(price='"1"'), ("unknown name 'price', did you mean 'price_per_",)),
        (toml(tennant='"x"'), ("unknown name 'tennant', did you mean 'tenant'?",)),
        (toml(zzz="1"), ("unknown name 'zzz', valid are tenant, site, select",)),
        ("[[contracts]]\n", ("unknown name 'contracts', did you mean 'contract'?",)),
        ("[contract]\n", ("write each as a [[contract]] table",)),
        ("contract = []", ("write each as a [[contract]] table",)),
        ("contract = [1]", ("contract 1: 1 is no table", "[[contract]]")),
        ("", ("write each as a [[contract]] table",)),
        ("[[contract]\n", ("c.toml is not TOML",)),
        ("a = " + "9" * 5000, ("c.toml is not TOML",)),
        ("a = 1e" + "9" * 50, ("c.toml is not TOML",)),
        ("a = " + "[" * 5000, ("c.toml is not TOML",)),
        (toml(contracted_gpus="0x" + "f" * 5000), ("contracted_gpus = a number of thousands",)),
        (toml(tenant='" acme"'), ("tenant = ' acme' is wrong",)),
        (toml(tenant='""'), ("tenant = '' is wrong",)),
        (toml(tenant=r'"a\nb"'), (r"tenant = 'a\nb' is wrong", "printable")),
        (toml(tenant="5"), ("contract 1: tenant = 5 is wrong",)),
        (toml(timezone='"Mars/Olympus"'), ("timezone = 'Mars/Olympus'", "Europe/Berlin")),
        (toml(timezone='"../../etc/passwd"'), ("timezone = ", "IANA")),
        (toml(timezone="1"), ("timezone = 1",)),
        (toml(begin='"2026-03-29"'), ("from = '2026-03-29' is wrong", "without quotes")),
        (toml(begin="10:00:00"), ("from = 10:00:00 is wrong",)),
        (toml(begin="1999-01-01"), ("from = 1999-01-01 is no time of 2010 to 2099",)),
        (toml(begin="0001-01-01"), ("from = 0001-01-01",)),
        (toml(until="9999-12-31"), ("until = 9999-12-31",)),
        (toml(until="9999-12-31T23:59:59-23:59"), ("until = 9999-12-31",)),
        (toml(until="2026-03-28"), ("until = 2026-03-28 is before from", "withdraw")),
        (toml(begin="2026-03-29T02:30:00"), ("from = 2026-03-29T02:30:00", "never", "offset")),
        (toml(until="2026-10-25T02:30:00"), ("until = 2026-10-25T02:30:00", "twice", "offset")),
        (toml(contracted_gpus="0"), ("contracted_gpus = 0 is wrong", "whole number")),
        (toml(contracted_gpus="true"), ("contracted_gpus = True",)),
        (toml(contracted_gpus="8.0"), ("contracted_gpus = 8.0",)),
        (toml(contracted_gpus="4294967296"), ("contracted_gpus = 4294967296",)),
        (toml(contracted_kw="-1"), ("contracted_kw = -1",)),
        (toml(contracted_kw="0.0001"), ("contracted_kw = 0.0001", "at most 3 decimals")),
        (toml(contracted_kw="1e-999999"), ("contracted_kw = 1E-999999",)),
        (toml(contracted_kw="1e999999"), ("contracted_kw = 1E+999999",)),
        (toml(price_per_kwh="nan"), ("price_per_kwh = NaN",)),
        (toml(price_per_kwh="inf"), ("price_per_kwh = Infinity",)),
        (toml(price_per_kwh='"sNaN"'), ("price_per_kwh = 'sNaN'",)),
        (toml(price_per_kwh='"1,5"'), ("price_per_kwh = '1,5'",)),
        (toml(price_per_kwh='"٣"'), ("price_per_kwh = '٣'",)),
        (toml(price_per_kwh="[1]"), ("price_per_kwh = [1]",)),
        (toml(price_per_kwh="true"), ("price_per_kwh = True",)),
        (toml(price_per_gpu_hour="0.0000001"), ("price_per_gpu_hour = 1E-7", "6 decimals")),
        (toml(price_per_gpu_hour="1000000000.1"), ("price_per_gpu_hour = 1000000000.1",)),
        (toml(currency='"eur"'), ("currency = 'eur'", '"EUR"')),
        (toml(currency="978"), ("currency = 978",)),
        (toml(availability_pct="100.1"), ("availability_pct = 100.1",)),
        (toml(pue="0.9"), ("pue = 0.9", "as 1.25")),
        (toml(select="[]"), ("select = [] is wrong",)),
        (toml(select='{hall = "A"}'), ("select = {'hall': 'A'} is wrong", "a list of selectors")),
        (toml(select="[{}]"), ("select 1 = {} is no selector", '{node = "*"}')),
        (toml(select='[{node="a"}, 5]'), ("select 2 = 5 is no selector",)),
        (toml(select='[" "]'), ("select 1 = ' ' is no selector",)),
        (toml(select='[{hal = "A"}]'), ("select 1: unknown name 'hal', did you mean 'hall'?",)),
        (toml(select='["A"]'), ("select 1: unknown name 'A', valid are site, hall",)),
        (toml(select='["hall="]'), ("select 1: hall = [''] is wrong",)),
        (toml(select="[{hall = []}]"), ("select 1: hall = [] is wrong",)),
        (toml(select="[{hall = [1]}]"), ("select 1: hall = [1] is wrong",)),
        (toml(select='[{hall = [["A"]]}]'), ("select 1: hall = [['A']] is wrong",)),
        (toml(select="[{gpus = []}]"), ("select 1: gpus = [] is wrong", "NVML")),
        (toml(select="[{gpus = -1}]"), ("gpus = -1 is wrong",)),
        (toml(select="[{gpus = true}]"), ("gpus = True is wrong",)),
        (toml(select='[{gpus = "3-1"}]'), ("gpus = '3-1' is wrong",)),
        (toml(select='[{gpus = "0-"}]'), ("gpus = '0-' is wrong",)),
        (toml(select='[{gpus = "0-99999999999"}]'), ("gpus = '0-99999999999' is wrong",)),
        (toml() + toml(pue='"x"'), ("contract 2 ('acme'): pue = 'x'",)),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_place_the_value_and_the_fix(text, parts):
    """Never a traceback, never a guess."""
    found = refusal(text)
    assert all(part in found for part in parts), found


@given(st.decimals(0, 10**9, places=6), st.booleans())
def test_amounts_are_exact(price, quoted):
    """No binary float comes between the file and the statement."""
    text = f'"{price}"' if quoted else f"{price}"
    found = one(price_per_kwh=text).price_per_kwh
    assert found == Decimal(f"{price}")
    assert "E" not in str(found)
    assert not str(found).endswith(".0")


pieces = st.sampled_from(
    [
        *(f"{key} = {value}\n" for key, value in GOOD.items()), "[[contract]]\n", "[", "]", "{", "}",
        "=", "'", '"', '"""', "\\", "\n", ",", ".", "select", "from", "until", "gpus", "hall", "nan",
        "2026-10-25T02:30:00", "0001-01-01", "1e9", "0x", "-", "true", "#", "\ud800", "\0",
    ]
)  # fmt: skip
values = st.recursive(
    st.one_of(
        st.integers().map(str), st.floats().map(str), st.sampled_from(["true", "10:00:00", "inf"]),
        st.dates().map(str), st.datetimes().map(datetime.isoformat), st.text().map(json.dumps),
        st.sampled_from(list(GOOD.values())),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.dictionaries(
            st.sampled_from(["hall", "gpus", "node", "x"]), inner, max_size=3
        ).map(lambda d: "{" + ", ".join(f"{k} = {v}" for k, v in d.items()) + "}"),
    ),
    max_leaves=5,
)  # fmt: skip
KEYS = [*GOOD, "until", "pue", "site"]
hostile = st.one_of(
    st.lists(pieces, max_size=15).map("".join),
    st.text(),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=3).map(lambda d: toml(**d)),
)


@given(hostile)
def test_any_text_is_contracts_or_refused(text):
    """And the refusal is a sentence; what is read keeps its promises."""
    try:
        found = read(text)
    except Refuse as error:
        assert "\n" not in str(error)
        return
    for contract in found:
        assert contract.selectors
        assert contract.until_ms is None or contract.until_ms >= contract.from_ms
        assert 1 <= contract.contracted_gpus < 1 << 32
        assert min(contract.contracted_kw, contract.price_per_kwh) >= 0


# Time.


@pytest.mark.parametrize(
    ("begin", "until", "hours"),
    [
        ("2026-03-29", "2026-03-30", 23),
        ("2026-10-25", "2026-10-26", 25),
        ("2026-03-28", "2026-03-29", 24),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", 1),
        ("2026-03-29T01:59:59.999", "2026-03-29T03:00:00", 0.001 / 3600),
        ("2026-03-29 12:00:00", "2026-03-29T10:00:00Z", 0),
    ],
)
def test_days_are_as_long_as_they_are_in_the_contracts_time_zone(begin, until, hours):
    """23 and 25 hours where clocks change."""
    found = one(begin=begin, until=until)
    assert found.until_ms is not None
    assert found.until_ms - found.from_ms == round(hours * HOUR)


def test_where_clocks_change_at_midnight_the_day_begins_at_its_first_instant():
    """Cairo skips midnight, Havana shows it twice."""
    skipped = one(begin="2024-04-26", timezone='"Africa/Cairo"')
    assert skipped.from_ms == ms("2024-04-26T01:00+03:00")
    twice = one(begin="2024-11-03", timezone='"America/Havana"')
    assert twice.from_ms == ms("2024-11-03T00:00-04:00")


@given(
    st.dates(date(2010, 1, 2), date(2037, 1, 1)),
    st.sampled_from(sorted(zoneinfo.available_timezones())),
)
def test_a_day_begins_where_the_one_before_ends(day, zone):
    """The first instant of a date, in every time zone."""
    at_ms = one(begin=day.isoformat(), timezone=f'"{zone}"').from_ms
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    local = zoneinfo.ZoneInfo(zone)
    assert at.astimezone(local).date() >= day
    assert (at - timedelta(milliseconds=1)).astimezone(local).date() < day


# Leases.

BASE = one()


def contract(tenant: str, selectors: list[Selector], begin: int, until: int | None) -> Contract:
    return replace(
        BASE, tenant=tenant, site="s", selectors=tuple(selectors), from_ms=begin, until_ms=until
    )


names = st.text("ab1.-]\n", max_size=3)
globs = st.text("ab1*?[]!-^.&|~", min_size=1, max_size=5)
some = st.one_of(st.just(()), st.lists(globs, min_size=1, max_size=2).map(tuple))
selectors = st.builds(
    Selector, site=st.sampled_from([(), ("s",), ("t",), ("*",)]), hall=some, row=some, rack=some,
    node=some, gpus=st.sampled_from([(), (0,), (1, 2)]),
)  # fmt: skip
times = st.integers(0, 20)
ends = st.one_of(st.none(), st.integers(0, 21))
placed = st.builds(
    Place, st.sampled_from("st"), names, names, names, names, st.integers(0, 2), st.integers(2, 5),
    times, ends,
)  # fmt: skip
signed = st.builds(
    contract, st.sampled_from(["a", "b", "c"]), st.lists(selectors, min_size=1, max_size=3), times,
    ends,
)  # fmt: skip


def naive(contracts: list[Contract], places: list[Place]) -> list[Lease]:
    """Every contract against every place, each condition by itself."""
    out = []
    for number, c in enumerate(contracts):
        for p in places:
            selected = any(
                all(
                    not getattr(s, level)
                    or any(fnmatch.fnmatchcase(getattr(p, level), g) for g in getattr(s, level))
                    for level in ("site", "hall", "row", "rack", "node")
                )
                and (not s.gpus or p.gpu_index in s.gpus)
                for s in c.selectors
            )
            begin = max(c.from_ms, p.from_ms)
            until = min(FOREVER_MS if x.until_ms is None else x.until_ms for x in (c, p))
            if selected and p.site == c.site and begin < until:
                out.append(Lease(p.gpu, begin, until, c.tenant, number))
    return out


@given(st.lists(signed, max_size=4), st.lists(placed, max_size=8))
def test_leases_are_what_a_search_place_by_place_finds(contracts, places):
    """For any globs, also strange ones, and any intervals."""
    assert leases(contracts, places) == naive(contracts, places)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("n1", {"n1"}), ("n[0-9]", {"n1", "n2"}), ("n?", {"n1", "n2", "nx"}), ("N1", set()),
        ("n[!0-9]", {"nx"}), ("*", {"n1", "n2", "nx", "n[1]", ""}), ("n[[]1]", {"n[1]"}),
    ],
)  # fmt: skip
def test_a_glob_is_as_in_the_shell(pattern, found):
    """Upper and lower case differ, and a name with brackets is no pattern of itself."""
    stood = ["n1", "n2", "nx", "n[1]", ""]
    places = [Place("s", "", "", "", n, 0, at, 0, None) for at, n in enumerate(stood, 2)]
    have = leases([contract("a", [Selector(node=(pattern,))], 0, None)], places)
    assert {stood[lease.gpu - 2] for lease in have} == found


@given(selectors)
def test_a_selector_is_its_text(selector):
    """As the store keeps it."""
    assume(selector != Selector())
    assert contract_store._selector(selector.text) == selector


@given(
    st.lists(
        st.builds(
            lambda gpu, begin, length, tenant, n: Lease(gpu, begin, begin + length, tenant, n),
            st.integers(2, 4), times, st.integers(1, 6), st.sampled_from("abc"), st.integers(0, 3),
        ),
        max_size=10,
    )
)  # fmt: skip
def test_conflicts_are_found_where_tenants_overlap_and_only_there(found):
    """With the number of GPUs and the first overlap."""
    want: dict[tuple[str, str], dict[int, int]] = {}
    for x in found:
        for y in found:
            begin = max(x.from_ms, y.from_ms)
            both = x.gpu == y.gpu and begin < min(x.until_ms, y.until_ms)
            if x.tenant < y.tenant and both:
                of = want.setdefault((x.tenant, y.tenant), {})
                of[x.gpu] = min(of.get(x.gpu, begin), begin)
    have = overlaps(found, lambda lease: lease.tenant)
    assert {pair: (both.gpus, both.from_ms) for pair, both in have.items()} == {
        pair: (len(gpus), min(gpus.values())) for pair, gpus in want.items()
    }
    assert len(conflicts(found)) == len(want)


def test_a_conflict_is_a_sentence():
    """Both tenants, how many GPUs, when first; what only touches is none."""
    t = ms("2026-03-29T00:00+00:00")
    found = [
        *(Lease(gpu, t, FOREVER_MS, "a", 0) for gpu in (2, 3)),
        *(Lease(gpu, t + gpu * HOUR, FOREVER_MS, "b", 1) for gpu in (2, 3)),
        Lease(2, t - HOUR, t, "c", 2), Lease(4, t, t + HOUR, "c", 2),
        Lease(4, t, t + 2 * HOUR, "d", 3),
        # A short lease within a long one of the same tenant does not hide the long one.
        Lease(5, t, t + 9 * HOUR, "e", 4), Lease(5, t + HOUR, t + 2 * HOUR, "e", 5),
        Lease(5, t + 3 * HOUR, FOREVER_MS, "f", 6),
    ]  # fmt: skip
    assert conflicts(found) == [
        "tenants 'a' and 'b' both lease 2 GPUs, first from 2026-03-29T02:00:00Z until further notice",
        "tenants 'c' and 'd' both lease 1 GPU, first from 2026-03-29T00:00:00Z until 2026-03-29T01:00:00Z",
        "tenants 'e' and 'f' both lease 1 GPU, first from 2026-03-29T03:00:00Z until 2026-03-29T09:00:00Z",
    ]


# The store.

NOW = ms("2026-06-01T00:00+00:00")


def test_contracts_come_back_from_the_store_as_they_were_read(store: Store):
    """To the last decimal; per site or all."""
    asked = [
        *read(toml(price_per_kwh="0.123456", pue='"1.0001"', until="2027-01-01"), NOW),
        *read(toml(tenant='"Zoë \'\\\\"', site='"south"', contracted_kw='"999999999.999"'), NOW),
        *read(toml(select='[{row = ["a b", "c,d"]}, "node=n[!0]*"]', price_per_kwh="0"), NOW),
    ]
    assert contract_store.write(store, asked) == asked
    assert set(contract_store.read(store)) == set(asked)
    assert contract_store.read(store, "south") == [asked[1]]
    assert contract_store.read(store, "nowhere") == []
    amounts = store.query(
        "SELECT toString(price_per_kwh), toString(pue) FROM contracts WHERE pue IS NOT NULL"
    )
    assert list(amounts.rows) == [("0.123456", "1.0001")]


def test_a_correction_is_a_later_assertion_and_the_same_again_is_none(store: Store):
    """What was believed before stays; also where the clock has stepped back."""
    first = one()
    assert contract_store.write(store, [replace(first, asserted_at_ms=NOW)])
    assert not contract_store.write(store, [replace(first, asserted_at_ms=NOW + 5)])
    dearer = replace(first, price_per_kwh=Decimal("0.2"), asserted_at_ms=NOW - HOUR)
    assert contract_store.write(store, [dearer]) == [replace(dearer, asserted_at_ms=NOW + 1)]
    withdrawn = replace(dearer, until_ms=dearer.from_ms, asserted_at_ms=NOW + 9)
    contract_store.write(store, [withdrawn])
    store.command("OPTIMIZE TABLE contracts FINAL")
    assert contract_store.read(store) == [withdrawn]
    told = store.query("SELECT price_per_kwh, until_ts FROM contracts ORDER BY asserted_at").rows
    assert [(price, end is None) for price, end in told] == [
        (Decimal("0.185"), True), (Decimal("0.2"), True), (Decimal("0.2"), False),
    ]  # fmt: skip


def stock(store: Store, hall: str, node: str, begin: int = 0, until: int | None = None) -> None:
    """A node of 8 GPUs in the inventory of site north."""
    record = Inventory(
        site="north", node=node, hall=hall, rack="r1", from_ms=begin or ms("2026-01-01T00:00Z"),
        until_ms=until, gpus=tuple(Gpu(n, f"{node}/{n}") for n in range(8)),
    )  # fmt: skip
    for table, block in rows.by_table([record], NOW).items():
        store.insert(table, block)


def test_places_are_the_stays_of_the_inventory(store: Store):
    """Newest word of each, of one site."""
    begin = ms("2026-01-01T00:00Z")
    stock(store, "A", "n1")
    stock(store, "B", "n1", begin, NOW)
    found = contract_store.places(store, "north")
    assert len(found) == 8
    assert found[3] == Place("north", "B", "", "r1", "n1", 3, id64("north", "n1/3"), begin, NOW)
    assert contract_store.places(store, "south") == []


class Desk:
    """Somebody who imports contracts into a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.folder, self.clock = folder, ManualClock(NOW)
        self.store = store

    def imported(self, *texts: str) -> tuple[list[str], dict[str, Any]]:
        """What is said, and the JSON."""
        files = []
        for number, text in enumerate(texts):
            files.append(self.folder / f"{number}.toml")
            files[-1].write_text(text)
        out, err = io.StringIO(), io.StringIO()
        self.clock.advance(1)
        settings = Settings(site=Site(name="north"))
        context = Context(self.store, settings, self.clock, self.folder, out, err)
        assert contract_import.import_contracts(context, files, as_json=True) == 0
        return err.getvalue().splitlines(), json.loads(out.getvalue())

    def refused(self, *texts: str) -> str:
        with pytest.raises(Refuse) as error:
            self.imported(*texts)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Desk:
    for hall, node in (("A", "n1"), ("A", "n2"), ("B", "n3")):
        stock(store, hall, node)
    return Desk(store, tmp_path)


def test_an_import_says_what_each_contract_covers(desk: Desk):
    """And the same again changes nothing."""
    texts = (
        toml(contracted_gpus="16"),
        toml(
            tenant='"rival"', select='[{hall = "B", gpus = "0-3"}, "rack=r9*"]', until="2028-01-01"
        ),
    )
    said, data = desk.imported(*texts)
    assert said == [
        "'acme': 16 GPUs, 16 contracted, from 2026-03-28T23:00:00Z until further notice",
        "'rival': 4 GPUs, 8 contracted, from 2026-03-28T23:00:00Z until 2027-12-31T23:00:00Z",
        'warning: \'rival\': no GPU of the inventory matches {"rack":["r9*"]}',
        "warning: 'rival': 4 GPUs are fewer than 8 contracted",
        "2 contracts read: 2 new, 0 known",
    ]
    assert (data["new"], data["known"]) == (2, 0)
    assert data["contracts"][1] == {
        "tenant": "rival", "site": "north", "from": "2026-03-28T23:00:00Z",
        "until": "2027-12-31T23:00:00Z", "new": True, "gpus": 4, "contracted_gpus": 8,
        "unmatched": ['{"rack":["r9*"]}'],
    }  # fmt: skip
    before = contract_store.read(desk.store)
    said, data = desk.imported(*texts)
    assert said[-1] == "2 contracts read: 0 new, 2 known"
    assert not any(row["new"] for row in data["contracts"])
    assert contract_store.read(desk.store) == before


def test_what_is_over_or_to_come_is_counted_at_its_end_or_beginning(desk: Desk):
    """A GPU that was there then counts, one that came or went does not."""
    stock(desk.store, "C", "n4", ms("2026-02-01T00:00Z"), ms("2026-03-01T00:00Z"))
    hall = '["hall=C"]'
    for begin, until, gpus in (
        ("2026-01-15", "2026-02-15", 8), ("2026-02-15", "2026-04-01", 0), ("2027-01-01", None, 0),
    ):  # fmt: skip
        _, data = desk.imported(toml(select=hall, begin=begin, until=until, tenant=f'"{begin}"'))
        assert data["contracts"][0]["gpus"] == gpus
    _, data = desk.imported(toml(begin="2027-01-01"))
    assert data["contracts"][0]["gpus"] == 16


def test_a_conflict_is_refused_within_the_files_and_with_the_store(desk: Desk):
    """Both tenants, how many GPUs, from when; and nothing is written."""
    rival = toml(tenant='"rival"', select='["node=n2,n3"]', begin="2026-07-01")
    said = desk.refused(toml(), rival)
    assert said == (
        "tenants 'acme' and 'rival' both lease 8 GPUs, first from 2026-06-30T22:00:00Z until "
        "further notice: end one contract earlier, or narrow its select"
    )
    assert contract_store.read(desk.store) == []
    desk.imported(toml())
    assert desk.refused(rival) == said
    assert [c.tenant for c in contract_store.read(desk.store)] == ["acme"]
    # A correction takes the place of what it corrects, also in the same import.
    desk.imported(toml(until="2026-07-01"), rival)
    assert "both lease 8 GPUs" in desk.refused(toml(until="2026-07-02"))
    desk.imported(
        toml(tenant='"rival"', select='["node=n2,n3"]', begin="2026-07-01", until="2026-07-01")
    )
    desk.imported(toml(until="2026-07-02"))


def test_an_old_conflict_does_not_keep_others_from_being_added(desk: Desk):
    """A GPU that was moved under another's lease is no reason to refuse a third tenant."""
    desk.imported(toml(), toml(tenant='"rival"', select='["hall=B"]'))
    desk.store.command("TRUNCATE TABLE inventory")
    stock(desk.store, "A", "n1")
    stock(desk.store, "B", "n1", ms("2026-01-02T00:00Z"))
    stock(desk.store, "D", "n5")
    _, data = desk.imported(toml(tenant='"third"', select='["hall=D"]'))
    assert data["contracts"][0]["gpus"] == 8
    assert "'acme' and 'rival'" in desk.refused(toml(contracted_kw="11"))


def test_a_withdrawn_contract_covers_nothing_and_another_select_is_another_contract(desk: Desk):
    """So it is said when a tenant seems to have two for the same GPUs."""
    desk.imported(toml())
    said, _ = desk.imported(toml(select='["hall=A gpus=0-6"]', contracted_gpus="14"))
    assert said[1] == (
        "warning: 'acme' has 14 GPUs by two contracts, of 2026-03-28T23:00:00Z and of "
        "2026-03-28T23:00:00Z: to replace one, withdraw it (until = from)"
    )
    said, _ = desk.imported(toml(begin="2027-01-01"))
    assert [line.split(", of")[0] for line in said if "two" in line] == [
        "warning: 'acme' has 14 GPUs by two contracts",
        "warning: 'acme' has 16 GPUs by two contracts",
    ]
    said, _ = desk.imported(toml(until=GOOD["from"]))
    assert said == [
        "'acme': the contract of 2026-03-28T23:00:00Z is withdrawn",
        "1 contracts read: 1 new, 0 known",
    ]
    found = leases(contract_store.read(desk.store), contract_store.places(desk.store, "north"))
    assert Counter(lease.from_ms for lease in found) == {
        ms("2026-03-28T23:00Z"): 14, ms("2026-12-31T23:00Z"): 16,
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_a_sentence(desk: Desk, tmp_path: Path):
    """Missing, no text, or with the same contract as another file."""
    said = desk.refused(toml(), toml(contracted_gpus="9"))
    assert "1.toml: tenant 'acme' has another contract from 2026-03-28T23:00:00Z" in said
    assert "0.toml: keep one of them" in said
    for name, content in (("none.toml", None), ("bytes.toml", b"\xff\xfe")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Refuse, match=rf"cannot read contracts .*{name}: "):
            contract_import._parsed([tmp_path / name], "north", 0)
