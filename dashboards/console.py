"""The console: a local page that draws the generated dashboards from the store, without Grafana.

`Console` serves beside something else in this process; `run` serves until told to stop.
"""

import socket
import threading
from pathlib import Path
from typing import Final

import uvicorn

from dashboards import console_pages
from dashboards.console_app import CONNECTIONS, application
from dashboards.console_query import Stores
from dashboards.pages import PAGES
from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.store import Store
from pipeline.web import Address, parse_address

LISTEN: Final = "127.0.0.1:8080"
_MAX_CONNECTIONS: Final = 200
_BACKLOG: Final = 128
_KEEP_ALIVE_S: Final = 15
_GRACE_S: Final = 3
_JOIN_S: Final = 40.0
"""Longer than a query may take: its connection is closed under nobody."""


class Console:
    """Serves in a thread of its own, on connections of its own, until closed."""

    def __init__(
        self, store: Store, listen: str, token: str = "", folder: Path = console_pages.FOLDER
    ) -> None:
        """Listen. Raises Refuse for an address that is public without a token, or in use."""
        address = parse_address(listen)
        if not address.is_loopback and not token:
            raise Refuse(
                f"the console's address {listen!r} can be reached from other machines: "
                "name a token_file, or listen on 127.0.0.1"
            )
        dashboards = console_pages.read(folder, [page.uid for page in PAGES])
        self._socket = _bound(address)
        self._host = address.host
        try:
            self._stores = Stores(store, CONNECTIONS)
        except BaseException:
            self._socket.close()
            raise
        config = uvicorn.Config(
            application(self._stores, dashboards, address, token),
            lifespan="off", log_config=None, access_log=False, server_header=False,
            limit_concurrency=_MAX_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="console", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where a browser finds it, also where port 0 asked for any."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._socket.getsockname()[1]}/"

    def close(self) -> None:
        """Stop listening and let running queries end; idempotent."""
        if self._thread.is_alive():
            self._server.should_exit = True
            self._thread.join(_JOIN_S)
        self._socket.close()
        self._stores.close()


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address.host, address.port))
        # Whoever comes before the thread has begun waits, and is not refused.
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise Refuse(
            f"the console cannot listen on {address.host}:{address.port}: "
            f"{error.strerror or error} (choose another with --listen)"
        ) from error
    return made


def run(store: Store, listen: str, token: str, stop: threading.Event, clock: Clock) -> int:
    """Serve until `stop` is set; the caller says where."""
    console = Console(store, listen, token)
    print(f"console at {console.url}", flush=True)
    try:
        while not clock.wait(stop, 3600):
            pass
    finally:
        console.close()
    return 0
