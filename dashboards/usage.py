"""`megawatch usage`: a period's statement, looked at, or sealed into its chain and given out."""

import argparse
import datetime as dt
import json
import zoneinfo
from pathlib import Path
from typing import Any

import msgspec

from dashboards import statement, statement_text
from pipeline import queries
from pipeline.commands import Context
from pipeline.errors import Refuse
from pipeline.ledger import chain, command, contract_store, usage
from pipeline.ledger import close as closing
from pipeline.ledger.figures import Statement
from pipeline.store import Store


def run(args: argparse.Namespace, context: Context) -> int:
    """Print a statement, or with -o seal it and write it to a file."""
    if args.sign and not args.output:
        raise Refuse("--sign signs what is given out: add -o FILE")
    site = args.site or context.settings.site.name
    period = command.span(args, context, closing.span(context.store, site))
    if period[0] == period[1]:
        raise Refuse(f"site {site!r} has no samples and no meters: nothing was used")
    zone = zoneinfo.ZoneInfo(_zone(args, context, site))
    found = usage.statement(
        context.store, site, zone, period,
        tenant=args.tenant or "", by_workload=args.by == "workload",
    )  # fmt: skip
    if args.tenant and not found.tenants:
        raise Refuse(
            f"tenant {args.tenant!r} has nothing in the closed quarters of that period: see"
            " `megawatch ledger status`, or `megawatch usage` for the names"
        )
    for note in found.notes:
        context.say(note)
    if not args.output:
        context.out.write(_rendered(found, "json" if args.json else args.format, context, None))
        return 0
    sealed = _sealed(context, args, site, found)
    target = context.cwd / args.output
    kind = args.format if args.format != "table" else target.suffix.removeprefix(".") or "json"
    if kind not in ("json", "html"):
        raise Refuse(f"-o {args.output}: only json and html carry a seal, add --format json")
    try:
        target.write_text(_rendered(found, kind, context, sealed), encoding="utf-8")
    except OSError as error:
        raise Refuse(f"cannot write {target}: {error.strerror}") from error
    link = sealed["chain"]
    _remember(context.store, site, sealed)
    context.say(f"{target}: statement {link['sequence']} of its chain, {link['hash']}")
    if args.json:
        context.print(json.dumps(link))
    return 0


def _zone(args: argparse.Namespace, context: Context, site: str) -> str:
    """A tenant's statement speaks in its contract's time zone, the others in the site's."""
    for contract in contract_store.read(context.store, site) if args.tenant else ():
        if contract.tenant == args.tenant:
            return contract.timezone
    return context.settings.site.timezone


def _rendered(found: Statement, kind: str, context: Context, sealed: dict[str, Any] | None) -> str:
    if kind == "json":
        return msgspec.json.encode(sealed or found).decode() + "\n"
    if kind == "csv":
        return statement_text.csv(found)
    if kind == "html":
        now = queries.iso(context.clock.now_ms() // 1000 * 1000, zoneinfo.ZoneInfo(found.timezone))
        seal = sealed["chain"]["hash"] if sealed else ""
        page = statement.html(found, made_at=now, seal=seal)
        if sealed:
            page = page.replace("</body>", f"{chain.embed(sealed)}</body>", 1)
        return page
    return statement_text.table(found) + "\n"


def _sealed(
    context: Context, args: argparse.Namespace, site: str, found: Statement
) -> dict[str, Any]:
    """The statement as the next link of its chain, signed if a key was given."""
    tenant = args.tenant or ""
    last = context.store.query(
        "SELECT sequence, hash FROM ledger_statements WHERE site = {site:String}"
        " AND tenant = {tenant:String} ORDER BY sequence DESC LIMIT 1",
        {"site": site, "tenant": tenant},
    ).rows
    sequence, previous = (last[0][0] + 1, last[0][1]) if last else (chain.FIRST, chain.NOTHING)
    made_at = queries.iso(context.clock.now_ms(), dt.UTC)
    sealed = chain.seal(found, previous, sequence, made_at)
    return chain.sign(sealed, _key(context.cwd / args.sign)) if args.sign else sealed


def _key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refuse(f"cannot read the key {path}: {error.strerror}") from error


def _remember(store: Store, site: str, sealed: dict[str, Any]) -> None:
    link = sealed["chain"]
    made = dt.datetime.fromisoformat(link["made_at"])
    store.insert("ledger_statements", {
        "site": [site], "tenant": [link["tenant"]], "sequence": [link["sequence"]],
        "hash": [link["hash"]], "made_at": [round(made.timestamp() * 1000)],
        "document": [json.dumps(sealed)],
    })  # fmt: skip
