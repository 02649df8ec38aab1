"""Contracts in the store, and `megawatch import contracts`.

The table is append-only: of each contract (site, tenant, beginning, selectors) the newest assertion
holds, the older ones say what was believed before.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.commands import Context
from pipeline.errors import Refuse
from pipeline.holders import FOREVER_MS
from pipeline.ledger.contracts import (
    Contract,
    Lease,
    Place,
    Selector,
    conflicts,
    iso,
    leases,
    overlaps,
    parse,
    plain,
)
from pipeline.records import id64
from pipeline.store import Store

_SCALES: Final = {
    "contracted_kw": 3, "price_per_gpu_hour": 6, "price_per_kwh": 6, "availability_pct": 4,
    "pue": 4,
}  # fmt: skip
"""Decimals of the columns, which the parser enforces."""
_SHOWN: Final = 3


def write(store: Store, contracts: Sequence[Contract]) -> list[Contract]:
    """Assert what the store does not know so already; returns what was new."""
    new = _news(contracts, {known.key: known for known in read(store)})
    rows = [_row(contract) for contract in new]
    if rows:
        store.insert("contracts", {name: [row[name] for row in rows] for name in rows[0]})
    return new


def _news(contracts: Iterable[Contract], known: Mapping[Any, Contract]) -> list[Contract]:
    """Those that say something new, each later than what it corrects, whatever the clock does."""
    out = []
    for contract in contracts:
        old = known.get(contract.key)
        if old is None:
            out.append(contract)
        elif replace(contract, asserted_at_ms=old.asserted_at_ms) != old:
            later_ms = max(contract.asserted_at_ms, old.asserted_at_ms + 1)
            out.append(replace(contract, asserted_at_ms=later_ms))
    return out


def _row(contract: Contract) -> dict[str, object]:
    amounts = {name: getattr(contract, name) for name in _SCALES}
    return {
        "site": contract.site, "tenant": contract.tenant, "tenant_id": id64("", contract.tenant),
        "selectors": [one.text for one in contract.selectors], "timezone": contract.timezone,
        "from_ts": contract.from_ms, "until_ts": contract.until_ms,
        "contracted_gpus": contract.contracted_gpus, "currency": contract.currency,
        "asserted_at": contract.asserted_at_ms,
    } | {
        name: None if amount is None else int(amount.scaleb(_SCALES[name]))
        for name, amount in amounts.items()
    }  # fmt: skip


def read(store: Store, site: str | None = None) -> list[Contract]:
    """The newest assertion of each contract, of a site or of all; also the withdrawn ones."""
    found = store.query(
        "SELECT tenant, site, selectors, timezone, toUnixTimestamp64Milli(from_ts) AS from_ms,"
        " toUnixTimestamp64Milli(until_ts) AS until_ms, contracted_gpus, contracted_kw,"
        " price_per_gpu_hour, price_per_kwh, currency, availability_pct, pue,"
        " toUnixTimestamp64Milli(asserted_at) AS asserted_at_ms FROM contracts"
        " WHERE {all:Bool} OR site = {site:String}"
        " ORDER BY site, tenant, from_ts, selectors, asserted_at DESC"
        " LIMIT 1 BY site, tenant, from_ts, selectors",
        {"all": site is None, "site": site or ""},
    ).dicts()
    return [_contract(row) for row in found]


def _contract(row: dict[str, Any]) -> Contract:
    selectors = tuple(map(_selector, row.pop("selectors")))
    amounts: dict[str, Decimal] = {
        name: plain(row.pop(name)) for name in _SCALES if row[name] is not None
    }
    return Contract(**row | amounts, selectors=selectors)


def _selector(text: str) -> Selector:
    return msgspec.json.decode(text, type=Selector)


def places(store: Store, site: str) -> list[Place]:
    """Where each GPU of a site stood and stands, by the inventory."""
    found = store.query(
        "SELECT site, hall, row, rack, node, gpu_index, gpu_id, toUnixTimestamp64Milli(from_ts),"
        " toUnixTimestamp64Milli(until_ts) FROM inventory FINAL WHERE site_id = {site:UInt64}"
        " ORDER BY node, gpu_index, from_ts",
        {"site": id64(site)},
    )
    return [Place(*row) for row in found.rows]


class Told(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What an import says of one contract; `unmatched` are its selectors that find no GPU.

    gpus: covered now, or at the moment of its period that is nearest to now.
    """

    tenant: str
    site: str
    from_: str
    until: str
    new: bool
    gpus: int
    contracted_gpus: int
    unmatched: tuple[str, ...]


