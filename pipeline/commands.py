"""The commands that work on a store: each takes its arguments and a context, and returns a status.

They write to the context's streams only, since they may run inside the store's owner for somebody
else (pipeline/owner.py). Data goes to `out`; with --json its last line is JSON.
"""

import argparse
import json
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pipeline import queries, table
from pipeline.clock import Clock
from pipeline.errors import Refuse, Retry
from pipeline.owner import Output
from pipeline.settings import Settings
from pipeline.store import Store

_SQL_FORMATS: Final = {"table": "PrettySpaceMonoBlock", "csv": "CSV", "json": "JSON"}


@dataclass(frozen=True, slots=True)
class Context:
    """What a command needs besides its arguments."""

    store: Store
    settings: Settings
    clock: Clock
    cwd: Path
    out: Output
    err: Output

    def say(self, text: str) -> None:
        """A line for the person, not for the program that reads the data."""
        print(text, file=self.err)

    def print(self, text: str) -> None:
        """A line of the result."""
        print(text, file=self.out)


def sql(args: argparse.Namespace, context: Context) -> int:
    """The operator's own SELECT, read-only."""
    try:
        result = context.store.foreign(args.query, _SQL_FORMATS[args.format])
    except Retry as error:
        raise Refuse(f"the query failed: {error}") from error
    text = result.decode(errors="replace")
    if args.format == "json":
        text = json.dumps(json.loads(text)["data"]) + "\n"
    context.out.write(text)
    return 0


def power(args: argparse.Namespace, context: Context) -> int:
    """Watts by step, with their coverage."""
    zone = zoneinfo.ZoneInfo(context.settings.site.timezone)
    now_ms = context.clock.now_ms()
    held = queries.span(context.store)
    from_ms = queries.parse_time(args.since, now_ms, zone) if args.since else None
    until_ms = queries.parse_time(args.until, now_ms, zone) if args.until else None
    until_ms = until_ms if until_ms is not None else held.until_ms
    step_s = queries.STEPS[args.step]
    from_ms = from_ms if from_ms is not None else max(held.from_ms, until_ms - 20 * step_s * 1000)
    if until_ms < from_ms:
        raise Refuse(f"--from {args.since} is later than --to {args.until}")
    found = queries.power(context.store, from_ms, until_ms, step_s, args.by, args.site or "")
    if not found:
        context.say(_nothing(held, zone))
    if args.json:
        context.print(json.dumps([_power_json(row) for row in found]))
    elif found:
        names = ["ts", "site", *(["tenant"] if args.by == "tenant" else []), "watts", "coverage"]
        rows = [
            [
                queries.iso(p.ts_ms, zone), p.site, *([p.tenant] if args.by == "tenant" else []),
                p.watts, "-" if p.coverage is None else f"{p.coverage:.4f}",
            ]
            for p in found
        ]  # fmt: skip
        context.print(table.render(names, rows))
        if found[0].expected_from == "seen":
            context.say("coverage: no inventory; expected are the GPUs seen in the last 24 h")
    return 0


def _power_json(row: queries.Power) -> dict[str, object]:
    out: dict[str, object] = {
        "ts": queries.iso(row.ts_ms, zoneinfo.ZoneInfo("UTC")), "site": row.site,
        "watts": round(row.watts, 3), "coverage": row.coverage and round(row.coverage, 6),
        "expected_from": row.expected_from,
    }  # fmt: skip
    return out if row.tenant is None else out | {"tenant": row.tenant}


def _nothing(held: queries.Span, zone: zoneinfo.ZoneInfo) -> str:
    if not held.rows:
        return "no samples yet: the store is empty"
    since, until = queries.iso(held.from_ms, zone), queries.iso(held.until_ms, zone)
    return f"no samples in that range: the store has {since} to {until}"


def status(args: argparse.Namespace, context: Context) -> int:
    """What the store holds, how fresh it is, and what is missing."""
    found = queries.status(context.store, context.clock.now_ms())
    if args.json:
        context.print(json.dumps(msgspec.to_builtins(found)))
    else:
        rows = [
            [name.replace("_", " "), value] for name, value in msgspec.to_builtins(found).items()
        ]
        context.print(table.render(["", "value"], rows))
    return 0


def import_(args: argparse.Namespace, context: Context) -> int:
    """History from files, at full speed; what is there already changes nothing."""
    if args.what == "contracts":
        from pipeline.ledger.contract_import import import_contracts

        return import_contracts(context, [context.cwd / name for name in args.files], args.json)
    if args.format == "records":
        from pipeline.slurm_outlets import take

        return take(context, args.what, [context.cwd / name for name in args.files], args.json)
    from pipeline import imports

    return imports.run(args, context)


def ledger(args: argparse.Namespace, context: Context) -> int:
    """Close quarters of an hour, say how they stand, prove their sums."""
    from pipeline.ledger import command

    return command.run(args, context)


def deadletters(args: argparse.Namespace, context: Context) -> int:
    """List what could not be read, or try it again."""
    from pipeline import deadletters as letters

    if args.action == "list":
        found = letters.waiting(context.store, args.limit)
        if args.json:
            context.print(json.dumps([msgspec.to_builtins(f) for f in found]))
        elif found:
            rows = [[f.topic, f.partition, f.offset, f.at, f.bytes, f.reason] for f in found]
            context.print(
                table.render(["topic", "partition", "offset", "at", "bytes", "reason"], rows)
            )
        else:
            context.say("no dead letters")
        return 0
    done = letters.replay(context.store, context.clock)
    context.say(f"{done.replayed} messages read now ({done.rows} rows), {done.still_bad} still bad")
    if args.json:
        context.print(json.dumps(msgspec.to_builtins(done)))
    return 0


def backup(args: argparse.Namespace, context: Context) -> int:
    """A copy of the embedded store, consistent, while it is in use."""
    if not context.store.embedded:
        raise Refuse("backup is for the embedded store: on a server use ClickHouse's own BACKUP")
    target = context.cwd / args.to
    if target.exists():
        raise Refuse(f"{target} exists already: choose a new name")
    context.store.backup(target)
    context.say(f"store saved to {target}")
    return 0


def migrate(args: argparse.Namespace, context: Context) -> int:
    """Say what opening the store did; opening it migrates it."""
    done = context.store.migrate()
    context.say(f"applied {', '.join(done)}" if done else "the schema is up to date")
    if args.json:
        context.print(json.dumps(done))
    return 0
