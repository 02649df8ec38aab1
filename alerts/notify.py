"""Tells people: every Alertmanager gets every alert, and where none answers a webhook or the log.

Each Alertmanager has a thread and a short queue of its own, so that one that hangs delays nobody.
An answer of 400 means that some alert of the batch is bad, while the good ones were taken: the
batch is halved until the bad one is found.
"""

import contextlib
import http.client
import json
import logging
import queue
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from alerts.message import Message
from pipeline.errors import Refuse, Reject, Retry

_log: Final = logging.getLogger("megawatch.alerts")

TIMEOUT_S: Final = 5.0
"""Of one request, and for how long a round waits for the first answer."""
BATCH: Final = 500
QUEUE: Final = 8
"""Rounds that wait for a target; of more, the oldest goes: what still fires is sent again."""
MAX_POSTS: Final = 64
"""Requests to find the bad ones of a batch; what is not sorted out by then counts as refused."""
_PATH: Final = "/api/v2/alerts"

Messages = Mapping[int, Message]


@dataclass(slots=True)
class Sent:
    """Alerts by target and result: sent, refused (by itself), failed (no answer), dropped."""

    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    last_success_ms: int = 0
    fallbacks: int = 0


def post(url: str, body: object, timeout_s: float = TIMEOUT_S) -> None:
    """POST JSON. Raises Reject when it is answered 400 or 422, Retry for all else but success."""
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked at the start
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            answer.read(1 << 16)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace").strip()
        reason = f"{url} answered {error.code}: {said}"
        if error.code in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
            raise Reject(reason) from error
        raise Retry(reason) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Retry(f"{url}: {error}") from error


def checked(url: str) -> str:
    """The address, if it is one that can be posted to. Raises Refuse."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Refuse(f"[alerts] {url!r} is no address such as http://alertmanager:9093")
    return url


_LEVELS: Final = {"page": logging.ERROR, "ticket": logging.WARNING, "info": logging.INFO}
"""How loud an alert is in the log, by severity."""


class _Delivery:
    """Messages on their way to several targets; the round waits until one has answered for all."""

    def __init__(self, messages: Messages, targets: int) -> None:
        self.messages = messages
        self.accepted: set[int] = set()
        self._left = targets
        self._changed = threading.Condition()

    def report(self, accepted: Collection[int]) -> None:
        with self._changed:
            self.accepted |= set(accepted)
            self._left -= 1
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> set[int]:
        """What some target has taken, once that is everything or every target has answered."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._left or len(self.accepted) == len(self.messages), timeout_s
            )
            return set(self.accepted)


class _Target:
    """One Alertmanager, with a thread of its own."""

    def __init__(self, url: str, sent: Sent, lock: threading.Lock) -> None:
        self.name = urlsplit(checked(url)).netloc.rpartition("@")[2]
        self._url = url.rstrip("/") + _PATH
        self._sent, self._lock = sent, lock
        self._queue: queue.Queue[_Delivery | None] = queue.Queue(QUEUE)
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"to {self.name}", daemon=True)
        self._thread.start()

    def put(self, delivery: _Delivery | None) -> None:
        """Queue; the oldest goes if there is no room."""
        while True:
            try:
                self._queue.put_nowait(delivery)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    oldest = self._queue.get_nowait()
                    if oldest is not None:
                        self._count("dropped", len(oldest.messages))
                        oldest.report(())
            else:
                return

    def close(self) -> None:
        """Let what is being sent end, for as long as one request may take."""
        self.put(None)
        self._thread.join(TIMEOUT_S)

    def _run(self) -> None:
        while (delivery := self._queue.get()) is not None:
            keys = list(delivery.messages)
            accepted: list[int] = []
            for first in range(0, len(keys), BATCH):
                taken = self._batch(delivery.messages, keys[first : first + BATCH])
                accepted += taken or ()
                if taken is None:
                    self._count("failed", len(keys) - first)
                    break
            delivery.report(accepted)

    def _batch(self, messages: Messages, keys: Sequence[int]) -> list[int] | None:
        """The keys that were taken; None if nobody answers."""
        accepted: list[int] = []
        waiting, posts = [list(keys)], 0
        while waiting:
            some = waiting.pop()
            posts += 1
            if posts > MAX_POSTS:
                self._count("refused", len(some))
                continue
            try:
                post(self._url, [messages[key] for key in some])
            except Reject as error:
                middle = len(some) // 2
                if middle:
                    waiting += [some[middle:], some[:middle]]
                else:
                    self._count("refused", 1)
                    _log.error("alert refused: %s: %s", error, messages[some[0]]["labels"])
            except Retry as error:
                if not self._failing:
                    _log.warning("Alertmanager does not answer: %s", error)
                self._failing = True
                return None
            else:
                accepted += some
        self._failing = False
        self._count("sent", len(accepted))
        return accepted

    def _count(self, result: str, alerts: int) -> None:
        with self._lock:
            self._sent.results[self.name, result] += alerts


class Notifier:
    """Every Alertmanager, and where alerts go when none of them answers."""

    def __init__(
        self, alertmanagers: Iterable[str], webhook: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Start a thread per Alertmanager. Raises Refuse on a bad address."""
        self.sent = Sent()
        self.lock = threading.Lock()
        self._webhook = checked(webhook) if webhook else ""
        self._timeout_s = timeout_s
        self._targets = [_Target(checked(url), self.sent, self.lock) for url in alertmanagers]

    def send(self, due: Messages, new: Collection[int], now_ms: int) -> set[int]:
        """Send what is due; returns what somebody has taken.

        `new` is the part that nobody has been told yet: that alone goes to webhook or log, which
        unlike an Alertmanager do not know a repetition from a page.
        """
        if not due:
            return set()
        delivery = _Delivery(due, len(self._targets))
        for target in self._targets:
            target.put(delivery)
        accepted = delivery.wait(self._timeout_s) if self._targets else set()
        lost = {key: due[key] for key in due if key in new and key not in accepted}
        if lost:
            accepted |= self._fall_back(lost)
        if accepted:
            with self.lock:
                self.sent.last_success_ms = now_ms
        return accepted

    def close(self) -> None:
        """End the threads; what is being sent may finish."""
        for target in self._targets:
            target.close()

    def _fall_back(self, messages: Messages) -> set[int]:
        if self._targets:
            _log.error("no Alertmanager took %d alerts", len(messages))
        with self.lock:
            self.sent.fallbacks += bool(self._targets)
        if self._webhook:
            try:
                post(self._webhook, {"source": "megawatch", "alerts": list(messages.values())})
            except (Reject, Retry) as error:
                _log.error("the webhook does not take alerts: %s", error)
                self._count("webhook", "failed", len(messages))
            else:
                self._count("webhook", "sent", len(messages))
                return set(messages)
        for one in messages.values():
            level = _LEVELS.get(one["labels"].get("severity", ""), logging.ERROR)
            summary = one["annotations"].get("summary", "")
            _log.log(level, "%s: %s (since %s) %s", one["labels"].get("alertname"), summary,
                     one["startsAt"], one["labels"])  # fmt: skip
        self._count("log", "sent", len(messages))
        return set(messages)

    def _count(self, target: str, result: str, alerts: int) -> None:
        with self.lock:
            self.sent.results[target, result] += alerts