def import_contracts(context: Context, files: Sequence[Path], as_json: bool) -> int:
    """Assert the contracts of files now, all or none. Raises Refuse: a bad file, or a conflict."""
    now_ms = context.clock.now_ms()
    asked = _parsed(files, context.settings.site.name, now_ms)
    known = {contract.key: contract for contract in read(context.store)}
    fresh = _news(asked, known)
    new = {contract.key for contract in fresh}
    # The new ones last, so that a lease's contract number tells whether it is one of them.
    held = [contract for key, contract in known.items() if key not in new] + fresh
    first = len(held) - len(fresh)
    sites = sorted({contract.site for contract in asked})
    stood = [place for site in sites for place in places(context.store, site)]
    found = _beside(leases(held, stood), first)
    _refuse_conflicts(found)
    write(context.store, fresh)
    told = _told(asked, new, stood, now_ms)
    for line in (*(line for one in told for line in _lines(one)), *_doubled(found, held, first)):
        context.say(line)
    known_count = len(asked) - len(fresh)
    context.say(f"{len(asked)} contracts read: {len(fresh)} new, {known_count} known")
    if as_json:
        rows = msgspec.to_builtins(told)
        context.print(json.dumps({"new": len(fresh), "known": known_count, "contracts": rows}))
    return 0


def _parsed(files: Sequence[Path], site: str, now_ms: int) -> list[Contract]:
    """The contracts of all files. Raises Refuse: a file, or the same contract twice."""
    seen: dict[object, tuple[Path, Contract]] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise Refuse(f"cannot read contracts {file}: {reason}") from error
        for contract in parse(text, str(file), site, now_ms):
            if contract.key in seen:
                raise Refuse(
                    f"{file}: tenant {contract.tenant!r} has another contract from "
                    f"{iso(contract.from_ms)} with the same select in {seen[contract.key][0]}: "
                    "keep one of them"
                )
            seen[contract.key] = file, contract
    return [contract for _, contract in seen.values()]


def _beside(found: Sequence[Lease], first: int) -> list[Lease]:
    """Leases of the GPUs that contracts from number `first` on take."""
    # What the inventory has done since to older contracts must not keep others from being added.
    touched = {lease.gpu for lease in found if lease.contract >= first}
    return [lease for lease in found if lease.gpu in touched]


def _refuse_conflicts(found: Sequence[Lease]) -> None:
    sentences = conflicts(found)
    if sentences:
        more = f" (and {len(sentences) - 1} more such pairs)" if len(sentences) > 1 else ""
        raise Refuse(f"{sentences[0]}{more}: end one contract earlier, or narrow its select")


def _doubled(found: Sequence[Lease], held: Sequence[Contract], first: int) -> Iterator[str]:
    """Where a tenant has GPUs by two contracts: often one was meant to replace the other."""
    for (one, other), both in sorted(overlaps(found, lambda lease: lease.contract).items()):
        if other >= first:
            yield (
                f"warning: {held[one].tenant!r} has {both.gpus} GPUs by two contracts, of "
                f"{iso(held[one].from_ms)} and of {iso(held[other].from_ms)}: to replace one, "
                "withdraw it (until = from)"
            )


def _told(
    asked: Sequence[Contract], new: Collection[object], stood: Sequence[Place], now_ms: int
) -> list[Told]:
    """What came of each contract that was asked for."""
    parts = [(n, one) for n, contract in enumerate(asked) for one in contract.selectors]
    ends = [FOREVER_MS if c.until_ms is None else c.until_ms for c in asked]
    moments = [min(max(now_ms, c.from_ms), end - 1) for c, end in zip(asked, ends, strict=True)]
    gpus: list[set[int]] = [set() for _ in asked]
    matched = set()
    for lease in leases([replace(asked[n], selectors=(one,)) for n, one in parts], stood):
        number = parts[lease.contract][0]
        matched.add(parts[lease.contract])
        if lease.from_ms <= moments[number] < lease.until_ms:
            gpus[number].add(lease.gpu)
    return [
        Told(
            tenant=c.tenant, site=c.site, from_=iso(c.from_ms), until=iso(ends[n]),
            new=c.key in new, gpus=len(gpus[n]), contracted_gpus=c.contracted_gpus,
            unmatched=tuple(one.text for one in c.selectors if (n, one) not in matched),
        )
        for n, c in enumerate(asked)
    ]  # fmt: skip


def _lines(one: Told) -> Iterator[str]:
    """What a person should know of a contract."""
    if one.until == one.from_:
        yield f"{one.tenant!r}: the contract of {one.from_} is withdrawn"
        return
    yield (
        f"{one.tenant!r}: {one.gpus} GPUs, {one.contracted_gpus} contracted, "
        f"from {one.from_} until {one.until}"
    )
    if one.unmatched:
        more = f" and {len(one.unmatched) - _SHOWN} more" if len(one.unmatched) > _SHOWN else ""
        shown = ", ".join(one.unmatched[:_SHOWN])
        yield f"warning: {one.tenant!r}: no GPU of the inventory matches {shown}{more}"
    if one.gpus < one.contracted_gpus:
        yield f"warning: {one.tenant!r}: {one.gpus} GPUs are fewer than {one.contracted_gpus} contracted"
