"""`megawatch dashboards publish`: folder, data source and dashboards into a Grafana, repeatably.

Nothing is deleted, and nothing is overwritten that was not made here or that somebody changed since:
a dashboard has the tag and, in its newest version's message, the hash of what was published; a data
source has such a hash in its settings. Hashes and not documents are compared, since Grafana is free
to bring a stored dashboard into the form of its own version.

A tenant has a folder, a data source and a dashboard of its own. Only its data source keeps it apart
from others (whoever may query one may send it any SQL), so the data source logs in as the tenant's
user (`megawatch schema --rbac`), and no other of ours may be open to the tenant: with Grafana
Enterprise or Cloud by permissions of data sources, else each tenant needs an organisation.
"""

import difflib
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pipeline.errors import Refuse
from pipeline.grafana import VIEW, Grafana, Grantee, Json
from pipeline.publishing import PLUGIN, SOURCE_UID, Step, folder
from pipeline.records import id64

FOLDER: Final = Path(__file__).with_name("generated")
TENANT_UID: Final = "megawatch-tenant"
TAG: Final = "megawatch"
_UID: Final = re.compile(r"megawatch-[a-zA-Z0-9_-]{1,30}")
"""Ours, and at most the 40 characters that Grafana takes."""
_MESSAGE: Final = "Published by Megawatch, sha256 "
_STAMP, _SECRET = "megawatch", "megawatchSecret"
_PORTS: Final = {"http": 8123, "https": 8443}
_TITLE_CHARS: Final = 100
_EVERYBODY: Final = ("Viewer", "Editor")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How Grafana reaches ClickHouse, and as whom."""

    url: str
    database: str
    user: str
    password: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """Whom a tenant's things are for; without `who`, for its whole organisation."""

    name: str
    reader: Reader
    who: Grantee | None

    @property
    def suffix(self) -> str:
        """The tenant's id as in the names of its role and database."""
        return tenant_id(self.name)


def tenant_id(name: str) -> str:
    """A tenant's id in hex, as pipeline/rbac.py writes it. Raises Refuse."""
    try:
        number = id64("", name)
    except UnicodeEncodeError as error:
        raise Refuse(f"tenant {name!r} is no Unicode text") from error
    if not name:
        raise Refuse("a tenant has no name")
    return f"{number:016x}"


