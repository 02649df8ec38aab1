"""A small HTTP server for pages that are read: bounded, loopback by default, else with a token."""

import hmac
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from pipeline.errors import Refuse

log = logging.getLogger(__name__)

MAX_REQUESTS: Final = 8
"""Answered at once; further connections are closed."""
TIMEOUT_S: Final = 5.0
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """host:port or [host]:port. Raises Refuse."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.path or parts.query or parts.username is not None:
        raise Refuse(f"[agent] listen={text!r} is not an address such as 127.0.0.1:9465")
    return Address(host, port)


class _Server(ThreadingHTTPServer):
    """Threads are few and end by themselves within the timeout."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: Address, pages: Pages, token: str) -> None:
        self.pages = pages
        self.token = token
        self.names = _LOOPBACK_NAMES | {address.host, f"[{address.host}]"}
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.address_family = family
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Clients that leave or are slow are no news; a mistake of ours is."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "request of %s failed", client_address, exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """GET only; other methods are answered 501 by the base class."""

    server: _Server
    timeout = TIMEOUT_S
    server_version = "megawatch"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(self._page())

    def _page(self) -> Page:
        if self.server.token:
            given = self.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
                return text(HTTPStatus.UNAUTHORIZED, "a bearer token is needed\n")
        elif self._host() not in self.server.names:
            # A web page that had its own name resolve to this machine must not read this.
            return text(HTTPStatus.FORBIDDEN, "this is not the host's name\n")
        page = self.server.pages.get(urlsplit(self.path).path)
        return page() if page else text(HTTPStatus.NOT_FOUND, "no such page\n")

    def _host(self) -> str:
        host, _, port = self.headers.get("Host", "").lower().rpartition(":")
        return host if host and port.isdigit() else self.headers.get("Host", "").lower()

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the base class's name
        log.debug(format, *args)


class Web:
    """Serves pages in a thread of its own until closed."""

    def __init__(self, listen: str, pages: Pages, token: str = "") -> None:
        address = parse_address(listen)
        if not address.is_loopback and not token:
            raise Refuse(
                f"[agent] listen={listen!r} can be reached from other machines: name a "
                "token_file, or listen on 127.0.0.1"
            )
        try:
            self._server = _Server(address, pages, token)
        except OSError as error:
            raise Refuse(f"[agent] listen={listen!r}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port, also where 0 asked for any."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening; idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


def text(status: int, body: str) -> Page:
    """A plain page."""
    return Page(status, "text/plain; charset=utf-8", body.encode())
