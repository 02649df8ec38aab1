"""What the pipeline says of itself: every count, under a name that says what it is."""

from prometheus_client.parser import text_string_to_metric_families

from pipeline.clock import ManualClock
from pipeline.log import Partition
from pipeline.metrics import pages
from pipeline.service import Service
from pipeline.settings import Settings
from tests.memory_log import MemoryLog, MemoryTopics
from tests.messages import T0_MS, message

SAMPLES = Partition("samples", 0)


def test_what_was_read_missed_and_lost_is_counted(store):
    """Of three messages the second never came, the fourth is no message; retention took seven."""
    topics = MemoryTopics()
    for seq in (0, 2):
        topics.add(SAMPLES, message(seq=seq, t0_ms=T0_MS + 4000 * seq), T0_MS + 20_000)
    topics.add(SAMPLES, b"nonsense", T0_MS + 20_000)
    service = Service(
        Settings(), store, lambda listener: MemoryLog(topics, listener), ManualClock(T0_MS + 20_000)
    )
    service.start()
    assert service.stop(20)
    service.ingest.log.skipped[SAMPLES] = 7
    page = pages(service)["/metrics"]()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.body.decode())
        for sample in family.samples
    }
    assert found["megawatch_pipeline_messages_total",] == 3
    assert found["megawatch_pipeline_rows_total",] == 16
    assert found["megawatch_pipeline_gaps_total",] == 1
    assert found["megawatch_pipeline_rejected_total",] == 1
    assert found["megawatch_pipeline_skipped_messages_total", "0", "samples"] == 7
