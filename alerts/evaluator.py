"""The evaluator: a round every interval, from rules over the store to somebody's pager."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from alerts import evaluate, history, incidents, message, state, topology
from alerts.alert import Alert
from alerts.fold import Folded, fold, incident_of, spots
from alerts.notify import Notifier
from alerts.rule import FALLEN, PAGES, Rule, Severity, Signal
from pipeline.clock import Clock
from pipeline.errors import Refuse, Reject, Retry
from pipeline.settings import Settings
from pipeline.store import Store

_log: Final = logging.getLogger("megawatch.alerts")

RESEND_MS: Final = 60_000
TOPOLOGY_EVERY_MS: Final = 300_000
GPUS_EVERY_MS: Final = 60_000
HOLD_MS: Final = 60_000
"""So long a new symptom waits while folding fails: then it is told by itself."""


@dataclass(slots=True)
class Totals:
    """What the evaluator counts of itself; times in seconds, or UTC milliseconds."""

    rounds: int = 0
    failed_rounds: int = 0
    missed: int = 0
    round_s: float = 0.0
    last_round_ms: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    not_saved: int = 0
    not_folded: int = 0


class Evaluator:
    """Rounds over one connection of the store, which it closes at the end."""

    def __init__(
        self, settings: Settings, store: Store, rules: Iterable[Rule], clock: Clock,
    ) -> None:  # fmt: skip
        """Take up where the last one stopped. Raises Refuse on bad settings, Retry without store."""
        self.settings, self.clock = settings.alerts, clock
        self.rules = chosen(rules, settings)
        self.totals = Totals()
        self._store = store
        self._revisions = {r.name: state.version(r, self._threshold(r)) for r in self.rules}
        self._folding = {
            r.name for r in self.rules if r.folds and r.scope in incidents.FOLDED_SCOPES
        }  # fmt: skip
        self._caps_w = {place: kw * 1000 for place, kw in self.settings.cap_kw.items()}
        self._topology, self._topology_ms = topology.Topology(), 0
        self._looked: tuple[set[topology.Spot], int] = (set(), 0)
        self._folded: dict[Severity, Folded] = {}
        self._judged_ms = 0
        self._asked: dict[str, tuple[int, int]] = {}
        self._watched: dict[str, tuple[float, int]] = {}
        self._names: evaluate.Names = {}
        now_ms = self._begun_ms = clock.now_ms()
        self._held = False
        self._saved = history.restore(store, now_ms)
        self.alerts: Mapping[int, Alert] = _without_rule(self._saved, self.rules, now_ms)
        self.notifier = Notifier(self.settings.alertmanagers, self.settings.webhook)

    def close(self) -> None:
        """Stop sending, and release the store."""
        self.notifier.close()
        self._store.close()

    def run(self, stop: threading.Event) -> None:
        """Rounds at whole multiples of the interval until stopped; one that fails is said."""
        interval_ms, last_ms = self.settings.interval_s * 1000, 0
        while not stop.is_set():
            tick_ms = (self.clock.now_ms() // interval_ms + 1) * interval_ms
            # The clock may have been set back meanwhile: then the wait starts anew.
            if self.clock.wait(stop, (tick_ms - self.clock.now_ms()) / 1000):
                return
            if self.clock.now_ms() < tick_ms:
                continue
            self.totals.missed += max(0, (tick_ms - last_ms) // interval_ms - 1) if last_ms else 0
            last_ms = tick_ms
            begun_s = self.clock.monotonic_s()
            try:
                self.round(tick_ms)
            except Exception:  # the outermost loop: whatever one round met, the next one is due
                self.totals.failed_rounds += 1
                _log.exception("a round of rules failed")
            self.totals.round_s += self.clock.monotonic_s() - begun_s

    def round(self, now_ms: int) -> None:
        """Ask, step, fold, tell, save."""
        alerts = self._judged(now_ms)
        alerts = self._folded_in(alerts, now_ms)
        self.alerts = self._told(alerts, now_ms)
        try:
            history.save(self._store, self._saved, self.alerts, now_ms)
            self._saved = dict(self.alerts)
        except Retry as error:
            self.totals.not_saved += 1
            _log.warning("states of alerts are not saved: %s", error)
        self.totals.rounds += 1
        self.totals.last_round_ms = now_ms

    def _threshold(self, rule: Rule) -> float:
        return self.settings.thresholds.get(rule.name, rule.threshold)

    # -- judging ----------------------------------------------------------------------------------

    def _judged(self, now_ms: int) -> dict[int, Alert]:
        times = self._times(now_ms)
        signals = {r.signal.name: r.signal for r in self.rules if r.signal}
        busy = {
            a.rule for a in self.alerts.values()
            if a.severity == "page" and a.state != "resolved"
        }  # fmt: skip
        restless = {r.signal.name for r in self.rules if r.signal and r.name in busy}
        due = {
            name for name, signal in signals.items()
            if self._is_due(signal, times)
            and (not signal.watch or self._stirs(signal, times, is_calm=name not in restless))
        }  # fmt: skip
        wanted = [r for r in self.rules if r.signal and r.signal.name in due]
        until_s = self.clock.monotonic_s() + self.settings.interval_s
        asked = evaluate.ask(
            self._store, wanted, self.settings.thresholds, self._caps_w, times, self.clock, until_s,
            self._names,
        )  # fmt: skip
        by_rule: dict[str, dict[int, Alert]] = {}
        for print_, alert in self.alerts.items():
            by_rule.setdefault(alert.rule, {})[print_] = alert
        for rule in wanted:
            assert rule.signal is not None, "a rule without a signal is not evaluated"
            mine = by_rule.get(rule.name, {})
            answer = asked.answers.get(rule.name)
            by_rule[rule.name] = self._stepped(mine, answer, rule, times.of(rule.signal))
        self._judged_ms = max(self._judged_ms, times.settled_ms)
        return {print_: alert for mine in by_rule.values() for print_, alert in mine.items()}

    def _times(self, now_ms: int) -> evaluate.Times:
        try:
            settled_ms = evaluate.settled_ms(self._store)
        except Retry as error:
            _log.warning("up to where samples are complete is not known: %s", error)
            settled_ms = 0
        # A pipeline whose clock is ahead does not make the future happen.
        return evaluate.Times(now_ms, min(settled_ms, now_ms // 1000 * 1000))

    def _is_due(self, signal: Signal, times: evaluate.Times) -> bool:
        """Whether it is time for a signal again, and there is something that was not judged."""
        period, at_ms = times.now_ms // (signal.every_s * 1000), times.of(signal)
        last_period, last_ms = self._asked.get(signal.name, (-1, 0))
        # Not "later than": after a clock is set back, rules go on.
        if not at_ms or period == last_period or at_ms == last_ms:
            return False
        self._asked[signal.name] = (period, at_ms)
        return True

    def _stirs(self, signal: Signal, times: evaluate.Times, *, is_calm: bool) -> bool:
        """Whether a signal that watches something is to be asked before it is calm_s later."""
        try:
            number = evaluate.watched(self._store, signal, times)
        except Retry as error:
            _log.warning("%s is not watched: %s", signal.name, error)
            return True
        before, asked_ms = self._watched.get(signal.name, (0.0, 0))
        rests = 0 <= times.now_ms - asked_ms < signal.calm_s * 1000
        if is_calm and rests and number >= before - FALLEN:
            return False
        self._watched[signal.name] = (number, times.now_ms)
        return True

    def _stepped(
        self, mine: Mapping[int, Alert], answer: state.Answer | None, rule: Rule, at_ms: int
    ) -> dict[int, Alert]:
        revision = self._revisions[rule.name]
        try:
            done = state.step(mine, answer, rule, revision, at_ms)
        except Reject as error:
            _log.warning("%s", error)
            answer = None
            done = state.step(mine, None, rule, revision, at_ms)
        if answer is None:
            self.totals.errors[rule.name] += 1
        if done.dropped:
            self.totals.dropped[rule.name] += done.dropped
            _log.error("%s: %d more alerts than there is room for", rule.name, done.dropped)
        url = self.settings.dashboards_url
        return {
            f: replace(a, annotations=message.annotations(rule, a, url)) if a.state == "firing" else a
            for f, a in done.alerts.items()
        }  # fmt: skip

    # -- folding ----------------------------------------------------------------------------------

    def _folded_in(self, alerts: dict[int, Alert], now_ms: int) -> dict[int, Alert]:
        """The alerts with the pages that fold them; without the topology those of before go on."""
        symptoms = {
            severity: [
                a for a in alerts.values()
                if a.state == "firing" and a.severity == severity and a.rule in self._folding
            ]
            for severity in incidents.FOLDED
        }  # fmt: skip
        stands = [a for a in alerts.values() if a.rule == incidents.NAME]
        self._held = False
        if not stands and not any(symptoms.values()):
            self._folded = {}
            return alerts
        try:
            known = self._known([a for some in symptoms.values() for a in some], now_ms)
        except Retry as error:
            self.totals.not_folded += 1
            self._held = True
            _log.warning("alerts are not folded: %s", error)
            return alerts
        for severity in incidents.FOLDED:
            places = {
                place: alert.labels["incident"] for alert in stands
                if alert.severity == severity and alert.state == "firing"
                and (place := incidents.place_of(alert.labels))
            }  # fmt: skip
            folded = fold(symptoms[severity], known, places)
            self._folded[severity] = folded
            alerts = self._paged(alerts, folded, severity, known, now_ms)
        return alerts

    def _known(self, symptoms: Sequence[Alert], now_ms: int) -> topology.Topology:
        """The topology with the GPUs of these, read anew when others are hit, or it is old."""
        known = self._topology
        if not self._topology_ms or now_ms - self._topology_ms >= TOPOLOGY_EVERY_MS:
            known = topology.load(self._store)
            self._topology_ms, self._looked = now_ms, (set(), 0)
        wanted, (looked, looked_ms) = spots(symptoms, known), self._looked
        if not wanted <= looked or now_ms - looked_ms >= GPUS_EVERY_MS:
            at_ms = self._judged_ms or now_ms
            known = topology.with_gpus(self._store, known, wanted, at_ms)
            self._looked = (wanted, now_ms)
        self._topology = known
        return known

    def _paged(
        self, alerts: dict[int, Alert], folded: Folded, severity: Severity,
        known: topology.Topology, now_ms: int,
    ) -> dict[int, Alert]:  # fmt: skip
        mine = {
            f: a for f, a in alerts.items()
            if a.rule == incidents.NAME and a.severity == severity
        }  # fmt: skip
        firing = [a for a in mine.values() if a.state == "firing"]
        hits = [incidents.hit(page, severity, known, firing) for page in folded.pages]
        rule = incidents.rule(severity)
        stepped = state.step(mine, state.Answer(hits), rule, incidents.REVISION, now_ms).alerts
        pages = {page.place: page for page in folded.pages}
        out = {f: a for f, a in alerts.items() if f not in mine}
        out |= {f: incidents.damaged(out[f], damage) for f, damage in folded.singles.items()}
        url = f"{self.settings.dashboards_url.rstrip('/')}/d/{PAGES['site']}"
        for print_, alert in stepped.items():
            place = incidents.place_of(alert.labels)
            page = pages.get(place) if place else None
            if page is not None and alert.state == "firing":
                out[print_] = incidents.worded(alert, page, alerts, url)
            elif place and place in folded.outgrown and alert.resolved_ms == now_ms:
                grown = {"superseded_by": folded.outgrown[place].text}
                out[print_] = replace(alert, annotations={**alert.annotations, **grown})
            else:
                out[print_] = alert
        return out

    # -- telling ----------------------------------------------------------------------------------

    def _told(self, alerts: dict[int, Alert], now_ms: int) -> dict[int, Alert]:
        parents = {
            child: page.place.text
            for folded in self._folded.values() for page in folded.pages for child in page.children
        }  # fmt: skip
        labels = {rule.name: {**rule.labels, "scope": rule.scope} for rule in self.rules}
        ends_ms = now_ms + 4 * max(self.settings.interval_s * 1000, RESEND_MS)
        due: dict[int, message.Message] = {}
        new: set[int] = set()
        for print_, alert in alerts.items():
            if parent := parents.get(print_):
                alert = replace(alert, annotations={**alert.annotations, "folded_into": parent})  # noqa: PLW2901
                alerts[print_] = alert
            waits = self._held and alert.rule in self._folding and (
                now_ms - max(alert.fired_ms, self._begun_ms) < HOLD_MS
            )  # fmt: skip
            if is_due(alert, now_ms, is_child=waits or parent is not None):
                until_ms = alert.resolved_ms if alert.state == "resolved" else ends_ms
                extra = labels.get(alert.rule, {})
                if alert.rule in self._folding:
                    extra = {**extra, "incident": incident_of(alert)}
                due[print_] = message.message(alert, extra, until_ms)
                if alert.told != alert.state and "superseded_by" not in alert.annotations:
                    new.add(print_)
        for print_ in self.notifier.send(due, new, now_ms):
            alert = alerts[print_]
            told = "resolved" if alert.state == "resolved" else "firing"
            alerts[print_] = replace(alert, sent_ms=now_ms, told=told)  # type: ignore[arg-type]
        return alerts


def is_due(alert: Alert, now_ms: int, *, is_child: bool) -> bool:
    """Whether an alert is sent now: what is new at once, what is known again every minute.

    A child of a page is told only if somebody was told before it was one; the end of something that
    nobody was told of is no news.
    """
    if alert.state == "pending" or (not alert.told and (is_child or alert.state == "resolved")):
        return False
    return alert.told != alert.state or now_ms - alert.sent_ms >= RESEND_MS


def chosen(rules: Iterable[Rule], settings: Settings) -> list[Rule]:
    """The rules to evaluate: with SQL, and not disabled. Raises Refuse on a name that is no rule."""
    every = {rule.name: rule for rule in rules}
    for key in ("disabled", "thresholds"):
        for name in getattr(settings.alerts, key):
            if name not in every:
                raise Refuse(
                    f"[alerts] {key}: there is no rule {name!r}, see `megawatch alerts list`"
                )
    off = settings.alerts.disabled
    return [r for r in every.values() if r.signal is not None and r.name not in off]


def _without_rule(
    alerts: Mapping[int, Alert], rules: Iterable[Rule], now_ms: int
) -> dict[int, Alert]:
    """What fired for a rule that is gone is over; what was only pending never was."""
    names = {incidents.NAME, *(rule.name for rule in rules)}
    out = {}
    for print_, alert in alerts.items():
        if alert.rule in names or alert.state == "resolved":
            out[print_] = alert
        elif alert.state == "firing":
            out[print_] = replace(alert, state="resolved", resolved_ms=now_ms)
    return out
