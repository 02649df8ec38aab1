"""What the evaluator says of itself at /metrics: it watches others, so somebody must watch it."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from alerts.evaluator import Evaluator
from pipeline.web import Page, Pages, text

_OWN: Final = "megawatch_alerts"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_COUNTERS: Final = {
    "rounds": "Rounds of evaluation",
    "failed_rounds": "Rounds that an unexpected error ended",
    "missed": "Rounds that were due while another one was going on",
    "round_s": "Time spent in rounds",
    "not_saved": "Rounds whose states could not be written to the store",
    "not_folded": "Rounds without a topology to fold alerts by",
}
_NAMES: Final = {"round_s": "round_seconds"}
LATE_ROUNDS: Final = 4
"""Without a round for so many intervals, and a minute, the evaluator is not healthy."""


class _Collector:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def collect(self) -> Iterator[Metric]:
        totals, notifier = self._evaluator.totals, self._evaluator.notifier
        for name, meaning in _COUNTERS.items():
            value = getattr(totals, name)
            yield CounterMetricFamily(f"{_OWN}_{_NAMES.get(name, name)}", meaning, value=value)
        for name, meaning, by_rule in (
            ("rule_errors", "Evaluations that a rule's query or labels failed", totals.errors),
            ("dropped", "Alerts of a rule for which there was no room", totals.dropped),
        ):
            family = CounterMetricFamily(f"{_OWN}_{name}", meaning, labels=["rule"])
            for rule, count in sorted(by_rule.copy().items()):
                family.add_metric([rule], count)
            yield family
        states = GaugeMetricFamily(f"{_OWN}_active", "Alerts by state", labels=["state"])
        count_of = Counter(alert.state for alert in self._evaluator.alerts.values())
        for state in ("pending", "firing", "resolved"):
            states.add_metric([state], count_of[state])
        yield states
        with notifier.lock:
            results, success_ms = dict(notifier.sent.results), notifier.sent.last_success_ms
            fallbacks = notifier.sent.fallbacks
        family = CounterMetricFamily(
            f"{_OWN}_sent", "Alerts by target and result", labels=["target", "result"]
        )
        for (target, result), count in sorted(results.items()):
            family.add_metric([target, result], count)
        yield family
        yield CounterMetricFamily(
            f"{_OWN}_fallbacks", "Rounds in which no Alertmanager took an alert", value=fallbacks
        )
        yield from self._times(totals.last_round_ms, success_ms)

    def _times(self, round_ms: int, success_ms: int) -> Iterator[Metric]:
        for name, meaning, ms in (
            ("last_round_timestamp_seconds", "When the last round was", round_ms),
            ("last_success_timestamp_seconds", "When an alert was last taken", success_ms),
        ):
            if ms:
                yield GaugeMetricFamily(f"{_OWN}_{name}", meaning, value=ms / 1000)


def pages(evaluator: Evaluator) -> Pages:
    """What the evaluator serves, by path; /healthz is 503 when rounds do not come any more."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(evaluator))
    begun_ms = evaluator.clock.now_ms()

    def health() -> Page:
        late_ms = max(60_000, LATE_ROUNDS * evaluator.settings.interval_s * 1000)
        since_ms = evaluator.clock.now_ms() - max(begun_ms, evaluator.totals.last_round_ms)
        if since_ms > late_ms:
            return text(503, f"no round for {since_ms // 1000} s\n")
        return text(200, "ok\n")

    return {
        "/metrics": lambda: Page(200, _CONTENT_TYPE, generate_latest(registry)),
        "/healthz": health,
    }
