"""Leases by contract files: who leases which GPUs of the inventory, when, and on which terms.

deploy/contracts.example.toml shows every key of a file. Times without an offset are in the
contract's time zone. A bare date is the first instant of that day there, so that days always join;
a local date and time that clocks skip or show twice is refused: a guess could cost money.
"""

import contextlib
import difflib
import fnmatch
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from pipeline.errors import Refuse
from pipeline.formats import cells
from pipeline.holders import FOREVER_MS

_SHOWN: Final = 60
_GLOB: Final = re.compile(r"[*?\[]")
_AMOUNT: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_LEVELS: Final = ("site", "hall", "row", "rack", "node")


class Selector(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Conditions that must all hold: globs of names, NVML indices. An empty one always holds."""

    site: tuple[str, ...] = ()
    hall: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    rack: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The same selector is always the same text: JSON of its conditions."""
        return msgspec.json.encode(self).decode()


@dataclass(frozen=True, slots=True)
class Contract:
    """A lease of GPUs in [from_ms, until_ms), until None is until further notice.

    With until_ms = from_ms it is withdrawn. Prices are in `currency`; `pue` None: none is declared.
    """

    tenant: str
    site: str
    selectors: tuple[Selector, ...]
    timezone: str
    from_ms: int
    until_ms: int | None
    contracted_gpus: int
    contracted_kw: Decimal
    price_per_gpu_hour: Decimal
    price_per_kwh: Decimal
    currency: str
    availability_pct: Decimal
    pue: Decimal | None
    asserted_at_ms: int

    @property
    def key(self) -> tuple[str, str, int, tuple[Selector, ...]]:
        """What stays when terms are corrected."""
        return self.site, self.tenant, self.from_ms, self.selectors


@dataclass(frozen=True, slots=True)
class Place:
    """Where a GPU (64-bit id) stood in [from_ms, until_ms): an interval of the inventory."""

    site: str
    hall: str
    row: str
    rack: str
    node: str
    gpu_index: int
    gpu: int
    from_ms: int
    until_ms: int | None


class Lease(NamedTuple):
    """A GPU is leased in [from_ms, until_ms), FOREVER_MS if open, by contract number `contract`."""

    gpu: int
    from_ms: int
    until_ms: int
    tenant: str
    contract: int


class Overlap(NamedTuple):
    """Two holders have `gpus` GPUs at the same time, the first time in [from_ms, until_ms)."""

    gpus: int
    from_ms: int
    until_ms: int


def parse(text: str, name: str, site: str, asserted_at_ms: int) -> list[Contract]:
    """The contracts of a file called `name`; `site` is theirs where they name none.

    Raises Refuse with one sentence: file, contract, key, bad value, what to write instead.
    """
    try:
        tree = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:  # also numbers without end
        raise Refuse(f"{name} is not TOML: {str(error) or 'a number is too large'}") from error
    _refuse_unknown(tree, ("contract",), name)
    tables = tree.get("contract")
    if not isinstance(tables, list) or not tables:
        raise Refuse(f"{name}: there is no contract: write each as a [[contract]] table")
    return [
        _contract(table, f"{name}: contract {number}", site, asserted_at_ms)
        for number, table in enumerate(tables, 1)
    ]


def _contract(table: object, where: str, site: str, asserted_at_ms: int) -> Contract:
    if not isinstance(table, dict):
        raise Refuse(f"{where}: {_shown(table)} is no table: write each contract as [[contract]]")
    if isinstance(table.get("tenant"), str):
        where += f" ({_shown(table['tenant'])})"
    found: _Table = {"pue": None} | _values({"site": site} | table, _KEYS, _NEEDED, where)
    zone = ZoneInfo(found["timezone"])
    from_ms = _instant_ms(found.pop("from"), zone, f"{where}: from")
    until = found.pop("until", None)
    until_ms = None if until is None else _instant_ms(until, zone, f"{where}: until")
    if until_ms is not None and until_ms < from_ms:
        raise Refuse(
            f"{where}: until = {_shown(until)} is before from: write a later one, "
            "or the same as from to withdraw the contract"
        )
    select = enumerate(found.pop("select"), 1)
    selectors = {_selector(one, f"{where}: select {number}") for number, one in select}
    return Contract(
        **found, selectors=tuple(sorted(selectors, key=lambda s: s.text)),
        from_ms=from_ms, until_ms=until_ms, asserted_at_ms=asserted_at_ms,
    )  # fmt: skip


_Read = Callable[[object], Any]
"""Makes a value of what a file says, None if it is wrong."""
_Table = dict[str, Any]
_Keys = Mapping[str, tuple[_Read, str]]
"""For each key its reader, and what to write there."""


def _values(table: _Table, keys: _Keys, needed: Iterable[str], where: str) -> _Table:
    """The values of a table. Raises Refuse."""
    _refuse_unknown(table, keys, where)
    for key in needed:
        if key not in table:
            raise Refuse(f"{where}: {key} is missing: write {keys[key][1]}")
    found = {key: keys[key][0](value) for key, value in table.items()}
    for key, value in found.items():
        if value is None:
            raise Refuse(f"{where}: {key} = {_shown(table[key])} is wrong: write {keys[key][1]}")
    return found


def _refuse_unknown(table: Mapping[str, object], valid: Iterable[str], where: str) -> None:
    names = list(valid)
    for name in table:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(names)}"
            raise Refuse(f"{where}: unknown name {_shown(name)}, {hint}")


