"""Rounds over a store: what is asked, what is folded, what is told, and what outlives a restart."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from alerts import evaluate, history, incidents, run, topology
from alerts.alert import State
from alerts.evaluator import Evaluator
from alerts.fold import Damage, Page
from alerts.metrics import pages
from alerts.rule import Rule, Signal
from alerts.topology import Place
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Refuse, Retry
from pipeline.settings import Alerts, Settings
from pipeline.store import Store
from tests.alerts.faults import FAULTS, SILENT, break_, fill
from tests.alerts.receiver import Receiver, receiver
from tests.alerts.sites import alert

START_MS = 1_790_000_010_000
DATA = replace(SILENT, name="DataSilent", signal=replace(FAULTS, name="data", clock="data"))


class Site:
    """A store with three racks of nine nodes of eight GPUs, and a table of what is broken."""

    def __init__(self, store: Store, receiver: Receiver) -> None:
        self.store, self.receiver = store, receiver
        self.clock = ManualClock(START_MS)
        self.settings = Settings(alerts=Alerts(alertmanagers=(receiver.url,)))
        self.rules: tuple[Rule, ...] = (SILENT,)
        self.started: list[Evaluator] = []
        fill(store, START_MS)

    def break_(self, *nodes: str) -> None:
        break_(self.store, nodes)

    def mend(self) -> None:
        self.store.command("TRUNCATE TABLE faults")

    def start(self) -> Evaluator:
        self.started.append(Evaluator(self.settings, self.store.another(), self.rules, self.clock))
        return self.started[-1]

    def rounds(self, running: Evaluator, count: int = 1) -> list[list[dict[str, Any]]]:
        """The alerts posted in each of so many rounds."""
        out = []
        for _ in range(count):
            before = len(self.receiver.posts)
            self.clock.advance(self.settings.alerts.interval_s)
            running.round(self.clock.now_ms())
            out.append([one for post in self.receiver.posts[before:] for one in post])
        return out


@pytest.fixture
def told() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def site(store: Store, told: Receiver) -> Iterator[Site]:
    made = Site(store, told)
    yield made
    for running in made.started:
        running.close()


RACK = [f"r2-n{n}" for n in range(1, 10)]


def names(posted: list[dict[str, Any]]) -> list[str]:
    return sorted(
        one["labels"]["alertname"] + " " + one["labels"].get("node", one["labels"].get("rack", ""))
        for one in posted
    )


def test_a_rack_is_one_page_with_everything_in_it(site: Site) -> None:
    running = site.start()
    site.break_(*RACK)
    ((page,),) = site.rounds(running)
    assert page["labels"] == {
        "alertname": "Incident", "incident": "s rack r2", "severity": "page", "scope": "rack",
        "site": "s", "hall": "h1", "rack": "r2", "row": "rowr2",
    }  # fmt: skip
    assert page["annotations"]["summary"] == (
        "rack r2: 72 of 72 GPUs, 0.050 MW lost, tenants lab-a, lab-b; first NodeSilent r2 r2-n"
        + page["annotations"]["first"].split("-n")[1][0]
    )
    assert page["annotations"]["symptoms"] == "NodeSilent 9"
    assert page["startsAt"] == "2026-09-21T14:13:45.000Z"
    assert page["endsAt"] == "2026-09-21T14:17:45.000Z"
    assert [len(posted) for posted in site.rounds(running, 9)] == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    site.mend()
    ((resolved,),) = site.rounds(running)
    assert resolved["labels"] == page["labels"]
    assert resolved["endsAt"] == "2026-09-21T14:16:15.000Z"
    later = site.rounds(running, 62)
    assert sum(map(len, later)) == 15
    assert not running.alerts
    running.close()


def test_an_incident_that_grows_keeps_its_name_and_ends_the_smaller(site: Site) -> None:
    running = site.start()
    site.break_("r2-n1")
    ((single,),) = site.rounds(running)
    assert single["labels"]["incident"] == "s node r2-n1"
    assert single["annotations"]["summary"] == (
        "r2-n1 is silent (8 GPUs, 0.006 MW lost, tenants lab-a, lab-b)"
    )
    site.break_(*RACK[1:])
    (grown,) = site.rounds(running)
    assert names(grown) == ["Incident r2"]  # the node is told again in its minute, and muted
    assert grown[0]["labels"]["incident"] == "s node r2-n1"
    site.break_(*(f"{rack}-n{n}" for rack in ("r1", "r3") for n in range(1, 10)))
    (hall,) = site.rounds(running)
    assert names(hall) == ["Incident ", "Incident r2"]
    by_scope = {one["labels"]["scope"]: one for one in hall}
    assert by_scope["hall"]["labels"]["incident"] == "s node r2-n1"
    assert by_scope["rack"]["annotations"]["superseded_by"] == "hall h1"
    assert by_scope["rack"]["endsAt"] == "2026-09-21T14:14:15.000Z"
    (nodes,) = [
        [a for a in running.alerts.values() if a.rule == "NodeSilent" and a.told]
    ]  # fmt: skip
    assert [a.annotations["folded_into"] for a in nodes] == ["hall h1"]
    running.close()


def test_a_restart_neither_loses_nor_repeats_a_page(site: Site) -> None:
    site.rules = (SILENT, replace(SILENT, name="Slow", for_s=60, severity="info"))
    site.settings = Settings(alerts=Alerts(webhook=site.receiver.url))
    running = site.start()
    site.break_(*RACK)
    site.clock.advance(15)
    running.round(site.clock.now_ms())
    running.close()
    assert len(site.receiver.posts) == 1
    site.clock.advance(30)
    running = site.start()
    assert sorted({(a.rule, a.state) for a in running.alerts.values()}) == [
        ("Incident", "firing"), ("NodeSilent", "firing"), ("Slow", "pending"),
    ]  # fmt: skip
    site.clock.advance(30)
    running.round(site.clock.now_ms())
    # Slow has been broken since before the restart: its 60 s are over now.
    assert len(site.receiver.posts) == 2
    assert {a["labels"]["alertname"] for a in site.receiver.posts[1]["alerts"]} == {"Slow"}
    running.close()
    running = site.start()
    site.mend()
    site.clock.advance(15)
    running.round(site.clock.now_ms())
    ended = [a for post in site.receiver.posts[2:] for a in post["alerts"]]
    assert names([a for a in ended if a["labels"]["alertname"] != "Slow"]) == ["Incident r2"]
    running.close()
    running = site.start()
    site.clock.advance(15)
    running.round(site.clock.now_ms())
    assert [a for post in site.receiver.posts[3:] for a in post["alerts"]] == []
    running.close()


def test_a_long_outage_restores_nothing(site: Site) -> None:
    running = site.start()
    site.break_(*RACK)
    site.rounds(running)
    running.close()
    site.clock.ms += history.TOLERANCE_MS
    assert site.start().alerts
    site.clock.ms += 1
    assert not site.start().alerts


def test_history_tells_people_what_happened_once(site: Site) -> None:
    running = site.start()
    site.break_("r1-n1")
    site.rounds(running, 6)
    site.mend()
    site.rounds(running, 6)
    running.close()
    rows = site.store.query(
        "SELECT rule, toString(state), labels, toUnixTimestamp64Milli(at) FROM alert_history"
        " ORDER BY at"
    ).rows
    labels = '{"hall": "h1", "node": "r1-n1", "rack": "r1", "site": "s"}'
    assert [tuple(row) for row in rows] == [
        ("NodeSilent", "firing", labels, START_MS + 15_000),
        ("NodeSilent", "resolved", labels, START_MS + 7 * 15_000),
    ]


def test_one_bad_rule_does_not_hide_the_others(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    bad = replace(SILENT, name="Bad", value="nothing_of_the_kind(value)")
    twins = Signal(
        name="twins", clock="wall", labels={"node": "if(node = 'r1-n1', '', NULL)"}, source="faults",
        present="1",
    )  # fmt: skip
    site.rules = (SILENT, bad, replace(SILENT, name="Twins", signal=twins))
    running = site.start()
    site.break_("r1-n1", "r1-n2")
    (posted,) = site.rounds(running)
    assert names(posted) == ["NodeSilent r1-n1", "NodeSilent r1-n2"]
    assert running.totals.errors == {"Bad": 1, "Twins": 1}
    assert "Twins: two rows with the labels" in caplog.text
    running.close()


def test_an_error_resolves_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    running = site.start()
    site.break_("r1-n1")
    site.rounds(running)
    site.store.command("RENAME TABLE faults TO away")
    site.rounds(running, 8)
    assert {a.state for a in running.alerts.values()} == {"firing"}
    assert running.totals.errors["NodeSilent"] == 8
    assert running.totals.rounds == 9
    running.close()


@pytest.mark.parametrize("policy", ["ok", "keep", "alerting"])
def test_no_data_follows_the_rule(site: Site, policy: str) -> None:
    rule = replace(SILENT, no_data=policy)  # type: ignore[arg-type]
    site.rules = (rule,)
    running = site.start()
    site.break_("r1-n1")
    site.rounds(running)
    site.mend()
    site.rounds(running)
    firing = {
        a.labels.get("node") or a.labels["no_data"]
        for a in running.alerts.values() if a.state == "firing"
    }  # fmt: skip
    assert firing == {
        "ok": set(), "keep": {"r1-n1"}, "alerting": {"r1-n1", "faults"},
    }[policy]  # fmt: skip
    running.close()


def test_a_data_rule_waits_for_the_watermark_and_is_not_judged_twice(site: Site) -> None:
    site.rules = (replace(DATA, for_s=30),)
    running = site.start()
    site.break_("r1-n1")
    now_ms = site.clock.now_ms()
    assert not evaluate.settled_ms(site.store)  # nothing lives here: in 2105
    site.rounds(running)
    assert not running.alerts
    settled = [30_000, 30_000, 45_000, 60_000, 60_000]
    states = []
    for after_ms in settled:
        _settle(running, now_ms + after_ms)
        site.rounds(running)
        states.append([(a.state, a.active_ms - now_ms) for a in running.alerts.values()])
    pending, firing = [("pending", 30_000)], [("firing", 30_000)]
    assert states == [pending, pending, pending, firing, firing]
    _settle(running, 4_260_211_200_000)  # the pipeline is gone: nothing new, and nothing resolved
    site.rounds(running, 2)
    assert [a.state for a in running.alerts.values()] == ["firing"]
    assert not running.totals.errors
    running.close()


def _settle(running: Evaluator, ms: int) -> None:
    """As if the pipeline's watermark had just come so far: the view looks at the real clock."""
    running._store.command("DROP VIEW IF EXISTS settled")
    running._store.command(
        f"CREATE VIEW settled AS SELECT toDateTime({ms // 1000}, 'UTC') AS until"
    )


