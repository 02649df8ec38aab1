"""The generated dashboards are what Grafana's own types say a dashboard is."""

import subprocess
from pathlib import Path

import pytest

from dashboards.generate import documents
from deploy.fetch import grafana_schema
from tests.real.conftest import require_real

pytestmark = pytest.mark.real

OPTIONS = (
    "--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck",
    "--types", "",
)  # fmt: skip
HEAD = """import type { AnnotationQuery, Dashboard, DataQuery } from '@grafana/schema';
type Said<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Said<T[K]> } : T;
type Query = Said<DataQuery> & { rawSql: string; [more: string]: unknown };
type Annotation = Omit<Said<AnnotationQuery>, 'target'> & { target: Query };
type Ours = Omit<Said<Dashboard>, 'annotations'> & { annotations: { list: Annotation[] } };
export const dashboard: Ours = """
"""In JSON a value of an enumeration is its word, which TypeScript takes for another type. A data source's
query has fields of its own, which Grafana's types allow in panels alone."""


def checked(folder: Path, texts: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """tsc over one module per dashboard."""
    npm = require_real("Grafana's schema", grafana_schema)
    (folder / "node_modules").symlink_to(npm / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    for name, text in texts.items():
        (folder / f"{name}.ts").write_text(HEAD + text.rstrip() + ";\n")
    compiler = npm / "node_modules" / ".bin" / "tsc"
    return subprocess.run(
        [compiler, *OPTIONS, *(f"{name}.ts" for name in texts)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_every_dashboard_is_one_to_grafanas_types(tmp_path: Path) -> None:
    done = checked(tmp_path, {name.removesuffix(".json"): t for name, t in documents().items()})
    assert not done.returncode, done.stdout


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"gridPos"', '"gridPosition"'), ('"schemaVersion": 41', '"schemaVersion": "41"'),
        ('"type": "datasource"', '"type": "source"'), ('"unit"', '"unti"'),
        ('"mode": "absolute"', '"mode": "absolutely"'),
    ],
)  # fmt: skip
def test_a_mistake_would_be_found(tmp_path: Path, was: str, becomes: str) -> None:
    text = next(iter(documents().values()))
    assert was in text
    done = checked(tmp_path, {"wrong": text.replace(was, becomes, 1)})
    assert done.returncode
    assert "wrong.ts" in done.stdout
