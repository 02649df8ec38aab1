"""What Grafana reads at its start has the documented form, and finds what it names."""

import json
import re
from typing import Any, Final

import jsonschema

from dashboards.generate import FOLDER
from tests.deploy.files import DEPLOY, compose, mapping

PROVIDERS = DEPLOY / "grafana/provisioning/dashboards/megawatch.yaml"
SOURCES = DEPLOY / "grafana/provisioning/datasources/megawatch.yaml"


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object that has no other keys: Grafana would pass over a misspelt one in silence."""
    return {
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": False,
    }  # fmt: skip


TEXT: Final = {"type": "string", "minLength": 1}
UID: Final = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"}
FLAG: Final = {"type": "boolean"}
NUMBER: Final = {"type": "integer", "minimum": 1}
PROVIDER: Final = closed(
    ["name", "type", "options"],
    name=TEXT, orgId=NUMBER, folder={"type": "string"}, folderUid=UID, type={"const": "file"},
    disableDeletion=FLAG, allowUiUpdates=FLAG, updateIntervalSeconds=NUMBER,
    options=closed(["path"], path={"type": "string", "pattern": "^/"},
                   foldersFromFilesStructure=FLAG),
)  # fmt: skip
SOURCE: Final = closed(
    ["name", "type", "access"],
    name=TEXT, type=TEXT, access={"enum": ["proxy", "direct"]}, orgId=NUMBER, uid=UID, url=TEXT,
    user=TEXT, database=TEXT, basicAuth=FLAG, basicAuthUser=TEXT, withCredentials=FLAG,
    isDefault=FLAG, version=NUMBER, editable=FLAG, jsonData={"type": "object"},
    secureJsonData={"type": "object", "additionalProperties": {"type": "string"}},
)  # fmt: skip


def provider() -> dict[str, Any]:
    """The one entry of the file."""
    (found,) = mapping(PROVIDERS)["providers"]
    assert isinstance(found, dict)
    return found


def test_the_dashboard_provider_has_the_documented_form() -> None:
    form = closed(
        ["apiVersion", "providers"], apiVersion={"const": 1}, providers={"items": PROVIDER}
    )
    jsonschema.validate(mapping(PROVIDERS), form)


def test_the_data_sources_have_the_documented_form() -> None:
    form = closed(
        ["apiVersion", "datasources"], apiVersion={"const": 1}, datasources={"items": SOURCE}
    )
    jsonschema.validate(mapping(SOURCES), form)


def test_folder_name_and_no_folders_from_files_do_not_contradict() -> None:
    """Grafana refuses to start with both."""
    assert provider()["folder"]
    assert not provider()["options"].get("foldersFromFilesStructure")


def test_compose_mounts_the_generated_dashboards_where_the_provider_looks() -> None:
    mounts = [m.split(":") for m in compose()["services"]["grafana"]["volumes"]]
    (mount,) = [m for m in mounts if m[1] == provider()["options"]["path"]]
    assert (DEPLOY / mount[0]).resolve() == FOLDER.resolve()
    assert mount[2] == "ro"
    (files,) = [m for m in mounts if m[1] == "/etc/grafana/provisioning"]
    assert PROVIDERS.is_relative_to((DEPLOY / files[0]).resolve())


def test_what_lies_in_the_folder_is_what_grafana_can_read() -> None:
    """Titles within a folder and uids are each used once; every name is short enough."""
    documents = [json.loads(path.read_text()) for path in FOLDER.glob("*.json")]
    assert documents
    for key in ("uid", "title"):
        values = [document[key] for document in documents]
        assert len(set(values)) == len(values), key
    for document in documents:
        assert re.fullmatch(UID["pattern"], document["uid"])
        assert "id" not in document, "Grafana's own number would collide"


def test_dashboards_that_name_a_data_source_name_one_that_is_provided() -> None:
    """Most leave the choice to a person; a name that is fixed must be there."""
    provided = {source["uid"] for source in mapping(SOURCES)["datasources"]}
    text = "\n".join(path.read_text() for path in FOLDER.glob("*.json"))
    named = set(re.findall(r'"uid": "(megawatch-(?:clickhouse|prometheus)[^"]*)"', text))
    assert named <= provided
