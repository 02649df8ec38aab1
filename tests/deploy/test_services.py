"""What other programs read of ours is what they accept: each is asked, where it is there."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from configparser import RawConfigParser
from pathlib import Path

import pytest

from deploy.fetch import prometheus_programs
from pipeline import arguments as arguments_of
from pipeline.settings import Kafka
from pipeline.topics import DEADLETTERS, TOPICS
from tests.deploy.files import DEPLOY, compose, mapping
from tests.real.conftest import require_real

UNIT = DEPLOY / "megawatch-agent.service"


def run(*command: str | Path) -> str:
    """Standard output and error of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.real
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    programs = require_real("promtool", prometheus_programs)
    (tmp_path / "token").write_text("x")
    text = (DEPLOY / "compose/prometheus.yml").read_text()
    named = text.replace("/run/secrets/metrics_token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(named)
    said = run(programs / "promtool", "check", "config", tmp_path / "prometheus.yml")
    assert "is valid prometheus config file" in said


@pytest.mark.real
def test_alertmanager_accepts_its_configuration() -> None:
    programs = require_real("amtool", prometheus_programs)
    said = run(programs / "amtool", "check-config", DEPLOY / "compose/alertmanager.yml")
    assert "SUCCESS" in said


def test_prometheus_scrapes_the_services_that_compose_starts() -> None:
    services = compose()["services"]
    config = mapping(DEPLOY / "compose/prometheus.yml")
    for job in config["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            name, port = target.split(":")
            if name in ("agent", "pipeline"):
                key = f"MEGAWATCH_{name.upper()}__LISTEN"
                assert services[name]["environment"][key].endswith(f":{port}")
                assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_token"


def test_the_reader_of_clickhouse_can_only_read() -> None:
    root = ET.parse(DEPLOY / "compose/clickhouse-reader.xml").getroot()
    assert root.findtext("profiles/reader/readonly") == "2"
    assert [q.text for q in root.iterfind("users/reader/grants/query")] == [
        "GRANT SELECT ON megawatch.*"
    ]
    variable = root.find("users/reader/password").attrib["from_env"]  # type: ignore[union-attr]
    assert variable in compose()["services"]["clickhouse"]["environment"]


def test_a_server_compresses_as_the_embedded_engine_does() -> None:
    engine = ET.parse(DEPLOY.parent / "pipeline/engine.xml").getroot().find("compression")
    server = ET.parse(DEPLOY / "compose/clickhouse-compression.xml").getroot().find("compression")
    assert engine is not None
    assert server is not None
    texts = [[(e.tag, (e.text or "").strip()) for e in root.iter()] for root in (engine, server)]
    assert texts[0] == texts[1]
    mounted = compose()["services"]["clickhouse"]["volumes"]
    assert any("config.d/compression.xml" in volume for volume in mounted)


def test_grafana_gets_every_variable_that_its_data_sources_name() -> None:
    text = (DEPLOY / "grafana/provisioning/datasources/megawatch.yaml").read_text()
    content = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    named = set(re.findall(r"\$([A-Z_]+)", content))
    assert named
    assert named <= set(compose()["services"]["grafana"]["environment"])
    sources = mapping(DEPLOY / "grafana/provisioning/datasources/megawatch.yaml")["datasources"]
    assert len({source["uid"] for source in sources}) == len(sources)
    plugins = compose()["services"]["grafana"]["environment"]["GF_PLUGINS_PREINSTALL_SYNC"]
    assert re.fullmatch(r"grafana-clickhouse-datasource@\d+\.\d+\.\d+", plugins)


def unit() -> dict[str, list[str]]:
    """The [Service] section, by key; systemd allows a key to come several times."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_is_an_ini_file_with_three_sections() -> None:
    parser = RawConfigParser(strict=False, delimiters=("=",))
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_the_unit_starts_our_command() -> None:
    program, *arguments = unit()["ExecStart"][0].split()
    assert program == "/opt/megawatch/bin/megawatch"
    assert arguments_of.parser().parse_args(arguments).command == "agent"


def test_the_unit_never_sends_sigkill_and_bounds_what_it_takes() -> None:
    service = {key: values[-1] for key, values in unit().items()}
    assert service["SendSIGKILL"] == "no"
    assert service["KillSignal"] == "SIGTERM"
    assert service["KillMode"] == "mixed"
    for key in ("CPUQuota", "MemoryMax", "TasksMax", "NoNewPrivileges", "ProtectSystem"):
        assert key in service, key
    # It would close /dev/kmsg, which the agent reads.
    assert service.get("ProtectKernelLogs", "no") == "no"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/megawatch/bin/megawatch", sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    assert run("systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name) == ""


def acls(**environment: str) -> Sequence[str]:
    """The lines that the script prints."""
    done = subprocess.run(
        [DEPLOY / "kafka/acls.sh"], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()


def test_the_acls_name_every_topic_and_no_other() -> None:
    topics = re.findall(r"--topic '([^']+)'", "\n".join(acls()))
    assert set(topics) == {Kafka().topic_prefix + name for name in TOPICS}


def test_the_pipeline_may_read_all_but_the_dead_letters() -> None:
    read = {
        re.findall(r"--topic 'megawatch\.(\w+)'", line)[0]
        for line in acls()
        if "--operation Read --topic" in line and "pipeline" in line
    }
    assert read == set(TOPICS) - {DEADLETTERS}
    assert any(f"--group '{Kafka().group}'" in line for line in acls())


def test_a_node_cannot_say_who_held_a_gpu() -> None:
    of_agents = "\n".join(line for line in acls() if "megawatch-agent" in line)
    assert "allocations" not in of_agents
    assert "Read" not in of_agents


def test_prefix_and_group_of_the_acls_follow_the_environment() -> None:
    lines = acls(PREFIX="gpu-", GROUP="g2", KAFKA_ACLS="echo")
    assert all(line.startswith("echo --add") for line in lines)
    assert any("--group 'g2'" in line for line in lines)
    assert all("'gpu-" in line for line in lines if "--topic" in line)
