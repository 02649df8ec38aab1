"""`megawatch import contracts`: files of leases into the store, all or none."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from pipeline.commands import Context
from pipeline.errors import Refuse
from pipeline.holders import FOREVER_MS
from pipeline.ledger.contract_store import news, places, read, write
from pipeline.ledger.contracts import (
    Contract,
    Lease,
    Place,
    conflicts,
    iso,
    leases,
    overlaps,
    parse,
)

_SHOWN: Final = 3


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
    fresh = news(asked, known)
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
