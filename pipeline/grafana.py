"""Grafana's HTTP API through grafana-api, the one module that knows that library.

What the library leaves open is closed here: an empty answer of a success is None and no error,
a failure's body may be anything, tries are bounded, waits are ours, redirects are not followed
(a POST would become a GET). What may have reached Grafana is only sent again where that is safe.

Paths are what follows `/api`. Raises Refuse for what a person must mend (token, rights, a change
in between, a wrong address), Retry for what passes by itself.
"""

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

import requests
from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace
from urllib3.exceptions import NewConnectionError

from pipeline.clock import Clock
from pipeline.errors import Refuse, Retry

Json = dict[str, Any]

TRIES: Final = 4
"""With waits of 1, 2 and 4 s in between, or what Grafana asks for."""
MAX_WAIT_S: Final = 30.0
TIMEOUT_S: Final = 30.0
PAGE_FOLDERS: Final = 1000
MAX_PAGES: Final = 20
VIEW: Final = 1
"""Permission of a folder: to look at it."""
_NEEDED: Final = re.compile(r"[Pp]ermissions? needed: ([\w.:, *-]+)")
_TEXT_CHARS: Final = 200
_BUSY: Final = requests.codes.too_many_requests


class Health(NamedTuple):
    """What Grafana says of itself without a token; empty where it hides it."""

    version: str
    database: str


class Grantee(NamedTuple):
    """A team or a user, by Grafana's number."""

    kind: str
    """`teams` or `users`, as in paths."""
    number: int


