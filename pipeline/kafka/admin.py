"""Create the topics, or say how those that exist differ from what is wanted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.errors import Refuse
from pipeline.kafka.client import build, client_options, translated
from pipeline.settings import Kafka
from pipeline.topics import TOPICS, Topic

_METADATA_TIMEOUT_MS: Final = 20_000
_BOOTSTRAP_TIMEOUT_MS: Final = 5000  # somebody sits and waits
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class TopicState:
    """How a topic stands; `differences` are sentences such as "partitions is 1, wanted 3"."""

    topic: str
    state: Literal["created", "exists", "differs", "missing"]
    differences: tuple[str, ...] = ()


def inspect_topics(kafka: Kafka) -> tuple[TopicState, ...]:
    """Compare every topic with what is wanted, changing nothing. Raises Retry, Refuse."""
    return _administer(kafka, lambda admin: _inspect(admin, kafka))


def create_topics(kafka: Kafka) -> tuple[TopicState, ...]:
    """Create the topics that are missing, leaving the others as they are. Safe to repeat.

    Raises Retry (broker away) or Refuse (not allowed, too few brokers).
    """
    return _administer(kafka, lambda admin: _create(admin, kafka))


def check_topics(kafka: Kafka, topics: Iterable[str]) -> None:
    """Refuse, naming the first of these topics that the cluster does not have."""
    present = set(_administer(kafka, lambda admin: admin.list_topics()))
    for topic in topics:
        name = kafka.topic_prefix + topic
        if name not in present:
            raise Refuse(f"topic {name} does not exist; run `megawatch topics create`")


def _administer(kafka: Kafka, work: Callable[[KafkaAdminClient], _Result]) -> _Result:
    with translated(kafka):
        options = client_options(kafka) | {"bootstrap_timeout_ms": _BOOTSTRAP_TIMEOUT_MS}
        admin = build(KafkaAdminClient, options)
        try:
            return work(admin)
        finally:
            admin.close()


def _create(admin: KafkaAdminClient, kafka: Kafka) -> tuple[TopicState, ...]:
    missing = {s.topic for s in _inspect(admin, kafka) if s.state == "missing"}
    names = [kafka.topic_prefix + t.name for t in TOPICS.values() if t.name in missing]
    wanted = {
        kafka.topic_prefix + topic.name: {
            "num_partitions": topic.partitions or kafka.lane_partitions,
            "replication_factor": kafka.replication,
            "configs": _config(topic, kafka),
        }
        for topic in TOPICS.values()
        if topic.name in missing
    }
    if wanted:
        try:
            admin.create_topics(wanted)
        except errors.TopicAlreadyExistsError:
            pass  # somebody else creates them at this moment: below we see what came of it
        except errors.InvalidReplicationFactorError as error:
            raise Refuse(
                f"[kafka] replication={kafka.replication} needs as many brokers, "
                f"the cluster at {kafka.bootstrap} has {_brokers(admin)}"
            ) from error
        admin.wait_for_topics(names, timeout_ms=_METADATA_TIMEOUT_MS)
    return tuple(
        TopicState(s.topic, "created") if s.topic in missing and s.state == "exists" else s
        for s in _inspect(admin, kafka)
    )


def _inspect(admin: KafkaAdminClient, kafka: Kafka) -> tuple[TopicState, ...]:
    present = {
        topic["name"]: topic["partitions"]
        for topic in admin.describe_topics()
        if topic["error_code"] == 0
    }
    names = {kafka.topic_prefix + topic.name: topic for topic in TOPICS.values()}
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(_config(topic, kafka)))
        for name, topic in names.items()
        if name in present
    ]
    configs = admin.describe_configs(resources, config_filter="all")["topic"] if resources else {}
    return tuple(
        _compare(topic, kafka, present[name], configs[name])
        if name in present
        else TopicState(topic.name, "missing")
        for name, topic in names.items()
    )


def _compare(
    topic: Topic, kafka: Kafka, partitions: list[dict[str, list[int]]],
    config: dict[str, dict[str, str]],
) -> TopicState:  # fmt: skip
    found = {
        "partitions": str(len(partitions)),
        "replication": str(min(len(p["replica_nodes"]) for p in partitions)),
        **{name: entry["value"] for name, entry in config.items()},
    }
    wanted = {
        "partitions": str(topic.partitions or kafka.lane_partitions),
        "replication": str(kafka.replication),
        **_config(topic, kafka),
    }
    differences = tuple(
        f"{name} is {found.get(name, 'unknown')}, wanted {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    )
    return TopicState(topic.name, "differs" if differences else "exists", differences)


def _config(topic: Topic, kafka: Kafka) -> dict[str, str]:
    # acks=all means little while one replica alone may acknowledge.
    return topic.config() | {"min.insync.replicas": str(max(1, kafka.replication - 1))}


def _brokers(admin: KafkaAdminClient) -> int:
    return len(admin.describe_cluster()["brokers"])
