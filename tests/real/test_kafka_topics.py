"""Topics on a real broker: created once, compared always, errors in one clear sentence."""

import re
import socket
import threading
from pathlib import Path

import pytest

from deploy.broker import Broker, free_port
from pipeline.errors import Refuse, Retry
from pipeline.kafka import KafkaLog, Producer, admin, create_topics, inspect_topics
from pipeline.settings import Kafka
from pipeline.topics import TOPICS
from tests.real.conftest import require_real, settings_for
from tests.real.kafka_listener import Recorder, acknowledged

pytestmark = [
    pytest.mark.real,
]


def test_topics_are_created_once_and_then_exist(broker: Broker) -> None:
    """Creating is safe to repeat, and inspecting changes nothing."""
    kafka = settings_for(broker)
    assert {s.state for s in inspect_topics(kafka)} == {"missing"}
    created = create_topics(kafka)
    assert [(s.topic, s.state, s.differences) for s in created] == [
        (name, "created", ()) for name in TOPICS
    ]
    assert {s.state for s in create_topics(kafka)} == {"exists"}
    assert {s.state for s in inspect_topics(kafka)} == {"exists"}


def test_topics_that_differ_are_reported_and_left_alone(broker: Broker) -> None:
    """A topic made with other values is told apart by value, not repaired behind one's back."""
    kafka = settings_for(broker)
    create_topics(kafka)
    wanted = Kafka(**{f: getattr(kafka, f) for f in kafka.__struct_fields__} | {"replication": 3})
    states = create_topics(wanted)
    assert {s.state for s in states} == {"differs"}
    assert states[0].differences == (
        "replication is 1, wanted 3",
        "min.insync.replicas is 1, wanted 2",
    )
    assert {s.state for s in inspect_topics(kafka)} == {"exists"}


def test_more_replicas_than_brokers_is_refused(broker: Broker) -> None:
    """The sentence names the key and both numbers."""
    kafka = Kafka(bootstrap=broker.bootstrap, topic_prefix="replicated.", replication=3)
    with pytest.raises(Refuse, match=r"\[kafka\] replication=3 .* has 1$"):
        create_topics(kafka)


def test_unreachable_broker_is_one_sentence() -> None:
    """Retry says where, why and which key to look at."""
    port = free_port()
    with pytest.raises(Retry) as caught:
        create_topics(Kafka(bootstrap=f"127.0.0.1:{port}"))
    assert str(caught.value) == (
        f"cannot reach Kafka at 127.0.0.1:{port}: 127.0.0.1:{port}: connection refused; "
        "check [kafka] bootstrap"
    )


@pytest.mark.parametrize("hung_up", [0, 2])
def test_a_listener_that_stays_silent_is_one_sentence(
    hung_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it did before, the attempt cut short by the end of the time is not the reason."""
    monkeypatch.setattr(admin, "_BOOTSTRAP_TIMEOUT_MS", 1500)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            for _ in range(hung_up):
                listener.accept()[0].close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(Retry) as caught:
            inspect_topics(Kafka(bootstrap=f"127.0.0.1:{port}"))
    reason = (
        "socket disconnected|.*reset by peer" if hung_up else r"Unable to bootstrap from \[.+\]"
    )
    assert re.fullmatch(
        rf"cannot reach Kafka at 127.0.0.1:{port}: 127.0.0.1:{port} listens, but \w+: ({reason}); "
        r"check \[kafka\] security_protocol",
        str(caught.value),
    )


def test_subscribing_to_a_missing_topic_says_how_to_create_it(broker: Broker) -> None:
    """Refuse names the topic with its prefix."""
    kafka = settings_for(broker)
    sentence = f"topic {kafka.topic_prefix}samples does not exist; run `megawatch topics create`"
    with pytest.raises(Refuse, match=re.escape(sentence)):
        KafkaLog(kafka, ["samples"], Recorder())


def test_users_are_told_from_strangers(tmp_path: Path) -> None:
    """With SASL, the right password sends; a wrong one is refused, named, and never printed."""
    plain, port = free_port(), free_port()
    with require_real(
        "Apache Kafka", lambda: Broker.start(tmp_path / "broker", plain, _sasl(plain, port))
    ) as broker:
        inside = settings_for(broker)
        create_topics(inside)
        right = Kafka(
            bootstrap=f"127.0.0.1:{port}",
            topic_prefix=inside.topic_prefix,
            replication=1,
            lane_partitions=3,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="agent",
            sasl_password="right-password",
        )
        assert {s.state for s in inspect_topics(right)} == {"exists"}
        producer = Producer(right, "sasl")
        assert acknowledged(producer, [(b"key", b"value")]) == [None]
        producer.close(5)
        wrong = Kafka(
            **{f: getattr(right, f) for f in right.__struct_fields__}
            | {"sasl_password": "wrong-password"}
        )
        # Whether the broker's answer is read before its hanging up is a matter of luck.
        with pytest.raises((Refuse, Retry), match=r"check .* sasl_username") as caught:
            inspect_topics(wrong)
        assert "wrong-password" not in str(caught.value)


def _sasl(plain: int, port: int) -> dict[str, str]:
    """A second listener, with passwords, beside the plain one that brokers use."""
    controller = free_port()
    login = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_agent="right-password";'
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},"
        f"SASL_PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
        "SASL_PLAINTEXT:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": login,
    }
