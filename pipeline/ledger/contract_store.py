"""Contracts in the store.

The table is append-only: of each contract (site, tenant, beginning, selectors) the newest assertion
holds, the older ones say what was believed before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import msgspec

from pipeline.ledger.contracts import Contract, Place, Selector, plain
from pipeline.records import id64
from pipeline.store import Store

_SCALES: Final = {
    "contracted_kw": 3, "price_per_gpu_hour": 6, "price_per_kwh": 6, "availability_pct": 4,
    "pue": 4,
}  # fmt: skip
"""Decimals of the columns, which the parser enforces."""


def write(store: Store, contracts: Sequence[Contract]) -> list[Contract]:
    """Assert what the store does not know so already; returns what was new."""
    new = news(contracts, {known.key: known for known in read(store)})
    rows = [_row(contract) for contract in new]
    if rows:
        store.insert("contracts", {name: [row[name] for row in rows] for name in rows[0]})
    return new


def news(contracts: Iterable[Contract], known: Mapping[Any, Contract]) -> list[Contract]:
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
