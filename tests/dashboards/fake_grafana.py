"""A Grafana on loopback, as far as its HTTP API is documented: it keeps state and holds to the rules.

`faults` is a list of answers that come before the real one, once each; `edition` decides whether
data sources have permissions.
"""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN: Final = "glsa_0123456789abcdefghijklmnopqrstuv_0badcafe"
PLUGIN: Final = "grafana-clickhouse-datasource"

Json = dict[str, Any]


class Answer(NamedTuple):
    """A status, a body of any kind, and headers of its own."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Error(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str, **more: object) -> None:
        self.code, self.body = code, {"message": message, **more}


Fault = Callable[[Any, Asked], Answer | None]
"""Gets the handler; None: there is no answer any more."""


def reset(handler: Any, asked: Asked) -> Answer | None:
    """The connection is torn down with the request read."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    return None


def slow(seconds: float) -> Fault:
    """Nothing comes for so long."""

    def fault(handler: Any, asked: Asked) -> Answer | None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            handler.connection.close()
        return None

    return fault


def says(status: int, body: bytes, *headers: tuple[str, str]) -> Fault:
    """An answer of somebody between us and Grafana."""
    return lambda handler, asked: Answer(status, body, headers)


class FakeGrafana:
    """State of one organisation."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: list[tuple[str, Fault]] = []
        """With the `METHOD /path` prefix that each waits for."""
        self.rights_missing: set[str] = set()
        self.plugins = {PLUGIN}
        self.edition = "oss"
        self.folders: dict[str, Json] = {}
        self.folder_permissions: dict[str, list[Json]] = {}
        self.sources: dict[str, Json] = {}
        self.secrets: dict[str, Json] = {}
        self.source_permissions: dict[str, list[Json]] = {}
        self.dashboards: dict[str, Json] = {}
        self.versions: dict[str, list[Json]] = {}
        self.rule_groups: dict[tuple[str, str], Json] = {}
        self.provenance: dict[tuple[str, str], str] = {}
        self.teams = {"lab a & co": 7, "lab-b": 8}
        self.users = {"ada": 3}
        self.migrates = False
        """Whether what is read back has been brought to a newer schema, as Grafana 12 and later do."""
        self.url = ""

    def writes(self) -> list[Asked]:
        """Requests that change something."""
        return [a for a in self.asked if a.method != "GET"]

    def edit(self, uid: str, **changes: object) -> None:
        """Somebody saves a dashboard in the browser."""
        version = self.dashboards[uid]["dashboard"]["version"] + 1
        self.dashboards[uid]["dashboard"] |= {**changes, "version": version}
        self.versions[uid].append({"version": version, "message": "looks nicer"})

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """Status and JSON. Raises Error."""
        parts = urlsplit(asked.path)
        if not parts.path.startswith("/api/"):
            raise Error(404, "Not found")
        path = parts.path.removeprefix("/api")
        if path != "/health" and asked.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Error(401, "Invalid API key", traceID="")
        for method, pattern, right, handler in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == asked.method:
                if right in self.rights_missing:
                    raise Error(
                        403,
                        "You'll need additional permissions to perform this action."
                        f" Permissions needed: {right}",
                        title="Access denied", accessErrorId="ACE0115688094",
                    )  # fmt: skip
                values = [unquote(group) for group in found.groups()]
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                return handler(self, asked, query, *values)
        raise Error(404, "Not found")

    # -- routes ---------------------------------------------------------------------------------

    def get_health(self, asked: Asked, query: Json) -> tuple[int, Any]:
        return 200, {"commit": "abc", "database": "ok", "version": "13.2.3"}

    def get_plugin(self, asked: Asked, query: Json, plugin: str) -> tuple[int, Any]:
        if plugin not in self.plugins:
            raise Error(404, "Plugin not found, no installed plugin with that id")
        return 200, {"id": plugin, "type": "datasource"}

    def get_folders(self, asked: Asked, query: Json) -> tuple[int, Any]:
        limit, page = int(query.get("limit", 1000)), int(query.get("page", 1))
        return 200, list(self.folders.values())[limit * (page - 1) : limit * page]

    def post_folder(self, asked: Asked, query: Json) -> tuple[int, Any]:
        uid, title = asked.body.get("uid"), asked.body.get("title")
        if not title:
            raise Error(400, "folder title cannot be empty")
        check_uid(uid)
        if uid in self.folders:
            raise Error(412, "a folder/dashboard with the same uid already exists")
        self.folders[uid] = {"id": len(self.folders) + 1, "uid": uid, "title": title}
        self.folder_permissions[uid] = [
            {"userId": 99, "teamId": 0, "role": "", "permission": 4, "inherited": False},
            {"userId": 0, "teamId": 0, "role": "Editor", "permission": 2, "inherited": False},
            {"userId": 0, "teamId": 0, "role": "Viewer", "permission": 1, "inherited": False},
            {"userId": 0, "teamId": 0, "role": "Admin", "permission": 4, "inherited": True},
        ]
        return 200, {**self.folders[uid], "version": 1}

    def get_folder_permissions(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.folders:
            raise Error(404, "Folder not found", status="not-found")
        return 200, self.folder_permissions[uid]

    def post_folder_permissions(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.folders:
            raise Error(404, "Folder not found", status="not-found")
        items = asked.body["items"]
        for item in items:
            who = [k for k in ("userId", "teamId", "role") if item.get(k)]
            if len(who) != 1 or item["permission"] not in (1, 2, 4):
                raise Error(400, "bad request data")
        inherited = [p for p in self.folder_permissions[uid] if p["inherited"]]
        blank = {"userId": 0, "teamId": 0, "role": "", "inherited": False}
        self.folder_permissions[uid] = [*({**blank, **item} for item in items), *inherited]
        return 200, {"message": "Folder permissions updated"}

    def get_sources(self, asked: Asked, query: Json) -> tuple[int, Any]:
        return 200, list(self.sources.values())

    def get_source(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.sources:
            raise Error(404, "Data source not found")
        return 200, self.sources[uid]

    def post_source(self, asked: Asked, query: Json) -> tuple[int, Any]:
        body = asked.body
        if not all(body.get(key) for key in ("name", "type", "access")):
            raise Error(400, "bad request data")
        check_uid(body["uid"])
        if any(s["name"] == body["name"] for s in self.sources.values()):
            raise Error(409, "data source with the same name already exists")
        if body["uid"] in self.sources:
            raise Error(409, "data source with the same uid already exists")
        self._keep(body, 1, len(self.sources) + 1)
        self.source_permissions[body["uid"]] = [
            {"builtInRole": "Viewer", "permission": "Query"},
            {"builtInRole": "Editor", "permission": "Query"},
            {"builtInRole": "Admin", "permission": "Edit"},
        ]
        return 200, {"message": "Datasource added", "id": self.sources[body["uid"]]["id"]}

    def put_source(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.sources:
            raise Error(404, "Data source not found")
        there = self.sources[uid]
        if there["readOnly"]:
            raise Error(403, "Cannot update read-only data source")
        if asked.body.get("version", 0) not in (0, there["version"]):
            raise Error(409, "Datasource has already been updated by someone else. Please reload")
        self._keep(asked.body, there["version"] + 1, there["id"])
        return 200, {"message": "Datasource updated"}

    def _keep(self, body: Json, version: int, number: int) -> None:
        uid = body["uid"]
        self.secrets[uid] = {**self.secrets.get(uid, {}), **body.get("secureJsonData", {})}
        self.sources[uid] = {
            "id": number, "uid": uid, "orgId": 1, "name": body["name"], "type": body["type"],
            "access": body["access"], "url": body.get("url", ""), "version": version,
            "isDefault": body.get("isDefault", False), "jsonData": body.get("jsonData", {}),
            "secureJsonFields": dict.fromkeys(self.secrets[uid], True), "readOnly": False,
        }  # fmt: skip

    def get_source_permissions(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        self._enterprise()
        if uid not in self.sources:
            raise Error(404, "Data source not found")
        return 200, self.source_permissions[uid]

    def post_source_permission(
        self, asked: Asked, query: Json, uid: str, kind: str, who: str
    ) -> tuple[int, Any]:
        self._enterprise()
        field = {"teams": "teamId", "users": "userId", "builtInRoles": "builtInRole"}[kind]
        value = who if kind == "builtInRoles" else int(who)
        rest = [p for p in self.source_permissions[uid] if p.get(field) != value]
        if asked.body["permission"]:
            rest.append({field: value, "permission": asked.body["permission"]})
        self.source_permissions[uid] = rest
        return 200, {"message": "Permission updated"}

    def _enterprise(self) -> None:
        if self.edition == "oss":
            raise Error(404, "Not found")

    def get_dashboard(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.dashboards:
            raise Error(404, "Dashboard not found", status="not-found")
        found = json.loads(json.dumps(self.dashboards[uid]))
        if self.migrates:
            found["dashboard"] |= {"schemaVersion": 42, "preload": False}
        folder = self.folders.get(found["meta"]["folderUid"], {"title": "General"})
        found["meta"]["folderTitle"] = folder["title"]
        return 200, found

    def get_versions(self, asked: Asked, query: Json, uid: str) -> tuple[int, Any]:
        if uid not in self.versions:
            raise Error(404, "Dashboard not found", status="not-found")
        newest = self.versions[uid][::-1][: int(query.get("limit", 1000))]
        return 200, {"continueToken": "", "versions": newest}

    def post_dashboard(self, asked: Asked, query: Json) -> tuple[int, Any]:
        body, document = asked.body, asked.body["dashboard"]
        uid = document.get("uid")
        check_uid(uid)
        if not document.get("title"):
            raise Error(400, "Dashboard title cannot be empty", status="empty-name")
        if len(body.get("message", "")) > 500:
            raise Error(400, "message too long, max 500 characters")
        if body.get("folderUid") and body["folderUid"] not in self.folders:
            raise Error(400, "folder not found")
        there = self.dashboards.get(uid)
        version = there["dashboard"]["version"] if there else 0
        if there and there["meta"]["provisioned"]:
            raise Error(400, "Cannot save provisioned dashboard")
        if there and document.get("version") != version and not body.get("overwrite"):
            raise Error(
                412, "The dashboard has been changed by someone else", status="version-mismatch"
            )
        number = there["dashboard"]["id"] if there else len(self.dashboards) + 1
        self.dashboards[uid] = {
            "dashboard": {**document, "id": number, "version": version + 1},
            "meta": {"folderUid": body.get("folderUid", ""), "provisioned": False, "slug": uid},
        }
        self.versions.setdefault(uid, []).append(
            {"version": version + 1, "message": body.get("message", "")}
        )
        return 200, {"id": number, "uid": uid, "status": "success", "version": version + 1}

    def get_teams(self, asked: Asked, query: Json) -> tuple[int, Any]:
        named = [{"id": n, "name": t} for t, n in self.teams.items() if t == query.get("name")]
        return 200, {"totalCount": len(named), "teams": named, "page": 1, "perPage": 1000}

    def get_users(self, asked: Asked, query: Json) -> tuple[int, Any]:
        start = query.get("query", "")
        return 200, [{"userId": n, "login": u} for u, n in self.users.items() if start in u]

    def get_rules(self, asked: Asked, query: Json) -> tuple[int, Any]:
        return 200, [
            {**rule, "id": n, "updated": "2026-01-01T00:00:00Z", "for": "1m0s",
             "folderUID": key[0], "ruleGroup": key[1], "provenance": self.provenance[key]}
            for key, group in self.rule_groups.items() for n, rule in enumerate(group["rules"], 1)
        ]  # fmt: skip

    def put_rules(self, asked: Asked, query: Json, uid: str, group: str) -> tuple[int, Any]:
        if asked.body.get("interval", 0) % 10 or not asked.body.get("rules"):
            raise Error(400, "invalid alert rule group")
        if self.provenance.get((uid, group)) == "file":
            raise Error(409, "invalid alert rule group provenance")
        moved = {rule["uid"] for rule in asked.body["rules"] if "uid" in rule}
        for key, other in list(self.rule_groups.items()):
            other["rules"] = [rule for rule in other["rules"] if rule.get("uid") not in moved]
            if not other["rules"]:
                del self.rule_groups[key]
        self.rule_groups[uid, group] = asked.body
        off = asked.headers.get("X-Disable-Provenance", "")
        self.provenance[uid, group] = "" if off else "api"
        return 200, asked.body

    def delete_rules(self, asked: Asked, query: Json, uid: str, group: str) -> tuple[int, Any]:
        if self.rule_groups.pop((uid, group), None) is None:
            raise Error(404, "rule group not found")
        return 204, None


def check_uid(uid: object) -> None:
    """Grafana's rule for every uid."""
    if not isinstance(uid, str) or len(uid) > 40:
        raise Error(400, "uid too long, max 40 characters")
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", uid):
        raise Error(400, "uid contains illegal characters")