def test_a_signal_that_is_dear_is_asked_less_often(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = replace(SILENT, name="Seldom", signal=replace(FAULTS, name="seldom", every_s=45))
    site.rules = (SILENT, seldom)
    running = site.start()
    asked, really = [], evaluate.ask

    def ask(store: Store, rules: list[Rule], *rest: Any) -> evaluate.Asked:
        asked.append([rule.name for rule in rules])
        return really(store, rules, *rest)

    monkeypatch.setattr(evaluate, "ask", ask)
    site.rounds(running, 7)
    often, both = ["NodeSilent"], ["NodeSilent", "Seldom"]
    # The first round is due, then those that begin a new period of 45 s since 1970.
    starts = [
        number == 1 or (START_MS + 15_000 * number) // 45_000
        != (START_MS + 15_000 * (number - 1)) // 45_000
        for number in range(1, 8)
    ]  # fmt: skip
    assert asked == [both if start else often for start in starts]
    assert 2 <= starts.count(True) <= 4


def test_what_is_watched_is_asked_at_once_when_it_falls_and_rests_in_between(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = "SELECT 100 - count() FROM faults"
    site.rules = (replace(SILENT, signal=replace(FAULTS, watch=watch, calm_s=60)),)
    running = site.start()
    asked, really = [], evaluate.ask

    def ask(store: Store, rules: list[Rule], *rest: Any) -> evaluate.Asked:
        asked.append(bool(rules))
        return really(store, rules, *rest)

    monkeypatch.setattr(evaluate, "ask", ask)
    site.rounds(running, 5)
    assert asked == [True, False, False, False, True]
    site.break_("r1-n1", "r1-n2")
    site.rounds(running, 3)
    assert asked[5:] == [False] * 3, "so many come and go all the time"
    assert len(site.rounds(running)[0]) == 2
    assert asked[8:] == [True], "its rest is over"
    site.rounds(running, 3)
    assert asked[9:] == [True] * 3, "somebody was woken: it is asked every time"
    site.mend()
    site.rounds(running)
    site.rounds(running, 2)
    assert asked[12:] == [True, False, False]
    site.break_(*RACK)
    assert len(site.rounds(running)[0]) == 1
    assert asked[15:] == [True]


def test_what_cannot_be_watched_is_asked(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    watch = "SELECT nonsense FROM faults"
    site.rules = (replace(SILENT, signal=replace(FAULTS, watch=watch, calm_s=60)),)
    running = site.start()
    site.rounds(running)
    site.break_(*RACK)
    assert len(site.rounds(running)[0]) == 1
    assert "is not watched" in caplog.text


def test_a_clock_that_is_set_back_stops_no_rule(site: Site) -> None:
    running = site.start()
    site.rounds(running)
    site.clock.advance(-3600)
    site.break_("r1-n1")
    (posted,) = site.rounds(running)
    assert names(posted) == ["NodeSilent r1-n1"]


def test_a_watermark_of_the_future_is_now(site: Site) -> None:
    running = site.start()
    _settle(running, START_MS + 86_400_000)
    assert running._times(START_MS + 10_500) == evaluate.Times(START_MS + 10_500, START_MS + 10_000)
    running.close()


def test_a_changed_threshold_begins_anew(site: Site) -> None:
    running = site.start()
    site.break_("r1-n1")
    site.rounds(running)
    running.close()
    alerts = Alerts(alertmanagers=(site.receiver.url,), thresholds={"NodeSilent": 100.0})
    site.settings = Settings(alerts=alerts)
    running = site.start()
    ((ended,),) = site.rounds(running)
    assert ended["endsAt"] == "2026-09-21T14:14:00.000Z"
    assert [a.state for a in running.alerts.values()] == ["resolved"]
    running.close()


def test_a_rule_that_is_gone_ends_its_alerts(site: Site) -> None:
    site.rules = (SILENT, replace(SILENT, name="Slow", for_s=600))
    running = site.start()
    site.break_("r1-n1")
    site.rounds(running)
    running.close()
    site.settings = Settings(
        alerts=Alerts(alertmanagers=(site.receiver.url,), disabled=("NodeSilent", "Slow"))
    )
    running = site.start()
    ((ended,),) = site.rounds(running)
    assert ended["labels"]["alertname"] == "NodeSilent"
    assert ended["endsAt"] == "2026-09-21T14:13:45.000Z"
    running.close()


@pytest.mark.parametrize("key", [{"disabled": ("Nope",)}, {"thresholds": {"Nope": 1.0}}])
def test_a_name_that_is_no_rule_is_refused(site: Site, key: dict[str, Any]) -> None:
    site.settings = Settings(alerts=Alerts(**key))
    with pytest.raises(Refuse, match="no rule 'Nope'"):
        site.start()


def test_without_a_topology_new_symptoms_wait_a_minute_and_are_told_singly(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise Retry("no")

    monkeypatch.setattr(topology, "load", away)
    running = site.start()
    site.break_("r1-n1")
    posted = site.rounds(running, 6)
    assert [len(some) for some in posted] == [0, 0, 0, 0, 1, 0]
    assert running.totals.not_folded == 6
    running.close()


def test_states_that_cannot_be_saved_are_saved_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = site.start()
    site.break_("r1-n1")

    def away(*_: object) -> None:
        raise Retry("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(history, "save", away)
        site.rounds(running)
    assert running.totals.not_saved == 1
    assert not history.restore(site.store, site.clock.now_ms())
    site.rounds(running)
    assert len(history.restore(site.store, site.clock.now_ms())) == 1
    running.close()


def test_what_is_saved_is_what_comes_back(store: Store) -> None:
    one = replace(
        alert(node="n'\\", x="ü"), value=-1.5, missed_ms=5, resolved_ms=6, sent_ms=7, told="firing",
        annotations={"summary": "a\nb"},
    )  # fmt: skip
    states: tuple[State, ...] = ("pending", "firing", "resolved")
    every = [replace(one, rule=state, state=state) for state in states]
    alerts = {a.fingerprint: a for a in every}
    history.save(store, {}, alerts, START_MS)
    assert history.restore(store, START_MS) == alerts
    history.save(store, alerts, {}, START_MS + 1)
    assert history.restore(store, START_MS + 1) == {}


def test_a_round_that_fails_is_counted_and_the_next_one_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running, stop, ticks = site.start(), threading.Event(), []

    def round_(now_ms: int) -> None:
        ticks.append(now_ms)
        if len(ticks) == 2:
            site.clock.advance(40)  # this one takes long
        if len(ticks) == 4:
            stop.set()
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(running, "round", round_)
    running.run(stop)
    first_ms = START_MS // 15_000 * 15_000 + 15_000
    assert ticks == [first_ms, first_ms + 15_000, first_ms + 60_000, first_ms + 75_000]
    assert (running.totals.failed_rounds, running.totals.missed) == (4, 2)
    assert "unforeseen" in caplog.text
    running.close()


def test_it_runs_beside_others_says_how_it_is_and_ends_cleanly(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.break_("r1-n1")
    alerts = Alerts(alertmanagers=(site.receiver.url,), interval_s=1)
    clock = SystemClock()
    running = run.Running(Settings(alerts=alerts), site.store, (SILENT,), clock)
    running.start()
    deadline_s = clock.monotonic_s() + 20
    while not site.receiver.alerts and clock.monotonic_s() < deadline_s:
        clock.wait(threading.Event(), 0.05)
    running.stop()
    running.stop()
    served = pages(running.evaluator)
    assert served["/healthz"]().status == 200
    body = served["/metrics"]().body.decode()
    assert 'megawatch_alerts_active{state="firing"} 1.0' in body
    assert 'result="sent"' in body
    assert "megawatch_alerts_last_success_timestamp_seconds" in body
    assert running.evaluator.totals.rounds >= 1
    running.evaluator.totals.last_round_ms = 1
    running.evaluator.clock = ManualClock(clock.now_ms() + 61_000)
    assert pages(running.evaluator)["/healthz"]().status == 200  # it has only begun


def test_the_command_serves_metrics_until_it_is_told_to_stop(site: Site) -> None:
    stop, seen = threading.Event(), []
    settings = Settings(alerts=Alerts(interval_s=1))

    def look() -> None:
        with httpx.Client() as client:
            for _ in range(200):
                try:
                    seen.append(client.get("http://127.0.0.1:29467/metrics").text)
                except httpx.ConnectError:
                    stop.wait(0.05)
                else:
                    break
        stop.set()

    thread = threading.Thread(target=look)
    thread.start()
    clock = ManualClock(START_MS)
    assert run.run(settings, site.store, (SILENT,), "127.0.0.1:29467", stop, clock) == 0
    thread.join(10)
    assert "megawatch_alerts_rounds_total" in seen[0]


@pytest.mark.parametrize(
    "place",
    [
        Place("node", "s", "", "n"), Place("rack", "s", "h", "r"), Place("pdu", "s", "", "p"),
        Place("row", "s", "h", "r"), Place("hall", "s", "", "h"), Place("site", "s", "", "s"),
        Place("job", "s", "", "j"), Place("tenant", "s", "", "t"), Place("storm", "s", "", "s"),
    ],
)  # fmt: skip
def test_the_labels_of_a_page_name_its_place_again(place: Place) -> None:
    page = Page(place, "i", (), 1, Damage(1, 0.0, ()))
    hit = incidents.hit(page, "page", topology.Topology(), ())
    assert incidents.place_of(hit.labels) == place
    assert incidents.place_of({"scope": "galaxy"}) is None


def test_the_log_is_told_when_nobody_else_is(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.settings = Settings()
    running = site.start()
    site.break_("r1-n1")
    with caplog.at_level(logging.ERROR):
        site.rounds(running, 6)
    assert caplog.text.count("r1-n1 is silent") == 1
    running.close()