# -- what is published --------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Json]:
    """The generated dashboards by uid. Raises Refuse for a file that is none of ours."""
    found: dict[str, Json] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            ours = _UID.fullmatch(document["uid"]) and TAG in document["tags"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refuse(f"{path} is no dashboard: {error}") from error
        if not ours or document["uid"] in found:
            raise Refuse(f"{path}: run `megawatch dashboards generate`, it was not written by it")
        found[document["uid"]] = document
    if not found:
        raise Refuse(f"no dashboards in {folder}: run `megawatch dashboards generate`")
    return found


def for_tenant(page: Json, name: str) -> Json:
    """The tenant page for one tenant: bound to its data source, without a choice of tenant."""
    suffix = tenant_id(name)
    text = json.dumps(page).replace("${ds}", f"{SOURCE_UID}-{suffix}")
    bound: Json = json.loads(text)
    variables = []
    for variable in bound["templating"]["list"]:
        if variable["name"] == "tenant":
            value = str(int(suffix, 16))
            chosen = {"text": name, "value": value, "selected": True}
            variables.append(
                {"name": "tenant", "type": "constant", "hide": 2, "query": value, "current": chosen}
            )
        elif variable["name"] != "ds":
            variables.append(variable)
    if all(variable["name"] != "tenant" for variable in variables):
        raise Refuse(f"{page['uid']} has no variable `tenant`: it is not the page of a tenant")
    bound["templating"]["list"] = variables
    bound["uid"] = f"{TENANT_UID}-{suffix}"
    bound["title"] = f"{page['title']}: {name[:_TITLE_CHARS]}"
    return bound


def source(uid: str, name: str, reader: Reader, key: str) -> Json:
    """A data source as Grafana takes it; `key` makes the password's hash worthless to others."""
    parts = urlsplit(reader.url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise Refuse(
            f"ClickHouse at {parts.hostname or 'no address'!r}: set [grafana] clickhouse_url to an"
            " http(s)://host:port that Grafana reaches, without user and password"
        )
    fields: Json = {
        "host": parts.hostname, "port": parts.port or _PORTS[parts.scheme], "protocol": "http",
        "secure": parts.scheme == "https", "username": reader.user,
        "defaultDatabase": reader.database, "dialTimeout": 5, "queryTimeout": 60,
    }  # fmt: skip
    body: Json = {"uid": uid, "name": name, "type": PLUGIN, "access": "proxy", "jsonData": fields}
    fields[_STAMP] = _digest(_public(body))
    if reader.password:
        body["secureJsonData"] = {"password": reader.password}
        fields[_SECRET] = hmac.digest(key.encode(), reader.password.encode(), "sha256").hex()
    return body


def _digest(document: Json) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _public(body: Json) -> Json:
    """What of a data source is ours to say and anybody's to see."""
    fields = {k: v for k, v in body["jsonData"].items() if k not in (_STAMP, _SECRET)}
    return {"name": body["name"], "type": body["type"], "access": body["access"], **fields}


def _stored(document: Json) -> Json:
    """A dashboard without what Grafana adds."""
    return {key: value for key, value in document.items() if key not in ("id", "version")}


# -- what there is to do ------------------------------------------------------------------------


def data_source(grafana: Grafana, wanted: Json, *, force: bool) -> Step:
    """Create it, or update what was published and not changed since."""
    uid = wanted["uid"]
    found = grafana.data_source(uid)
    if found is None:
        return Step("data source", uid, "created", apply=lambda: grafana.create_data_source(wanted))
    if found["type"] != PLUGIN:
        return Step("data source", uid, "refused", f"it is a {found['type']}, not one of ours")
    if found.get("readOnly"):
        return Step("data source", uid, "unchanged", "it comes from Grafana's provisioning files")
    fields = found.get("jsonData") or {}
    # Whoever edits it in Grafana keeps what the form does not show: the stamps stay.
    edited = fields.get(_STAMP) != _digest(_public({**found, "jsonData": fields}))
    same = all(fields.get(k) == wanted["jsonData"].get(k) for k in (_STAMP, _SECRET))
    if same and not edited:
        return Step("data source", uid, "unchanged")
    if edited and not force:
        why = "somebody changed it in Grafana" if _STAMP in fields else "it was not made here"
        return Step("data source", uid, "refused", f"{why}: --force overwrites it")
    body = {**wanted, "version": found.get("version"), "isDefault": found.get("isDefault", False)}
    return Step("data source", uid, "updated", apply=lambda: grafana.update_data_source(body))


def dashboard(grafana: Grafana, wanted: Json, folder_uid: str, *, force: bool) -> Step:
    """Create it, or update what was published and not changed since; it stays in its folder."""
    uid, digest = wanted["uid"], _digest(wanted)
    body: Json = {
        "dashboard": {**wanted, "id": None}, "folderUid": folder_uid, "overwrite": False,
        "message": _MESSAGE + digest,
    }  # fmt: skip
    there = grafana.dashboard(uid)
    if there is None:
        return Step("dashboard", uid, "created", apply=lambda: grafana.save_dashboard(body))
    found, meta = there["dashboard"], there.get("meta") or {}
    where = meta.get("folderUid") or ""
    stays = f"it stays in folder {meta.get('folderTitle')!r}" if where != folder_uid else ""
    ours = TAG in (found.get("tags") or ())
    if ours and _stored(found) == wanted:
        return Step("dashboard", uid, "unchanged", stays)
    message = grafana.newest_message(uid)
    if ours and message == _MESSAGE + digest:
        return Step("dashboard", uid, "unchanged", stays)
    diff = _diff(uid, _stored(found), wanted)
    if meta.get("provisioned"):
        why = "it comes from Grafana's provisioning files: change it there"
        return Step("dashboard", uid, "refused", why, diff)
    if not force and not (ours and message.startswith(_MESSAGE)):
        why = "somebody changed it in Grafana" if ours else f"it has not the tag {TAG}"
        return Step("dashboard", uid, "refused", f"{why}: --force overwrites it", diff)
    # With the version that was looked at, so that Grafana refuses if there is a newer one.
    body["dashboard"]["version"] = found.get("version")
    body["folderUid"] = where
    return Step("dashboard", uid, "updated", stays, diff, lambda: grafana.save_dashboard(body))


def _diff(uid: str, old: Json, new: Json) -> str:
    before, after = (json.dumps(d, indent=2, sort_keys=True).splitlines() for d in (old, new))
    names = (f"grafana/{uid}", f"megawatch/{uid}")
    return "\n".join(difflib.unified_diff(before, after, *names, lineterm=""))


def site(
    grafana: Grafana, pages: dict[str, Json], title: str, wanted: Json | None, *, force: bool
) -> Iterator[Step]:
    """Everything for the site's own people; `wanted` is their data source, if it is known."""
    tenants = [s["uid"] for s in grafana.data_sources() if s["uid"].startswith(f"{SOURCE_UID}-")]
    if tenants and _open(grafana, SOURCE_UID):
        raise Refuse(
            f"this organisation of {grafana.url} holds {tenants[0]}, whose tenant could query the"
            f" whole site: publish into another one, or take data source {SOURCE_UID} from its"
            " Viewers and Editors first"
        )
    uid, step = folder(grafana, title, f"megawatch-{id64('folder', title):016x}", shared=True)
    yield step
    if wanted is not None:
        yield data_source(grafana, wanted, force=force)
    elif grafana.data_source(SOURCE_UID) is None:
        yield Step(
            "data source", SOURCE_UID, "refused",
            "where does Grafana find ClickHouse? set [grafana] clickhouse_url",
        )  # fmt: skip
    else:
        yield Step("data source", SOURCE_UID, "unchanged", "[grafana] clickhouse_url is not set")
    for page in pages.values():
        yield dashboard(grafana, page, uid, force=force)


def tenant(grafana: Grafana, page: Json, one: Tenant, key: str, *, force: bool) -> Iterator[Step]:
    """A tenant's folder, data source, dashboard, and who sees them."""
    uid = f"{SOURCE_UID}-{one.suffix}"
    _apart(grafana, uid, one.name)
    name = one.name[:_TITLE_CHARS]
    where, step = folder(grafana, f"Megawatch: {name}", f"{TENANT_UID}-{one.suffix}", shared=False)
    yield step
    if one.who is not None:
        yield _folder_permissions(grafana, where, one.who)
    yield data_source(grafana, source(uid, f"Megawatch {name}", one.reader, key), force=force)
    if one.who is not None and grafana.data_source(uid) is not None:
        yield from _source_permissions(grafana, uid, one.who)
    yield dashboard(grafana, for_tenant(page, one.name), where, force=force)


def _open(grafana: Grafana, uid: str) -> bool:
    """Whether everybody in the organisation may query a data source."""
    permissions = grafana.source_permissions(uid)
    if permissions is None:
        return True
    return any(p.get("builtInRole") in _EVERYBODY and p.get("permission") for p in permissions)


def _apart(grafana: Grafana, uid: str, name: str) -> None:
    """Refuse if the tenant could query what is not its own."""
    for other in grafana.data_sources():
        ours = other["type"] == PLUGIN or other["uid"].startswith("megawatch-")
        if ours and other["uid"] != uid and _open(grafana, other["uid"]):
            raise Refuse(
                f"tenant {name!r} could query data source {other['uid']}, which everybody in this"
                f" organisation of {grafana.url} may: publish it with the token of an organisation"
                " of its own, or, with Grafana Enterprise or Cloud, take that data source from"
                " Viewers and Editors"
            )


def _folder_permissions(grafana: Grafana, uid: str, who: Grantee) -> Step:
    """The tenant sees it, everybody does not; what else somebody granted stays."""
    field = "teamId" if who.kind == "teams" else "userId"
    mine = {field: who.number, "permission": VIEW}
    there = [p for p in grafana.folder_permissions(uid) if not p.get("inherited")]
    kept = [
        {key: entry[key] for key in ("teamId", "userId", "role", "permission") if entry.get(key)}
        for entry in there
        if entry.get("role") not in _EVERYBODY and entry.get(field) != who.number
    ]
    sees = any(entry.get(field) == who.number for entry in there)
    if sees and len(kept) + 1 == len(there):
        return Step("permissions", uid, "unchanged")
    return Step(
        "permissions", uid, "updated",
        apply=lambda: grafana.set_folder_permissions(uid, [mine, *kept]),
    )  # fmt: skip


def _source_permissions(grafana: Grafana, uid: str, who: Grantee) -> Iterator[Step]:
    there: Sequence[Any] | None = grafana.source_permissions(uid)
    if there is None:
        why = "this Grafana has none for data sources: nobody else's may be in this organisation"
        yield Step("permissions", uid, "unchanged", why)
        return
    field = "teamId" if who.kind == "teams" else "userId"
    takes = [r for r in _EVERYBODY if any(p.get("builtInRole") == r for p in there)]
    gives = not any(p.get(field) == who.number for p in there)

    def apply() -> None:
        for role in takes:
            grafana.set_source_permission(uid, "builtInRoles", role, "")
        if gives:
            grafana.set_source_permission(uid, who.kind, str(who.number), "Query")

    if takes or gives:
        yield Step("permissions", uid, "updated", apply=apply)
    else:
        yield Step("permissions", uid, "unchanged")