class _Failed(Exception):
    """An answer that is no success, or none; never leaves this module."""

    def __init__(self, status: int, text: str, *, lost: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.status, self.text, self.lost, self.wait_s = status, text, lost, wait_s


class Grafana:
    """One organisation of a Grafana, which its token belongs to."""

    def __init__(self, url: str, token: str, clock: Clock, *, ca_file: str = "") -> None:
        parts = _address(url)
        if not token:
            raise Refuse(
                "no token of Grafana: make a service account there, and put its token into"
                " MEGAWATCH_GRAFANA__TOKEN or into the file that [grafana] token_file names"
            )
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise Refuse("the token of Grafana is not one word of ASCII: it was not copied whole")
        if ca_file and not Path(ca_file).is_file():
            raise Refuse(f"[grafana] ca_file={ca_file!r} is no file")
        self.url: Final = url.rstrip("/")
        self._token, self._clock = token, clock
        prefix = parts.path.strip("/")
        host = parts.hostname or ""
        self._face = GrafanaFace(
            token,
            host=f"[{host}]" if ":" in host else host,
            port=parts.port,
            protocol=parts.scheme,
            url_path_prefix=f"{prefix}/" if prefix else "",
            verify=ca_file or True,
            timeout=TIMEOUT_S,
        )
        self._face.api.s.max_redirects = 0
        self._answers: list[requests.Response] = []
        self._face.api.s.hooks["response"].append(lambda r, **_: self._answers.append(r))

    # -- what there is --------------------------------------------------------------------------

    def health(self) -> Health:
        """Whether somebody is there, and which version."""
        found = self._read("/health", "to ask for its health") or {}
        return Health(str(found.get("version", "")), str(found.get("database", "")))

    def has_plugin(self, plugin: str) -> bool:
        """Whether a plugin is installed."""
        return self._read(f"/plugins/{plugin}/settings", "to look for plugins") is not None

    def folders(self) -> list[Json]:
        """The folders at the top: uid and title of each."""
        found: list[Json] = []
        for page in range(1, MAX_PAGES + 1):
            path = f"/folders?limit={PAGE_FOLDERS}&page={page}"
            some: list[Json] = self._read(path, "to list folders", "folders:read") or []
            found += some
            if len(some) < PAGE_FOLDERS:
                return found
        raise Refuse(f"{self.url} has more than {len(found)} folders at the top")

    def dashboard(self, uid: str) -> Json | None:
        """A dashboard with its `meta`, or None."""
        path = f"/dashboards/uid/{quote(uid, safe='')}"
        found: Json | None = self._read(path, f"to read dashboard {uid}", "dashboards:read")
        return found

    def newest_message(self, uid: str) -> str:
        """What whoever saved a dashboard last wrote about it."""
        path = f"/dashboards/uid/{quote(uid, safe='')}/versions?limit=1"
        found = self._read(path, f"to read the versions of dashboard {uid}", "dashboards:write")
        # A bare list up to Grafana 11, later a page of it.
        versions = found.get("versions", []) if isinstance(found, dict) else found or []
        newest: Json = max(versions, key=lambda v: v.get("version", 0), default={})
        return str(newest.get("message") or "")

    def data_sources(self) -> list[Json]:
        """All of the organisation."""
        work = self._face.datasource.list_datasources
        found: list[Json] = self._do(work, "to list data sources", "datasources:read")
        return found

    def data_source(self, uid: str) -> Json | None:
        """A data source without its secrets, or None."""
        path = f"/datasources/uid/{quote(uid, safe='')}"
        found: Json | None = self._read(path, f"to read data source {uid}", "datasources:read")
        return found

    def folder_permissions(self, uid: str) -> list[Json]:
        """Who may do what in a folder; nothing if there is no folder."""
        path = f"/folders/{quote(uid, safe='')}/permissions"
        found = self._read(path, f"to read who sees folder {uid}", "folders.permissions:read")
        return found or []

    def source_permissions(self, uid: str) -> list[Json] | None:
        """Who may query a data source; None where Grafana knows no such permissions.

        They are a part of Grafana Enterprise and Grafana Cloud.
        """
        path = f"/access-control/datasources/{quote(uid, safe='')}"
        right = "datasources.permissions:read"
        found: list[Json] | None = self._read(path, f"to read who queries {uid}", right)
        return found

    def team(self, name: str) -> Grantee:
        """A team by its name."""
        path = f"/teams/search?name={quote(name, safe='')}"
        found = self._read(path, "to look for teams", "teams:read") or {}
        for team in found.get("teams", []):
            if team["name"] == name:
                return Grantee("teams", team["id"])
        raise Refuse(f"{self.url} has no team {name!r} in this organisation: make it first")

    def user(self, login: str) -> Grantee:
        """A user of the organisation by login."""
        path = f"/org/users/lookup?query={quote(login, safe='')}"
        for user in self._read(path, "to look for users", "org.users:read") or []:
            if user["login"] == login:
                return Grantee("users", user["userId"])
        raise Refuse(f"{self.url} has no user {login!r} in this organisation: invite them first")

    # -- what changes it ------------------------------------------------------------------------

    def create_folder(self, uid: str, title: str) -> None:
        """A folder at the top."""
        self._do(
            lambda: self._face.folder.create_folder(title, uid),
            f"to create folder {title!r}", "folders:create", again=False,
        )  # fmt: skip

    def save_dashboard(self, body: Json) -> None:
        """Create or update: {dashboard, folderUid, message, overwrite}."""
        self._do(
            lambda: self._face.dashboard.update_dashboard(body),
            f"to save dashboard {body['dashboard']['uid']}",
            "dashboards:create and dashboards:write", again=False,
        )  # fmt: skip

    def create_data_source(self, body: Json) -> None:
        """With the uid in it."""
        self._do(
            lambda: self._face.datasource.create_datasource(body),
            f"to create data source {body['uid']}", "datasources:create", again=False,
        )  # fmt: skip

    def update_data_source(self, body: Json) -> None:
        """By uid, if its `version` is still the newest; the library knows the old path only."""
        self.call(
            "PUT", f"/datasources/uid/{quote(body['uid'], safe='')}", body, again=False,
            what=f"to update data source {body['uid']}", right="datasources:write",
        )  # fmt: skip

    def set_folder_permissions(self, uid: str, items: list[Json]) -> None:
        """Replace all that are not inherited."""
        self._do(
            lambda: self._face.folder.update_folder_permissions(uid, {"items": items}),
            f"to say who sees folder {uid}", "folders.permissions:write",
        )  # fmt: skip

    def set_source_permission(self, uid: str, kind: str, who: str, permission: str) -> None:
        """Of `teams`, `users` or `builtInRoles`: Query, Edit, or nothing."""
        self.call(
            "POST", f"/access-control/datasources/{quote(uid, safe='')}/{kind}/{who}",
            {"permission": permission}, again=True,
            what=f"to say who queries {uid}", right="datasources.permissions:write",
        )  # fmt: skip

    def call(
        self, method: str, path: str, body: object = None, *,
        headers: Mapping[str, str] | None = None, what: str = "", right: str = "",
        again: bool | None = None,
    ) -> Any:  # fmt: skip
        """Anything else of the API, as PUT /v1/provisioning/folder/UID/rule-groups/NAME.

        `what` and `right` are for the sentence if it fails; `again` whether a request whose answer
        was lost is repeated, by default all but POST and PATCH. Returns JSON, None for an empty
        answer.
        """
        send = getattr(self._face.api, method)
        repeats = method not in ("POST", "PATCH") if again is None else again
        return self._do(
            lambda: send(path, json=body, headers=headers),
            what or f"{method} {path}", right, again=repeats,
        )  # fmt: skip

    # -- how ------------------------------------------------------------------------------------

    def _read(self, path: str, what: str, right: str = "") -> Any:
        """A GET; None for what is not there."""
        return self._do(lambda: self._face.api.GET(path), what, right, absent=True)

    def _do(
        self, work: Callable[[], Any], what: str, right: str, *,
        again: bool = True, absent: bool = False,
    ) -> Any:  # fmt: skip
        for attempt in range(TRIES):
            try:
                return self._once(work)
            except _Failed as error:
                if absent and error.status == requests.codes.not_found:
                    return None
                self._refuse(error, what, right)
                safe = again or error.status == _BUSY or (not error.status and not error.lost)
                if not safe or attempt == TRIES - 1:
                    status = f"{error.status} " if error.status else ""
                    raise Retry(f"Grafana at {self.url}: {status}{error.text}") from None
                wait_s = min(error.wait_s or 2.0**attempt, MAX_WAIT_S)
                self._clock.wait(threading.Event(), wait_s)
        raise AssertionError

    def _once(self, work: Callable[[], Any]) -> Any:
        """One request. The library's exceptions say less than the answer itself."""
        self._answers.clear()
        try:
            return work()
        except requests.TooManyRedirects as error:
            to = error.response.headers.get("Location", "") if error.response is not None else ""
            raise Refuse(
                f"{self.url} sends us on to {self._line(to)}: give the address of Grafana itself"
            ) from None
        except requests.exceptions.SSLError as error:
            raise Refuse(
                f"{self.url} has a certificate that is not trusted here ({_cause(error)}):"
                " set [grafana] ca_file to the authority that signed it"
            ) from None
        except requests.JSONDecodeError as error:
            if not error.doc.strip():
                return None
            text = self._line(error.doc)
            raise Refuse(f"{self.url} answers, but not as Grafana: {text!r}") from None
        except (GrafanaException, TypeError):  # TypeError: the body of a failure was null
            if not self._answers or self._answers[-1].ok:
                raise
            raise self._failed(self._answers[-1]) from None
        except requests.RequestException as error:
            raise _Failed(0, _cause(error), lost=not _never_left(error)) from None

    def _refuse(self, error: _Failed, what: str, right: str) -> None:
        """Raise Refuse for what trying again does not mend."""
        if error.status == requests.codes.unauthorized:
            why = "it is unknown, expired or disabled"
            raise Refuse(f"the token of Grafana at {self.url} is refused {what}: {why}") from None
        if error.status == requests.codes.forbidden:
            said = _NEEDED.search(error.text)
            missing = said[1].strip() if said else right
            why = f"it has not the right {missing}" if missing else error.text
            raise Refuse(f"the token of Grafana at {self.url} is refused {what}: {why}") from None
        if error.status == requests.codes.precondition_failed:
            raise Refuse(
                f"Grafana at {self.url} refuses {what}: somebody changed it meanwhile"
                f" ({error.text}), look at it and run this again"
            ) from None
        if 400 <= error.status < 500 and error.status != _BUSY:
            raise Refuse(
                f"Grafana at {self.url} refuses {what}: {error.status} {error.text}"
            ) from None

    def _failed(self, answer: requests.Response) -> _Failed:
        """What a failure says of itself, whatever its body is."""
        try:
            body = answer.json()
        except requests.JSONDecodeError:
            body = answer.text
        said = body.get("message") if isinstance(body, dict) else None
        text = self._line(str(said or answer.text))
        after = answer.headers.get("Retry-After", "")
        wait_s = float(after) if after.isdecimal() else 0.0
        return _Failed(answer.status_code, text, wait_s=wait_s)

    def _line(self, text: str) -> str:
        """One line of foreign text: short, and without the token that a proxy may echo."""
        plain = re.sub(r"<[^>]*>", " ", text.replace(self._token, "..."))
        return " ".join(plain.split())[:_TEXT_CHARS]


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.username is not None:
        raise Refuse("the address of Grafana holds a user or password: only a token is taken")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise Refuse(f"{url!r} is not the address of a Grafana, as https://grafana.example:3000")
    return parts


def _never_left(error: requests.RequestException) -> bool:
    """Whether nobody can have read the request."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    inner = error.args[0] if error.args else None
    return isinstance(getattr(inner, "reason", None), NewConnectionError)


def _cause(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_S:g} s"
    inner = error.args[0] if error.args else error
    reason = getattr(inner, "reason", None) or inner
    # Text that begins with an object's address in memory helps nobody.
    return re.sub(r"^.*?object at 0x\w+>:\s*|^\w+\(.*?\): ", "", str(reason))[:_TEXT_CHARS]
