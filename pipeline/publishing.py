"""What publishing dashboards and publishing alert rules have in common: steps, said and carried out.

A step says what is to be done about one thing of a Grafana, and holds how. Steps come one after the
other, so that each one looks at what the ones before it made.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol
from urllib.parse import urlsplit

from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.settings import secret

if TYPE_CHECKING:
    from pipeline.grafana import Grafana

State = Literal["created", "updated", "unchanged", "removed", "refused"]

PLUGIN: Final = "grafana-clickhouse-datasource"
SOURCE_UID: Final = "megawatch-clickhouse"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing: what is to be done about it, and how."""

    kind: str
    name: str
    state: State
    why: str = ""
    diff: str = ""
    """Unified, of a thing that changes."""
    apply: Callable[[], object] | None = None

    def because(self, state: State, why: str) -> "Step":
        """The same thing in another state."""
        return replace(self, state=state, why=why)


class Section(Protocol):
    """What is needed of [grafana]."""

    @property
    def url(self) -> str: ...  # noqa: D102
    @property
    def token(self) -> str: ...  # noqa: D102
    @property
    def token_file(self) -> str: ...  # noqa: D102
    @property
    def ca_file(self) -> str: ...  # noqa: D102


def need_client() -> None:
    """Raises Refuse without the library that publishing takes."""
    if importlib.util.find_spec("grafana_api") is None:
        raise Refuse("publishing needs grafana-api: pip install 'megawatch[grafana]'")


def connected(url: str | None, section: Section, clock: Clock) -> tuple["Grafana", str]:
    """The Grafana that is meant, and its version; says who answers. Raises Refuse or Retry.

    Refused is one that cannot draw, or ask, what is published.
    """
    from pipeline.grafana import Grafana

    if not (url or section.url):
        raise Refuse("which Grafana? --grafana https://grafana.example:3000, or [grafana] url")
    token = secret(section.token, section.token_file)
    grafana = Grafana(url or section.url, token, clock, ca_file=section.ca_file)
    parts = urlsplit(grafana.url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        print(f"the token goes to {parts.hostname} unencrypted: use https", file=sys.stderr)
    health = grafana.health()
    state = "" if health.database in ("", "ok") else f", its database: {health.database}"
    print(f"Grafana {health.version or '(hides its version)'} at {grafana.url}{state}",
          file=sys.stderr)  # fmt: skip
    if not grafana.has_plugin(PLUGIN):
        raise Refuse(
            f"{grafana.url} has not the plugin {PLUGIN}: on its machine run"
            f" `grafana cli plugins install {PLUGIN}` and restart it, or start it with"
            f" GF_PLUGINS_PREINSTALL_SYNC={PLUGIN}"
        )
    return grafana, health.version


def folder(grafana: "Grafana", title: str, uid: str, *, shared: bool) -> tuple[str, Step]:
    """Its uid, and what is to be done; `shared`: a folder of that title is used, whoever made it."""
    there = {found["uid"]: found["title"] for found in grafana.folders()}
    if uid in there:
        why = "" if there[uid] == title else f"somebody called it {there[uid]!r}, it stays so"
        return uid, Step("folder", title, "unchanged", why)
    for other, called in there.items():
        if shared and called == title:
            return other, Step("folder", title, "unchanged", "it was not made here")
    return uid, Step("folder", title, "created", apply=lambda: grafana.create_folder(uid, title))


def carried_out(
    steps: Iterable[Step], grafana: "Grafana", version: str, args: argparse.Namespace
) -> int:
    """Do every step, or with `--dry-run` only say it; 1 if something was refused."""
    done = list(_each(steps, dry_run=args.dry_run))
    if args.json:
        things = [{"kind": s.kind, "name": s.name, "state": s.state, "why": s.why} for s in done]
        print(json.dumps(
            {"grafana": grafana.url, "version": version, "dry_run": args.dry_run, "things": things}
        ))  # fmt: skip
    return int(any(step.state == "refused" for step in done))


def _each(steps: Iterable[Step], *, dry_run: bool) -> Iterator[Step]:
    """What Grafana refuses of one step is said, and the next one has its turn."""
    for step in steps:
        if step.apply is not None and not dry_run:
            try:
                step.apply()
            except Refuse as error:
                step = step.because("refused", str(error))  # noqa: PLW2901
        if dry_run and step.diff:
            print(step.diff)
        would = "would be " if dry_run and step.apply is not None else ""
        why = f": {step.why}" if step.why else ""
        print(f"{step.kind} {step.name}: {would}{step.state}{why}", file=sys.stderr)
        yield step
