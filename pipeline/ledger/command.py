"""`megawatch ledger close|status|verify`."""

import argparse
import json
import zoneinfo
from collections.abc import Mapping
from typing import Final

import msgspec

from pipeline import queries, table
from pipeline.commands import Context
from pipeline.errors import Refuse
from pipeline.ledger import claims
from pipeline.ledger import close as closing
from pipeline.ledger.cells import QUARTER_MS
from pipeline.ledger.check import check, history, passed_over
from pipeline.ledger.disagree import disagreements
from pipeline.progress import Bar

_SHOWN: Final = 20
_SILENT_MS: Final = 3_600_000
"""What is older can be closed by hand without a watermark behind it."""


def run(args: argparse.Namespace, context: Context) -> int:
    """Close what can be closed, say how things stand, or prove the sums."""
    site = args.site or context.settings.site.name
    from_ms, until_ms = span(args, context, closing.span(context.store, site))
    body = {"close": _close, "status": _status, "verify": _verify}[args.action]
    return body(args, context, site, (from_ms, until_ms))


def span(args: argparse.Namespace, context: Context, all_of_it: tuple[int, int]) -> tuple[int, int]:
    """--from and --to widened to whole quarters; without them, all there is."""
    zone = zoneinfo.ZoneInfo(context.settings.site.timezone)
    now_ms = context.clock.now_ms()
    since = queries.parse_time(args.since, now_ms, zone) if args.since else all_of_it[0]
    until = queries.parse_time(args.until, now_ms, zone) if args.until else all_of_it[1]
    since, until = since // QUARTER_MS * QUARTER_MS, -(-until // QUARTER_MS) * QUARTER_MS
    if until < since:
        raise Refuse(f"--from {args.since} is later than --to {args.until or 'all there is'}")
    return since, until


def _close(args: argparse.Namespace, context: Context, site: str, period: tuple[int, int]) -> int:
    store, ledger = context.store, context.settings.ledger
    # Whoever asks knows of sites that have fallen silent; a pipeline waits for its watermark.
    ready_ms = closing.closable_until(store, ledger.grace_s * 1000)
    until_ms = min(period[1], max(ready_ms, context.clock.now_ms() - _SILENT_MS))
    quarters = closing.open_quarters(store, site, period[0], until_ms)
    bar = Bar("closing", context.err)
    done = 0

    def told(_: closing.Outcome) -> None:
        nonlocal done
        done += 1
        bar(done, len(quarters))

    try:
        out = closing.close(store, site, ledger.precedence, quarters, context.clock.now_ms(), told)
    finally:
        bar.close()
    bad = [o for o in out if o.state != "closed"]
    for outcome in bad[:_SHOWN]:
        when = queries.iso(outcome.quarter_ms, zoneinfo.ZoneInfo("UTC"))
        context.say(f"{when} {outcome.state}: {outcome.reason}")
    context.say(f"{len(out) - len(bad)} quarters closed, {len(bad)} not")
    if args.json:
        context.print(json.dumps({
            "closed": len(out) - len(bad), "refused": sum(o.state == "refused" for o in out),
            "failed": sum(o.state == "failed" for o in out),
            "energy_mj": str(sum(o.energy_mj for o in out if o.state == "closed")),
        }))  # fmt: skip
    return 1 if bad else 0


def _status(args: argparse.Namespace, context: Context, site: str, period: tuple[int, int]) -> int:
    utc = zoneinfo.ZoneInfo("UTC")
    found = history(context.store, site, *period)
    waiting = set(closing.open_quarters(context.store, site, *period))
    quarters = sorted({*waiting, *found})
    rows: list[Mapping[str, object]] = []
    for quarter in quarters:
        entry = found.get(quarter)
        state = "closed" if entry and entry.version else "open"
        if quarter in waiting and state == "closed":
            state = "changed"
        rows.append({
            "quarter": queries.iso(quarter, utc), "state": state,
            **(msgspec.to_builtins(entry) if entry else {}),
        })  # fmt: skip
    if args.json:
        context.print(json.dumps(rows))
        return 0
    context.print(table.render(
        ["quarter", "state", "closings", "kWh", "change kWh", "coverage", "reason"],
        [
            [r["quarter"], r["state"], r.get("closings", 0),
             *(_shown(r.get(name)) for name in ("energy_kwh", "change_kwh", "coverage")),
             r.get("reason", "")]
            for r in rows[-96:]
        ],
    ))  # fmt: skip
    shown = quarters[-96:]  # a day
    if shown:
        until_ms = shown[-1] + QUARTER_MS
        for meter, times in passed_over(context.store, site, shown[0], until_ms)[:_SHOWN]:
            context.say(f"{meter}: {times} negative readings were passed over")
        precedence = context.settings.ledger.precedence
        held = claims.load(context.store, site, precedence, shown[0], until_ms)
        for one in disagreements(held, precedence, shown[0], until_ms):
            context.say(
                f"{one.believed} and {one.other} contradict each other about {one.gpus} GPUs for "
                f"{one.gpu_ms / 3_600_000:.2f} GPU-hours: {one.believed} is believed"
            )
    if len(rows) > 96:
        context.say(f"the last day of {len(rows)} quarters: ask for the rest by --from and --to")
    return 0


def _shown(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else "-"


def _verify(args: argparse.Namespace, context: Context, site: str, period: tuple[int, int]) -> int:
    found = check(context.store, site, *period)
    for sentence in found.broken[:_SHOWN]:
        context.say(sentence)
    context.say(
        f"{found.quarters} closed quarters, {found.rows} rows: "
        + (f"{len(found.broken)} sums do not agree" if found.broken else "all sums agree")
    )
    if args.json:
        context.print(json.dumps(msgspec.to_builtins(found)))
    return 1 if found.broken else 0