def _shown(value: object) -> str:
    """A value in an error message: one line, short."""
    try:
        text = str(value) if isinstance(value, Decimal | date | time) else repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _name(value: object) -> str | None:
    fits = isinstance(value, str) and value == value.strip() != "" and cells.is_name(value)
    return str(value) if fits else None


def _zone(value: object) -> str | None:
    with contextlib.suppress(Refuse):
        return cells.zone(value).key if isinstance(value, str) else None
    return None


def _patterns(value: object) -> tuple[str, ...] | None:
    names = {_name(one) for one in (value if isinstance(value, list) else [value])}
    return None if None in names else tuple(sorted(filter(None, names))) or None


def _indices(value: object) -> tuple[int, ...] | None:
    found: set[int] = set()
    for one in value if isinstance(value, list) else [value]:
        whole = type(one) is int and 0 <= one <= cells.MAX_INDEX
        text = str(one).replace(" ", "") if whole or isinstance(one, str) else ""
        for part in text.split(","):
            first, dash, last = part.partition("-")
            last = last if dash else first
            if not cells.is_index(first) or not cells.is_index(last) or int(last) < int(first):
                return None
            found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found)) or None


def _amount(low: int, high: int, decimals: int) -> _Read:
    """A reader of numbers in [low, high], as text or as a number: never a binary float."""

    def read(value: object) -> Decimal | None:
        if not isinstance(value, int | Decimal | str) or isinstance(value, bool):
            return None
        if isinstance(value, str) and not _AMOUNT.fullmatch(value):
            return None
        number = Decimal(value)
        if not number.is_finite() or not low <= number <= high:
            return None
        kept = round(number, decimals)
        return plain(kept) if kept == number else None

    return read


def plain(number: Decimal) -> Decimal:
    """The same number (from 0, at most 18 digits) always written alike: 2.1 for 2.100."""
    return Decimal(f"{abs(number).normalize():f}")


_TIME: Final = (
    lambda value: value if isinstance(value, date) else None,
    "a date or a date and time without quotes, as 2026-03-29 or 2026-03-29T12:00:00+02:00",
)
_NAME: Final = (_name, 'a printable name of at most 255 characters, as "acme"')
_PRICE: Final = (_amount(0, 10**9, 6), "an amount from 0 to 1e9 with at most 6 decimals")
_KEYS: Final[_Keys] = {
    "tenant": _NAME,
    "site": _NAME,
    "select": (
        lambda value: value if isinstance(value, list) and value else None,
        'a list of selectors, as [{hall = "A", rack = ["r01", "r02*"]}]',
    ),
    "timezone": (_zone, 'an IANA time zone, as "Europe/Berlin" or "UTC"'),
    "from": _TIME,
    "until": _TIME,
    "contracted_gpus": (
        # By the exact type, since Python's true and false are integers too.
        lambda value: value if type(value) is int and 1 <= value < 1 << 32 else None,
        "a whole number of GPUs from 1 on, as 512",
    ),
    "contracted_kw": (_amount(0, 10**9, 3), "kilowatts from 0 to 1e9 with at most 3 decimals"),
    "price_per_gpu_hour": _PRICE,
    "price_per_kwh": _PRICE,
    "currency": (
        lambda value: value if isinstance(value, str) and _CURRENCY.fullmatch(value) else None,
        'the three capital letters of ISO 4217, as "EUR"',
    ),
    "availability_pct": (_amount(0, 100, 4), "a percentage from 0 to 100, at most 4 decimals"),
    "pue": (_amount(1, 100, 4), "a number from 1 to 100 with at most 4 decimals, as 1.25"),
}  # fmt: skip
_NEEDED: Final = [key for key in _KEYS if key not in ("site", "until", "pue")]
_PATTERNS: Final = (_patterns, 'a name, a glob or a list of them, as "r01" or ["r01", "r02*"]')
_INDICES: Final = (_indices, f'NVML indices up to {cells.MAX_INDEX}, as "0-3,5" or [0, 1]')
_CONDITIONS: Final[_Keys] = {**dict.fromkeys(_LEVELS, _PATTERNS), "gpus": _INDICES}


def _selector(given: object, where: str) -> Selector:
    table = _spelt(given) if isinstance(given, str) else given
    if not isinstance(table, dict) or not table:
        raise Refuse(
            f"{where} = {_shown(given)} is no selector: name what is leased, "
            'as {hall = "A", node = "n[0-9]*", gpus = "0-3"}, or {node = "*"} for all'
        )
    return Selector(**_values(table, _CONDITIONS, (), where))


