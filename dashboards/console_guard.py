"""What stands before the console's pages: who may ask, what the answers' headers say, counters."""

import base64
import hmac
import logging
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.web import Address

_log: Final = logging.getLogger("megawatch.console")

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OWN: Final = "megawatch_console"


class Meters:
    """What the console counts of itself."""

    def __init__(self) -> None:
        """With a registry of its own: a process may have several consoles."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{_OWN}_requests", "Requests answered", ["status"], registry=self.registry
        )
        self.query_seconds = Histogram(
            f"{_OWN}_query_seconds", "Time of queries in the store", registry=self.registry
        )
        self.failed = Counter(f"{_OWN}_queries_failed", "Failed queries", registry=self.registry)
        self.refused = Counter(
            f"{_OWN}_queries_busy", "Queries refused because too many waited",
            registry=self.registry,
        )  # fmt: skip
        self.left = Counter(
            f"{_OWN}_queries_left", "Queries whose asker had gone", registry=self.registry
        )
        self.waiting = Gauge(
            f"{_OWN}_queries_waiting", "Queries that wait or run", registry=self.registry
        )


class Guard:
    """Lets GET and HEAD of whoever may ask through; every answer gets the headers."""

    def __init__(self, app: ASGIApp, address: Address, token: str, meters: Meters) -> None:
        """A token replaces the check of the host's name, as on the other listeners."""
        self._app, self._token, self._meters = app, token, meters
        self._names = _LOOPBACK_NAMES | {address.host, f"[{address.host}]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                self._meters.requests.labels(message["status"]).inc()
            await send(message)

        answer = self._refusal(scope) or self._app
        await answer(scope, receive, sent)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._token:
            if not _has_token(headers.get("authorization", ""), self._token):
                return refusal(
                    401, "a token is needed", {"WWW-Authenticate": 'Basic realm="megawatch"'}
                )
        elif _host(headers.get("host", "")) not in self._names:
            # A web page that had its own name resolve to this machine must not read this.
            return refusal(403, "this is not the host's name")
        if scope["method"] not in ("GET", "HEAD"):
            return refusal(405, "the console only reads: GET", {"Allow": "GET, HEAD"})
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_page(
            scope["path"]
        ):
            # Another site's page could not read the answer, but it could keep the store busy.
            return refusal(403, "only the console's own pages may ask this")
        return None


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the page shows it."""
    return JSONResponse({"error": sentence}, status, headers)


def _is_page(path: str) -> bool:
    """What a link elsewhere may lead to."""
    return path == "/" or path.startswith("/d/")


def _host(header: str) -> str:
    host, _, port = header.lower().rpartition(":")
    return host if host and port.isdigit() else header.lower()


def _has_token(authorization: str, token: str) -> bool:
    """As a bearer token, or as the password that a browser asks for."""
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # no Base64, or no text
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())