_G = FakeGrafana
_RULES = r"/v1/provisioning/folder/([^/]+)/rule-groups/([^/]+)"
ROUTES: Final[list[tuple[str, str, str, Callable[..., tuple[int, Any]]]]] = [
    ("GET", r"/health", "", _G.get_health),
    ("GET", r"/plugins/([^/]+)/settings", "", _G.get_plugin),
    ("GET", r"/folders", "folders:read", _G.get_folders),
    ("POST", r"/folders", "folders:create", _G.post_folder),
    ("GET", r"/folders/([^/]+)/permissions", "folders.permissions:read",
     _G.get_folder_permissions),
    ("POST", r"/folders/([^/]+)/permissions", "folders.permissions:write",
     _G.post_folder_permissions),
    ("GET", r"/datasources", "datasources:read", _G.get_sources),
    ("GET", r"/datasources/uid/([^/]+)", "datasources:read", _G.get_source),
    ("POST", r"/datasources", "datasources:create", _G.post_source),
    ("PUT", r"/datasources/uid/([^/]+)", "datasources:write", _G.put_source),
    ("GET", r"/access-control/datasources/([^/]+)", "datasources.permissions:read",
     _G.get_source_permissions),
    ("POST", r"/access-control/datasources/([^/]+)/(teams|users|builtInRoles)/([^/]+)",
     "datasources.permissions:write", _G.post_source_permission),
    ("GET", r"/dashboards/uid/([^/]+)", "dashboards:read", _G.get_dashboard),
    ("GET", r"/dashboards/uid/([^/]+)/versions", "dashboards:write", _G.get_versions),
    ("POST", r"/dashboards/db", "dashboards:create", _G.post_dashboard),
    ("GET", r"/teams/search", "teams:read", _G.get_teams),
    ("GET", r"/org/users/lookup", "org.users:read", _G.get_users),
    ("GET", r"/v1/provisioning/alert-rules", "alert.provisioning:read", _G.get_rules),
    ("PUT", _RULES, "alert.provisioning:write", _G.put_rules),
    ("DELETE", _RULES, "alert.provisioning:write", _G.delete_rules),
]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two would wait for each other
    server: "_Server"

    def do_GET(self) -> None:
        fake = self.server.fake
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, dict(self.headers), json.loads(raw) if raw else None)
        fake.asked.append(asked)
        for waiting in fake.faults:
            if f"{asked.method} {asked.path}".startswith(waiting[0]):
                fake.faults.remove(waiting)
                found = waiting[1](self, asked)
                if found is None:
                    self.close_connection = True
                else:
                    self._send(found)
                return
        try:
            status, body = fake.answer(asked)
        except Error as error:
            status, body = error.code, error.body
        # 204 has no body at all.
        self._send(Answer(status, b"" if status == 204 else json.dumps(body).encode()))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    fake: FakeGrafana

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


@contextlib.contextmanager
def running() -> Iterator[FakeGrafana]:
    """A fake that listens on a port of its own."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.fake = FakeGrafana()
    server.fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
