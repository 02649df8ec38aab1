"""compose.yaml is valid, pinned, closed to the outside, and speaks to the programs that are here."""

import json
import re
import subprocess
from importlib import resources
from typing import Any

import jsonschema
import pytest

from pipeline import arguments as arguments_of
from pipeline import settings
from tests.deploy.files import DEPLOY, compose

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def test_it_follows_the_compose_specification() -> None:
    schema = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose(), json.loads(schema.read_text()))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_an_image_is_pinned_by_version_or_built_here(name: str) -> None:
    image = SERVICES[name]["image"]
    if name in OURS:
        assert image == "megawatch:local"
    else:
        assert re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(\.\d+)?", image)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert str(port).startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", OURS)
def test_the_arguments_of_our_commands_parse(name: str) -> None:
    arguments_of.parser().parse_args(SERVICES[name]["command"])


@pytest.mark.parametrize("name", OURS)
def test_the_environment_of_our_services_is_configuration_that_loads(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert all(key.startswith(settings.PREFIX) for key in environment)
    loaded = settings.load(None, environment)
    assert loaded.kafka.bootstrap == "kafka:19092"


@pytest.mark.parametrize(("name", "section"), [("agent", "agent"), ("pipeline", "pipeline")])
def test_a_listener_that_others_reach_has_a_token(name: str, section: str) -> None:
    loaded = getattr(settings.load(None, SERVICES[name]["environment"]), section)
    assert loaded.listen.startswith("0.0.0.0:")
    assert loaded.token_file == "/run/secrets/metrics_token"
    assert "metrics_token" in SERVICES[name]["secrets"]
    assert loaded.listen.partition(":")[2] in " ".join(SERVICES[name]["healthcheck"]["test"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_volume_secret_and_dependency_exists(name: str) -> None:
    whole, service = compose(), SERVICES[name]
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), mount
        else:
            assert source in whole["volumes"], mount
    for secret in service.get("secrets", []):
        assert secret in whole["secrets"], secret
    for other, how in service.get("depends_on", {}).items():
        healthy = how["condition"] == "service_healthy"
        assert not healthy or "healthcheck" in SERVICES[other], other
        assert healthy or how["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_stays_up_has_a_health_check_and_starts_again(name: str) -> None:
    one_shot = any(
        how == {"condition": "service_completed_successfully"} and other == name
        for service in SERVICES.values()
        for other, how in service.get("depends_on", {}).items()
    )
    assert ("healthcheck" in SERVICES[name]) is not one_shot
    assert (SERVICES[name].get("restart") == "unless-stopped") is not one_shot


def test_the_script_prints_every_secret_that_is_asked_for() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?", text))
    wanted |= {secret["environment"] for secret in compose()["secrets"].values()}
    done = subprocess.run(
        [DEPLOY / "compose/secrets.sh"], capture_output=True, text=True, check=True
    )
    printed = dict(line.split("=") for line in done.stdout.splitlines())
    assert set(printed) == wanted
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in printed.values())
    assert len(set(printed.values())) == len(printed)


def test_kafka_listens_where_it_says_it_does() -> None:
    environment = SERVICES["kafka"]["environment"]
    listeners = dict(re.findall(r"(\w+)://:(\d+)", environment["KAFKA_LISTENERS"]))
    advertised = dict(
        re.findall(r"(\w+)://[\w.]+:(\d+)", environment["KAFKA_ADVERTISED_LISTENERS"])
    )
    assert advertised == {name: listeners[name] for name in ("INSIDE", "OUTSIDE")}
    protocols = environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    assert {entry.split(":")[0] for entry in protocols} == set(listeners)
