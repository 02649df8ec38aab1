"""What the agent may see of pods on its node, and what it takes on the API server: next to nothing."""

from pathlib import Path
from typing import Any

import pytest

from agents.kubernetes import FILE
from agents.pod_api import ACCOUNT
from agents.pod_resources import MAX_PATH
from pipeline import settings
from tests.deploy.files import DEPLOY, mapping, mappings

FOLDER = DEPLOY / "kubernetes"
DAEMONS = {thing["kind"]: thing for thing in mappings(FOLDER / "agent-daemonset.yaml")}
POD: dict[str, Any] = DAEMONS["DaemonSet"]["spec"]["template"]["spec"]
AGENT: dict[str, Any] = POD["containers"][0]
RIGHTS = {thing["kind"]: thing for thing in mappings(FOLDER / "agent-pod-labels.yaml")}
PATCH: dict[str, Any] = mapping(FOLDER / "agent-pod-labels.patch.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def loaded(tmp_path: Path) -> settings.Settings:
    """The configuration of the DaemonSet with the patch's environment."""
    (tmp_path / "megawatch.toml").write_text(DAEMONS["ConfigMap"]["data"]["megawatch.toml"])
    environment = {entry["name"]: entry["value"] for entry in PATCH["containers"][0]["env"]}
    return settings.load(tmp_path / "megawatch.toml", environment)


def test_the_folder_of_the_socket_is_mounted_and_not_the_socket(loaded) -> None:
    """A mounted socket would be the dead one after the kubelet's restart."""
    folder = str(Path(loaded.kubernetes.socket).parent)
    (mount,) = [m for m in AGENT["volumeMounts"] if m["mountPath"] == folder]
    (volume,) = [v for v in POD["volumes"] if v["name"] == mount["name"]]
    assert mount["readOnly"] is True
    assert volume["hostPath"] == {"path": folder, "type": "DirectoryOrCreate"}
    assert len(loaded.kubernetes.socket) <= MAX_PATH


def test_what_was_asserted_outlives_the_pod(loaded) -> None:
    mounts = {m["mountPath"]: m["name"] for m in AGENT["volumeMounts"]}
    file = Path(loaded.agent.spool) / FILE
    held = [name for path, name in mounts.items() if file.is_relative_to(path)]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert [("hostPath" in volumes[name]) for name in held] == [True]


def test_without_the_patch_the_agent_has_no_token() -> None:
    assert POD["automountServiceAccountToken"] is False
    assert DAEMONS["ServiceAccount"]["automountServiceAccountToken"] is False
    assert not [v for v in POD["volumes"] if "projected" in v]


def test_the_role_reads_single_pods_and_nothing_else() -> None:
    assert RIGHTS["ClusterRole"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    ]


@pytest.mark.parametrize("name", ["agent-pod-labels.yaml", "agent-resource-slices.yaml"])
def test_a_role_is_bound_to_the_agent_only(name) -> None:
    rights = {thing["kind"]: thing for thing in mappings(FOLDER / name)}
    bound = rights["ClusterRoleBinding"]
    account = DAEMONS["ServiceAccount"]["metadata"]
    assert bound["roleRef"]["name"] == rights["ClusterRole"]["metadata"]["name"]
    assert bound["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]


def test_the_patch_changes_the_container_that_there_is_and_adds_what_it_names(loaded) -> None:
    (container,) = PATCH["containers"]
    assert container["name"] == AGENT["name"]
    assert loaded.kubernetes.pod_label == "megawatch.example/tenant"
    volumes = {volume["name"]: volume for volume in PATCH["volumes"]}
    assert not volumes.keys() & {volume["name"] for volume in POD["volumes"]}
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == str(ACCOUNT)
    assert mount["mountPath"] not in {m["mountPath"] for m in AGENT["volumeMounts"]}
    sources = volumes[mount["name"]]["projected"]["sources"]
    assert sources[0]["serviceAccountToken"]["path"] == "token"
    assert sources[1]["configMap"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