def _spelt(text: str) -> dict[str, list[str]]:
    """A selector as text: `hall=A rack=r01,r02* gpus=0-3`."""
    found: dict[str, list[str]] = defaultdict(list)
    for part in text.split():
        key, _, value = part.partition("=")
        found[key] += value.split(",")
    return found


def _instant_ms(value: date, zone: ZoneInfo, where: str) -> int:
    """UTC milliseconds of a TOML date (the first instant of that day) or date and time."""
    at = cells.BAD_TIME
    if isinstance(value, datetime):
        at = cells.time_ms(value.isoformat(), zone)
    elif date.min < value < date.max:
        # Of a midnight that clocks show twice the first; of one that they skip, the end of the skip.
        midnight = datetime.combine(value, time(), zone).astimezone(UTC)
        at = cells.time_ms(midnight.isoformat(), zone)
    if not cells.OLDEST_MS <= at < cells.NEWEST_MS:
        raise Refuse(
            f"{where} = {value.isoformat()} is no time of 2010 to 2099, or happens twice or never "
            f"in {zone.key}: write one with its offset, as 2026-10-25T02:30:00+02:00"
        )
    return at


class _Topology:
    """Places by their names, so that a pattern is tried once per name and not once per GPU."""

    def __init__(self, places: Sequence[Place]) -> None:
        spots: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, p in enumerate(places):
            spots[p.site, p.hall, p.row, p.rack, p.node].append(number)
        self._places = places
        self._spots = list(spots.values())
        self._named: dict[str, dict[str, set[int]]] = {k: defaultdict(set) for k in _LEVELS}
        for spot, names in enumerate(spots):
            for level, name in zip(_LEVELS, names, strict=True):
                self._named[level][name].add(spot)

    def covered(self, contract: Contract) -> list[int]:
        """Numbers of the places that any selector of a contract takes, in order."""
        found: set[int] = set()
        for one in contract.selectors:
            wanted = [self._named["site"].get(contract.site, set())]
            wanted += [self._matching(k, names) for k in _LEVELS if (names := getattr(one, k))]
            gpus = set(one.gpus)
            for spot in set.intersection(*sorted(wanted, key=len)):
                found.update(
                    n for n in self._spots[spot] if not gpus or self._places[n].gpu_index in gpus
                )
        return sorted(found)

    def _matching(self, level: str, patterns: Iterable[str]) -> set[int]:
        named = self._named[level]
        out: set[int] = set()
        for pattern in patterns:
            names = fnmatch.filter(named, pattern) if _GLOB.search(pattern) else [pattern]
            out.update(*(named.get(name, ()) for name in names))
        return out


def leases(contracts: Sequence[Contract], places: Sequence[Place]) -> list[Lease]:
    """Where contracts' periods meet the stays of the GPUs that they select; none is empty."""
    topology = _Topology(places)
    out = []
    for number, contract in enumerate(contracts):
        end_ms = FOREVER_MS if contract.until_ms is None else contract.until_ms
        for place in map(places.__getitem__, topology.covered(contract)):
            from_ms = max(contract.from_ms, place.from_ms)
            until_ms = end_ms if place.until_ms is None else min(end_ms, place.until_ms)
            if from_ms < until_ms:
                out.append(Lease(place.gpu, from_ms, until_ms, contract.tenant, number))
    return out


def overlaps(
    leases: Iterable[Lease], holder: Callable[[Lease], Any]
) -> dict[tuple[Any, Any], Overlap]:
    """Pairs of different holders, the lesser first, that have a GPU at the same time."""
    found: dict[tuple[Any, Any], list[tuple[int, int, int]]] = defaultdict(list)
    gpu, until_of = -1, dict[Any, int]()
    for lease in sorted(leases):
        if lease.gpu != gpu:
            gpu, until_of = lease.gpu, {}
        mine = holder(lease)
        for other, until_ms in until_of.items():
            if other != mine and until_ms > lease.from_ms:
                both = (lease.from_ms, min(until_ms, lease.until_ms), gpu)
                found[min(mine, other), max(mine, other)].append(both)
        until_of[mine] = max(until_of.get(mine, 0), lease.until_ms)
    return {
        pair: Overlap(len({g for *_, g in all_}), *min(all_)[:2]) for pair, all_ in found.items()
    }


def conflicts(leases: Iterable[Lease]) -> list[str]:
    """A sentence for each pair of tenants that lease a GPU at the same time."""
    return [
        f"tenants {a!r} and {b!r} both lease {found.gpus} GPU{'s' if found.gpus > 1 else ''}, "
        f"first from {iso(found.from_ms)} until {iso(found.until_ms)}"
        for (a, b), found in sorted(overlaps(leases, lambda lease: lease.tenant).items())
    ]


def iso(ts_ms: int) -> str:
    """A time as ISO 8601 UTC; an open end as words."""
    if ts_ms == FOREVER_MS:
        return "further notice"
    return datetime.fromtimestamp(ts_ms // 1000, UTC).isoformat().replace("+00:00", "Z")
