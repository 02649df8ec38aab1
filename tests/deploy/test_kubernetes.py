"""The DaemonSet refers to what exists, loads as configuration, and bounds what it takes."""

from pathlib import Path
from typing import Any

from pipeline import arguments as arguments_of
from pipeline import settings
from tests.deploy.files import DEPLOY, mappings

OBJECTS = mappings(DEPLOY / "kubernetes/agent-daemonset.yaml")
KINDS = {thing["kind"]: thing for thing in OBJECTS}
POD: dict[str, Any] = KINDS["DaemonSet"]["spec"]["template"]["spec"]
AGENT: dict[str, Any] = POD["containers"][0]


def test_there_is_one_of_each_in_one_namespace() -> None:
    assert sorted(KINDS) == ["ConfigMap", "DaemonSet", "ServiceAccount"]
    assert {thing["metadata"]["namespace"] for thing in OBJECTS} == {"megawatch"}
    assert POD["serviceAccountName"] == KINDS["ServiceAccount"]["metadata"]["name"]


def test_the_selector_matches_the_pods() -> None:
    spec = KINDS["DaemonSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_every_mount_has_its_volume_and_the_config_map_exists() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in AGENT["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == KINDS["ConfigMap"]["metadata"]["name"]
    assert volumes["spool"]["hostPath"]["path"] == "/var/lib/megawatch"


def test_the_configuration_loads_and_its_secrets_are_mounted(tmp_path: Path) -> None:
    (tmp_path / "megawatch.toml").write_text(KINDS["ConfigMap"]["data"]["megawatch.toml"])
    environment = {
        entry["name"]: entry.get("value", "a-node")
        for entry in AGENT["env"]
        if entry["name"].startswith(settings.PREFIX)
    }
    loaded = settings.load(tmp_path / "megawatch.toml", environment)
    assert loaded.site.hostname == "a-node"
    mounts = {m["mountPath"]: m["name"] for m in AGENT["volumeMounts"]}
    for file in (loaded.agent.token_file, loaded.kafka.sasl_password_file):
        assert mounts[str(Path(file).parent)] == "secrets"
    assert Path(loaded.agent.spool).is_relative_to("/var/lib/megawatch")
    assert AGENT["ports"][0]["containerPort"] == int(loaded.agent.listen.split(":")[1])
    assert loaded.agent.token_file in AGENT["livenessProbe"]["exec"]["command"]


def test_the_arguments_parse_and_the_image_is_pinned() -> None:
    assert arguments_of.parser().parse_args(AGENT["args"]).command == "agent"
    assert AGENT["image"].partition(":")[2] not in ("", "latest")


def test_what_the_pod_takes_is_bounded() -> None:
    assert set(AGENT["resources"]["limits"]) == {"cpu", "memory"}
    assert AGENT["securityContext"]["readOnlyRootFilesystem"] is True
