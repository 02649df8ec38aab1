"""The small records: what is sent is read, anything else is refused, and all of it can be stored."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rows
from pipeline.errors import Reject
from pipeline.native import block
from pipeline.records import Allocation, Event, Gpu, Inventory, MeterReading, Record
from pipeline.topics import BACKFILL, LANES, SAMPLES, TOPICS, decode_record, encode_record

RECORDS = {name: topic.record for name, topic in TOPICS.items() if topic.record}
EXAMPLES: dict[str, Record] = {
    "inventory": Inventory(
        site="s", node="n", from_ms=5, until_ms=9, gpus=(Gpu(0, "GPU-0", "H100"),), layout="x"
    ),
    "allocations": Allocation(
        site="s", source="slurm", tenant="t", node="n", from_ms=5, gpus=(0, 3), workload="j"
    ),
    "meters": MeterReading(site="s", meter="m", kind="hall", ts_ms=7, watts=1.5),
    "events": Event(site="s", node="n", ts_ms=7, kind="xid", code=79),
}


@pytest.mark.parametrize("topic", RECORDS)
def test_a_record_is_read_as_it_was_sent(topic):
    """On its own topic."""
    assert decode_record(topic, encode_record(EXAMPLES[topic])) == EXAMPLES[topic]


@pytest.mark.parametrize("topic", RECORDS)
@given(raw=st.binary(max_size=60))
def test_noise_is_refused_with_the_topic_in_the_reason(topic, raw):
    """Never another exception."""
    with pytest.raises(Reject, match=f"^{topic}: "):
        decode_record(topic, raw)


@pytest.mark.parametrize("topic", RECORDS)
@given(data=st.data())
@settings(deadline=None)
def test_whatever_is_read_can_be_stored(topic, data):
    """Any JSON value in any field is refused, or fits its column: no poison reaches an insert."""
    numbers = st.one_of(
        st.integers(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, width=64),
        st.sampled_from((-1, 2**16, 2**32, 2**43, 2**63, 2**64, 10**300)),
    )  # fmt: skip
    anything = st.one_of(
        st.none(), st.booleans(), numbers, st.text(max_size=5), st.lists(numbers, max_size=3)
    )
    fields = msgspec.json.decode(encode_record(EXAMPLES[topic]))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(anything)
    if topic == "inventory" and data.draw(st.booleans()):
        fields["gpus"] = [
            {"index": data.draw(numbers), "uuid": "u", "memory_mib": data.draw(numbers)}
        ]
    try:
        record = decode_record(topic, json.dumps(fields).encode())
    except Reject:
        return
    for table, columns in rows.by_table([record], 1_795_000_000_000).items():
        assert block(columns, TYPES[table])


def _types() -> dict[str, dict[str, str]]:
    """Column types as the migrations write them."""
    import re

    from pipeline.schema import statements
    from pipeline.settings import ClickHouse

    found = {}
    for statement in statements("embedded", ClickHouse()):
        body = statement.sql.partition("\n(\n")[2].partition("\n)\n")[0]
        columns = (re.sub(r" CODEC\(.*|,$", "", line.strip()) for line in body.split("\n"))
        found[statement.name] = dict(c.split(" ", 1) for c in columns if c)
    return found


TYPES = _types()


@pytest.mark.parametrize(
    ("topic", "change", "reason"),
    [
        ("meters", {"watts": 1e300}, "<= 1000000000000.0"),
        ("meters", {"kind": "toaster"}, "Invalid enum value 'toaster'"),
        ("meters", {"ts_ms": -1}, ">= 0"),
        ("allocations", {"from_ms": -5}, ">= 0"),
        ("allocations", {"until_ms": 2**62}, "<= "),
        ("allocations", {"gpus": [70_000]}, "<= 65535"),
        ("events", {"code": -1}, ">= 0"),
        ("events", {"count": 2**63}, "<= "),
        ("inventory", {"gpus": [{"index": -1, "uuid": "u"}]}, ">= 0"),
    ],
)
def test_numbers_that_fit_no_column_are_refused_by_name(topic, change, reason):
    """An instant before 1970, a petawatt, a negative index."""
    fields = msgspec.to_builtins(EXAMPLES[topic]) | change
    with pytest.raises(Reject) as error:
        decode_record(topic, json.dumps(fields).encode())
    assert reason in str(error.value)
    assert f"$.{next(iter(change))}" in str(error.value)


def test_a_message_of_another_version_with_more_fields_is_read():
    """A newer agent may say more."""
    raw = encode_record(EXAMPLES["events"])[:-1] + b',"mood":"good"}'
    assert decode_record("events", raw) == EXAMPLES["events"]


def test_lanes_stand_in_the_order_of_their_byte():
    """The header's lane byte is an index."""
    assert LANES == (SAMPLES, BACKFILL)


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda t: t.name)
def test_a_topic_is_stamped_by_the_broker_and_bounded(topic):
    """The broker's clock judges the nodes'; only the inventory is kept for ever, compacted."""
    config = topic.config()
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert (config["cleanup.policy"] == "compact") == (topic.name == "inventory")
    assert (int(config["retention.ms"]) > 0) == (topic.name != "inventory")
    assert topic.partitions is None or topic.partitions >= 1
