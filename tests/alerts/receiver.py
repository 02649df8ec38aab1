"""An HTTP server that takes alerts as Alertmanager 0.25 was measured to, or fails as told."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Receiver:
    """`posts`: every body; `alerts`: what was accepted, the last of each set of labels."""

    def __init__(self) -> None:
        self.posts: list[Any] = []
        self.alerts: dict[str, dict[str, Any]] = {}
        self.behave: Callable[[], int] = lambda: 200
        self.bad: Callable[[dict[str, Any]], bool] = is_bad
        self.url = ""

    def take(self, body: Any) -> int:
        self.posts.append(body)
        status = self.behave()
        if status != 200 or not isinstance(body, list):
            return status
        for one in body:
            if not self.bad(one):
                self.alerts[json.dumps(one["labels"], sort_keys=True)] = one
        # The good ones of a batch are taken although the answer is 400.
        return 400 if any(map(self.bad, body)) else 200


def is_bad(alert: dict[str, Any]) -> bool:
    """What Alertmanager answers 400 to."""
    labels = {name: value for name, value in alert["labels"].items() if value}
    return (
        not labels
        or any(not _NAME.fullmatch(name) for name in labels)
        or any(not isinstance(value, str) for value in labels.values())
        or alert["startsAt"] > alert["endsAt"]
    )


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server on a free port of loopback."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = made.take(body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}" if status == 200 else b'"no good"')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
