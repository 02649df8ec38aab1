"""The life of an alert, by table and against a naive model that keeps the whole story."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts import state
from alerts.alert import Alert
from alerts.rule import Rule, Signal
from alerts.state import Answer, Hit, step, version
from pipeline.errors import Reject

STEP_MS = 15_000
SIGNAL = Signal(name="things", clock="wall", labels={"node": "n"}, source="t", present="1")
RULE = Rule(
    name="Broken", question="?", severity="page", scope="node", summary="", signal=SIGNAL, value="v",
    above=1.0,
)  # fmt: skip
A = {"node": "a"}


def play(rule: Rule, answers: str, start_ms: int = STEP_MS) -> list[str]:
    """States of node a after each letter: h hit, . no hit, e error, n no data, c a cut answer."""
    alerts: dict[int, Alert] = {}
    seen = []
    for number, letter in enumerate(answers):
        answer = {
            "h": Answer([Hit(A, 2.0)]), ".": Answer(), "e": None, "n": Answer(present=False),
            "c": Answer(whole=False),
        }[letter]  # fmt: skip
        alerts = step(alerts, answer, rule, "1", start_ms + number * STEP_MS).alerts
        seen.append("".join(sorted({a.state[0] for a in alerts.values()})) or "-")
    return seen


@pytest.mark.parametrize(
    ("changes", "answers", "states"),
    [
        ({}, "h.h", "f r f"),
        ({}, "hhh", "f f f"),
        ({"for_s": 30}, "hhhh.", "p p f f r"),
        ({"for_s": 30}, "hh.hhh", "p p - p p f"),  # pending that disappears begins from the start
        ({"for_s": 31}, "hhhh", "p p p f"),
        ({"keep_firing_s": 30}, "h...", "f f f r"),
        ({"keep_firing_s": 30}, "h..h...", "f f f f f f r"),  # a hit resets what was held
        ({"for_s": 15, "keep_firing_s": 15}, "hh..h", "p f f r p"),
        ({}, "heee.", "f f f f r"),  # an error resolves nothing
        ({"for_s": 30}, "hee.", "p p p -"),
        ({"for_s": 30}, "heh", "p p f"),  # and takes no time away either
        ({}, "hn", "f r"),
        ({"no_data": "keep"}, "hnnn.", "f f f f r"),
        ({"no_data": "keep", "for_s": 15}, "hnh", "p p f"),
        ({"no_data": "alerting"}, "n.", "f r"),
        ({"no_data": "alerting", "for_s": 15}, "nn.", "p f r"),
        ({}, "hc", "f f"),  # what a cut answer leaves out is not over
    ],
)
def test_a_life(changes: dict[str, object], answers: str, states: str) -> None:
    assert play(replace(RULE, **changes), answers) == states.split()  # type: ignore[arg-type]


def test_no_data_is_an_alert_beside_the_others() -> None:
    rule = replace(RULE, no_data="alerting")
    alerts = step({}, Answer([Hit(A, 2.0)]), rule, "1", 1000).alerts
    alerts = step(alerts, Answer(present=False), rule, "1", 2000).alerts
    assert sorted(str(a.labels) for a in alerts.values() if a.state == "firing") == [
        "{'no_data': 'things'}", "{'node': 'a'}",
    ]  # fmt: skip


def test_times_are_those_of_evaluations() -> None:
    rule = replace(RULE, for_s=15, keep_firing_s=15)
    alerts: dict[int, Alert] = {}
    for number, hit in enumerate([True, True, False, False]):
        answer = Answer([Hit(A, 2.0 + number)] if hit else [])
        alerts = step(alerts, answer, rule, "1", (number + 1) * STEP_MS).alerts
    (alert,) = alerts.values()
    assert (alert.active_ms, alert.fired_ms, alert.missed_ms, alert.resolved_ms) == (
        STEP_MS, 2 * STEP_MS, 3 * STEP_MS, 4 * STEP_MS,
    )  # fmt: skip
    assert alert.value == 3.0


def test_the_resolved_are_kept_for_a_quarter_of_an_hour_and_no_longer() -> None:
    alerts = step({}, Answer([Hit(A, 2.0)]), RULE, "1", STEP_MS).alerts
    alerts = step(alerts, Answer(), RULE, "1", 2 * STEP_MS).alerts
    last_ms = 2 * STEP_MS + state.RESOLVED_KEPT_MS
    assert step(alerts, Answer(), RULE, "1", last_ms).alerts
    assert not step(alerts, Answer(), RULE, "1", last_ms + 1).alerts
    assert not step(alerts, None, RULE, "1", last_ms + 1).alerts


def test_another_version_begins_anew_and_ends_what_it_does_not_find() -> None:
    both = Answer([Hit(A, 2.0), Hit({"node": "b"}, 2.0)])
    old = step({}, both, RULE, "1", STEP_MS).alerts
    new = step(old, Answer([Hit(A, 2.0)]), replace(RULE, for_s=30), "2", 2 * STEP_MS).alerts
    states = {a.labels["node"]: (a.state, a.version, a.active_ms) for a in new.values()}
    assert states == {"a": ("pending", "2", 2 * STEP_MS), "b": ("resolved", "1", STEP_MS)}
    held = step(old, Answer(), replace(RULE, keep_firing_s=900), "2", 2 * STEP_MS).alerts
    assert {a.state for a in held.values()} == {"resolved"}


def test_the_version_follows_what_is_judged_alone() -> None:
    same = version(RULE, 1.0)
    assert same == version(replace(RULE, for_s=9, summary="x", severity="info"), 1.0)
    assert same != version(RULE, 2.0)
    assert same != version(replace(RULE, value="w"), 1.0)
    assert same != version(replace(RULE, signal=replace(SIGNAL, source="u")), 1.0)
    assert same != version(replace(RULE, above=None, below=1.0), 1.0)


@pytest.mark.parametrize("other", [{"node": "a"}, {"node": "a", "rack": ""}])
def test_two_rows_with_one_set_of_labels_are_an_error(other: dict[str, str]) -> None:
    with pytest.raises(Reject, match="Broken: two rows"):
        step({}, Answer([Hit(A, 2.0), Hit(other, 3.0)]), RULE, "1", STEP_MS)


@pytest.mark.parametrize(("above", "below", "worst"), [(0.0, None, "98"), (None, 99.0, "01")])
def test_of_too_many_the_worst_stay_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch, above: float | None, below: float | None, worst: str
) -> None:
    monkeypatch.setattr(state, "MAX_ACTIVE", 2)
    hits = [Hit({"node": str(n)}, float(n)) for n in (0, 9, 8, 1, 5)]
    rule = replace(RULE, above=above, below=below)
    done = step({}, Answer(hits), rule, "1", STEP_MS)
    assert done.dropped == 3
    assert {a.labels["node"] for a in done.alerts.values()} == set(worst)
    # What is active stays in, whatever else gets worse: alerts must not take turns.
    again = step(done.alerts, Answer([*hits, Hit({"node": "z"}, 1e9)]), rule, "1", 2 * STEP_MS)
    assert again.alerts.keys() == done.alerts.keys()
    assert again.dropped == 4


LETTERS = st.lists(st.sampled_from("h.e"), max_size=40)


@given(LETTERS, st.integers(0, 5), st.integers(0, 5))
def test_it_agrees_with_a_model_that_reads_the_whole_story(
    letters: list[str], for_steps: int, keep_steps: int
) -> None:
    rule = replace(RULE, for_s=for_steps * 15, keep_firing_s=keep_steps * 15)
    expected = [
        _model(letters[:until], for_steps, keep_steps) for until in range(1, len(letters) + 1)
    ]
    assert play(rule, "".join(letters)) == expected


def _model(letters: list[str], for_steps: int, keep_steps: int) -> str:
    """What a person would say who replays the letters with plain counters of steps."""
    now, since, missed, resolved = "-", 0, None, None
    for at, letter in enumerate(letters):
        if letter == "e":
            pass
        elif letter == "h":
            missed = None
            if now in "-r":
                now, since = "p", at
            if now == "p" and at - since >= for_steps:
                now = "f"
        elif now == "p":
            now = "-"
        elif now == "f":
            missed = at if missed is None else missed
            if at - missed >= keep_steps:
                now, resolved = "r", at
        if now == "r" and resolved is not None and (at - resolved) * STEP_MS > 900_000:
            now = "-"
    return now
