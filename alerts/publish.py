"""`megawatch alerts publish`: the rules into a Grafana that is to evaluate them, repeatably.

Grafana takes whole groups. What it made of a rule is not compared, since it is free to bring a rule
into its own form: each rule has the hash of what was published as an annotation. Published over the
API, rules cannot be changed in Grafana's pages; what was made there, or comes from files, is not
overwritten. A group that has none of today's rules and only rules with such a hash is removed: a
rule that no longer exists must not wake anybody.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import quote

from alerts import generate as generating
from alerts.render_grafana import FOLDER_TITLE, FOLDER_UID
from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.grafana import Grafana, Json
from pipeline.publishing import SOURCE_UID, Section, Step, carried_out, connected, folder
from pipeline.settings import Alerts

STAMP: Final = "megawatch_sha256"
"""The annotation with the hash of a rule as it was published."""
_READ, _WRITE = "alert.provisioning:read", "alert.provisioning:write"


def publish(args: argparse.Namespace, section: Section, settings: Alerts, clock: Clock) -> int:
    """Bring a Grafana's rules up to date, with configured thresholds and caps; 1 if it refused any."""
    grafana, version = connected(args.grafana, section, clock)
    if grafana.data_source(SOURCE_UID) is None:
        raise Refuse(
            f"{grafana.url} has no data source {SOURCE_UID}, which the rules ask:"
            " run `megawatch dashboards publish` first"
        )
    return carried_out(steps(grafana, groups(settings), force=args.force), grafana, version, args)


def groups(settings: Alerts) -> dict[str, Json]:
    """Bodies by the group's name, with every rule stamped."""
    caps_w = {name: kw * 1000 for name, kw in settings.cap_kw.items()}
    texts = generating.documents(caps_w, settings.thresholds, settings.disabled)
    bodies = [json.loads(text) for name, text in texts.items() if name.startswith("grafana/api/")]
    for body in bodies:
        for rule in body["rules"]:
            rule["annotations"][STAMP] = _digest(rule)
    return {body["title"]: body for body in bodies}


def steps(grafana: Grafana, wanted: Mapping[str, Json], *, force: bool) -> Iterator[Step]:
    """The folder, each group, and at last the groups that are no more."""
    _, step = folder(grafana, FOLDER_TITLE, FOLDER_UID, shared=False)
    yield step
    there = _there(grafana)
    for name, body in wanted.items():
        yield _group(grafana, name, body, there.get(name, ()), force=force)
    # A rule that changed its group went there with it.
    uids = {rule["uid"] for body in wanted.values() for rule in body["rules"]}
    for name, rules in _there(grafana).items():
        left = [rule for rule in rules if rule["uid"] not in uids]
        if name not in wanted and left and all(map(_stamp, rules)):
            yield Step("rules", name, "removed", apply=partial(_remove, grafana, name))


def _group(
    grafana: Grafana, name: str, body: Json, there: Sequence[Json], *, force: bool
) -> Step:  # fmt: skip
    """Replace a group unless it is what is wanted, or somebody else's."""
    step = Step(
        "rules", name, "updated" if there else "created",
        apply=lambda: grafana.call("PUT", _path(name), body, what=f"to save {name}", right=_WRITE),
    )  # fmt: skip
    if any(rule.get("provenance") == "file" for rule in there):
        why = "it comes from Grafana's provisioning files: change it there"
        return Step("rules", name, "refused", why)
    stamps = {rule["uid"]: _stamp(rule) for rule in there}
    if stamps == {rule["uid"]: _stamp(rule) for rule in body["rules"]}:
        return Step("rules", name, "unchanged")
    if not force and not all(stamps.values()):
        strange = next(uid for uid, stamp in stamps.items() if not stamp)
        why = f"rule {strange} was not published from here: --force replaces it"
        return Step("rules", name, "refused", why)
    return step


def _there(grafana: Grafana) -> dict[str, list[Json]]:
    """The rules of our folder by group."""
    every: list[Json] = grafana.call(
        "GET", "/v1/provisioning/alert-rules", what="to list alert rules", right=_READ
    ) or []  # fmt: skip
    groups: dict[str, list[Json]] = {}
    for rule in every:
        if rule.get("folderUID") == FOLDER_UID:
            groups.setdefault(rule["ruleGroup"], []).append(rule)
    return groups


def _stamp(rule: Json) -> str:
    return str((rule.get("annotations") or {}).get(STAMP, ""))


def _remove(grafana: Grafana, name: str) -> None:
    grafana.call("DELETE", _path(name), what=f"to remove {name}", right=_WRITE)


def _path(name: str) -> str:
    return f"/v1/provisioning/folder/{FOLDER_UID}/rule-groups/{quote(name, safe='')}"


def _digest(rule: Json) -> str:
    return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()
