"""Sending: everybody gets everything, the bad one is found, and somebody is always told."""

import json
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts import message, notify
from alerts.notify import Notifier
from alerts.rule import Rule
from pipeline.errors import Refuse
from tests.alerts.receiver import Receiver, is_bad, receiver
from tests.alerts.sites import alert

NOW_MS = 1_790_000_000_000
RULE = Rule(
    name="NodeSilent", question="Is it?", severity="page", scope="node", above=0.0,
    summary="{node}: {value} of {value:.2f} {unknown}", unit="GPUs",
)  # fmt: skip


@pytest.fixture
def first() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def second() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def messages(count: int) -> dict[int, message.Message]:
    return {
        n: message.message(alert(node=f"n{n}"), {}, NOW_MS) for n in range(count)
    }  # fmt: skip


def sent(to: list[str], due: dict[int, Any], webhook: str = "", timeout_s: float = 5.0):
    """What was taken, and the counts, of one round in which everything is new."""
    notifier = Notifier(to, webhook, timeout_s)
    try:
        taken = notifier.send(due, set(due), NOW_MS)
    finally:
        notifier.close()
    counts = Counter[tuple[str, str]]()
    for (target, result), number in notifier.sent.results.items():
        counts[target.partition(":")[0], result] += number
    return taken, +counts, notifier.sent


def test_every_alertmanager_gets_every_alert(first: Receiver, second: Receiver) -> None:
    taken, counts, totals = sent([first.url, second.url + "/"], messages(1200))
    assert taken == set(range(1200))
    assert len(first.alerts) == len(second.alerts) == 1200
    assert [len(post) for post in first.posts] == [500, 500, 200]
    assert sum(counts.values()) == 2400
    assert totals.last_success_ms == NOW_MS


def test_one_that_is_away_does_not_keep_the_other_waiting(first: Receiver) -> None:
    taken, counts, totals = sent(["http://127.0.0.1:1", first.url], messages(3))
    assert taken == {0, 1, 2}
    assert totals.fallbacks == 0
    assert counts == {("127.0.0.1", "sent"): 3, ("127.0.0.1", "failed"): 3}


