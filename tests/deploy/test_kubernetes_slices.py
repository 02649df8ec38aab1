"""What it takes to read resource slices: one right, and the token that carries it."""

from typing import Any

import yaml

from agents.pod_api import ACCOUNT
from agents.pod_slices import RULE
from tests.deploy.files import DEPLOY, mapping, mappings

FOLDER = DEPLOY / "kubernetes"
DAEMONS = {thing["kind"]: thing for thing in mappings(FOLDER / "agent-daemonset.yaml")}
POD: dict[str, Any] = DAEMONS["DaemonSet"]["spec"]["template"]["spec"]
RIGHTS = {thing["kind"]: thing for thing in mappings(FOLDER / "agent-resource-slices.yaml")}


def patch(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = mapping(FOLDER / name)["spec"]["template"]["spec"]
    return spec


PATCH = patch("agent-resource-slices.patch.yaml")


def test_the_role_is_what_the_doctor_asks_for() -> None:
    assert RIGHTS["ClusterRole"]["rules"] == [yaml.safe_load(f"{{{RULE}}}")]
    assert RIGHTS["ClusterRole"]["rules"] == [
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["list"]}
    ]


def test_the_patch_adds_the_token_where_the_agent_looks() -> None:
    (container,) = PATCH["containers"]
    assert container["name"] == POD["containers"][0]["name"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == str(ACCOUNT)
    assert mount["mountPath"] not in {m["mountPath"] for m in POD["containers"][0]["volumeMounts"]}
    (volume,) = PATCH["volumes"]
    assert volume["name"] == mount["name"]
    assert volume["name"] not in {one["name"] for one in POD["volumes"]}


def test_both_patches_together_are_one_token() -> None:
    """A strategic merge goes by a volume's name and a mount's path: the second changes nothing."""
    labels = patch("agent-pod-labels.patch.yaml")
    assert PATCH["volumes"] == labels["volumes"]
    (container,) = labels["containers"]
    assert PATCH["containers"][0]["volumeMounts"] == container["volumeMounts"]
