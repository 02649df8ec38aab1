"""What the pipeline says of itself at /metrics."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pipeline.service import Service
from pipeline.web import Page, Pages, text

_OWN: Final = "megawatch_pipeline"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_COUNTERS: Final = {
    "messages": "Messages read",
    "rows": "Rows inserted into gpu_samples",
    "duplicates": "Messages that had been read before",
    "rejected": "Messages that became dead letters",
    "gaps": "Messages missing in their streams when a later one came",
    "bytes": "Bytes of messages, uncompressed",
    "inserts": "Batches inserted",
    "retries": "Attempts that the log or the store refused",
}


class _Collector:
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        totals = service.ingest.totals
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(f"{_OWN}_{name}", meaning, value=getattr(totals, name))
        yield CounterMetricFamily(
            f"{_OWN}_insert_seconds", "Time spent in inserts", value=totals.insert_s
        )
        for name, meaning, count in (
            ("closed", "Quarters of an hour closed", service.keeper.closed),
            ("not_closed", "Quarters refused, or broken", service.keeper.not_closed),
        ):
            yield CounterMetricFamily(f"{_OWN}_ledger_{name}", meaning, value=count)
        skipped = CounterMetricFamily(
            f"{_OWN}_skipped_messages",
            "Messages that the broker's retention deleted before they were read",
            labels=["topic", "partition"],
        )
        for (topic, number), lost in list(service.ingest.log.skipped.items()):
            skipped.add_metric([topic, str(number)], lost)
        yield skipped
        waiting = GaugeMetricFamily(
            f"{_OWN}_waiting_messages",
            "Messages read and not inserted yet",
            labels=["topic", "partition"],
        )
        for (topic, number), behind in service.ingest.waiting().items():
            waiting.add_metric([topic, str(number)], behind)
        yield waiting
        if service.ingest.watermark_ms:
            yield GaugeMetricFamily(
                f"{_OWN}_watermark_age_seconds",
                "How far behind now every live partition has been heard",
                value=(service.clock.now_ms() - service.ingest.watermark_ms) / 1000,
            )


def pages(service: Service) -> Pages:
    """What the pipeline serves, by path."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))

    def health() -> Page:
        failed = service.failed is not None
        return text(503, f"{service.failed}\n") if failed else text(200, "ok\n")

    return {
        "/metrics": lambda: Page(200, _CONTENT_TYPE, generate_latest(registry)),
        "/healthz": health,
    }