def test_one_that_hangs_is_waited_for_no_longer_than_stated(
    first: Receiver, second: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    first.behave = lambda: 200 if release.wait(5) else 500
    notifier = Notifier([first.url], second.url, 0.2)
    for number in range(notify.QUEUE + 4):
        taken = notifier.send(messages(2), {0, 1} if not number else set(), NOW_MS)
        assert taken == ({0, 1} if not number else set())
    # Its queue is short, and what did not fit is counted.
    assert notifier.sent.results[first.url.removeprefix("http://"), "dropped"] == 2 * 3
    assert len(second.posts) == 1
    assert second.posts[0]["source"] == "megawatch"
    assert [one["labels"]["node"] for one in second.posts[0]["alerts"]] == ["n0", "n1"]
    release.set()
    notifier.close()


def test_the_bad_one_of_a_batch_is_found_and_told_otherwise(
    first: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    first.bad = lambda one: is_bad(one) or one["labels"]["node"] in ("n7", "n400")
    taken, counts, _ = sent([first.url], messages(500))
    assert taken == set(range(500))
    assert counts == {
        ("127.0.0.1", "sent"): 498, ("127.0.0.1", "refused"): 2, ("log", "sent"): 2,
    }  # fmt: skip
    assert len(first.alerts) == 498
    assert len(first.posts) < 40
    assert "'node': 'n7'" in caplog.text


def test_a_batch_of_nothing_but_bad_ones_is_given_up_in_time(
    first: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    first.bad = lambda _: True
    taken, counts, _ = sent([first.url], messages(500))
    assert taken == set(range(500))
    assert counts[("127.0.0.1", "refused")] == counts[("log", "sent")] == 500
    assert len(first.posts) == notify.MAX_POSTS


def test_without_alertmanager_the_webhook_is_told_of_news_alone(second: Receiver) -> None:
    notifier = Notifier([], second.url)
    assert notifier.send(messages(3), {1}, NOW_MS) == {1}
    assert notifier.send(messages(3), set(), NOW_MS) == set()
    assert notifier.send({}, set(), NOW_MS) == set()
    notifier.close()
    assert [len(post["alerts"]) for post in second.posts] == [1]
    assert notifier.sent.fallbacks == 0


@pytest.mark.parametrize("status", [404, 500, 400])
def test_when_nobody_takes_it_the_log_has_it(
    first: Receiver, second: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    first.behave = second.behave = lambda: status
    with caplog.at_level(logging.WARNING):
        taken, counts, totals = sent([first.url], messages(1), second.url)
    assert taken == {0}
    assert totals.fallbacks == 1
    assert counts[("webhook", "failed")] == counts[("log", "sent")] == 1
    assert "no Alertmanager took 1 alerts" in caplog.text
    assert "the webhook does not take alerts" in caplog.text
    assert "'node': 'n0'" in caplog.text


def test_an_answer_that_is_no_http_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def babble() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100_000)
                peer.sendall(b"what?\r\n\r\n")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        taken, counts, _ = sent([f"http://127.0.0.1:{port}"], messages(1))
        thread.join(5)
    assert taken == {0}
    assert counts == {("127.0.0.1", "failed"): 1, ("log", "sent"): 1}


@pytest.mark.parametrize(
    "url", ["alertmanager:9093", "ftp://x", "http://", "http://x:99999", "", "file:///etc/passwd"]
)
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(Refuse, match=r"\[alerts\]"):
        Notifier([url], "")


# -- messages -----------------------------------------------------------------------------------


def test_a_message_is_what_alertmanager_takes() -> None:
    one = replace(alert(node="n1"), annotations={"summary": "x", "dashboard": "http://d"})
    made = message.message(one, {"scope": "node", "site": "rule's"}, NOW_MS)
    assert made == {
        "labels": {"alertname": "NodeSilent", "severity": "page", "site": "s", "node": "n1",
                   "scope": "node"},
        "annotations": {"summary": "x", "dashboard": "http://d"},
        "startsAt": "1970-01-01T00:00:01.000Z",
        "endsAt": "2026-09-21T14:13:20.000Z",
        "generatorURL": "http://d",
    }  # fmt: skip


TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=1200), max_size=6)


@given(TEXTS, TEXTS, st.integers(0, 4_000_000_000_000), st.integers(0, 4_000_000_000_000))
def test_whatever_labels_say_a_message_is_valid(
    labels: dict[str, str], texts: dict[str, str], fired_ms: int, ends_ms: int
) -> None:
    one = replace(alert(), labels=labels, annotations=texts, fired_ms=fired_ms)
    made = json.loads(json.dumps(message.message(one, {}, ends_ms)).encode("utf-8"))
    assert not is_bad(made)
    assert all(made["labels"].values())
    assert made["labels"]["alertname"] == "NodeSilent"
    assert max(map(len, made["labels"].values())) <= message.MAX_TEXT


def test_names_that_become_one_stay_two() -> None:
    assert message.valid({"a.b": "1", "a-b": "2", "0": "3", "": "4", "e": ""}) == {
        "a_b": "1", "a_b_": "2", "_0": "3", "_": "4",
    }  # fmt: skip
    assert message.valid({"a": "x\ud800\x00y"}) == {"a": "x\ufffd\ufffdy"}


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("{node}: {value} GPUs", "n1: 1,234.5 GPUs"),
        ("{value:.2f} of {nobody}", "1234.50 of {nobody}"),
        ("{node:.1f} is wrong", "{node:.1f} is wrong"),
        ("{node.x} and {0}", "{node.x} and {0}"),
        ("half {", "half {"),
    ],
)
def test_a_summary_never_fails(summary: str, said: str) -> None:
    one = replace(alert(node="n1"), value=1234.5)
    assert message.sentence(replace(RULE, summary=summary), one) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (72.0, "72"),
        (1e6, "1,000,000"),
        (99.96, "100"),
        (1.25, "1.2"),
    ],
)
def test_a_value_reads_well(value: float, said: str) -> None:
    assert message.number(value) == said
