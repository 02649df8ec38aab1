"""`megawatch dashboards generate | publish`: what the arguments ask for, and what is said about it.

Generating needs the foundation SDK, which is for developers; publishing needs grafana-api and the
generated files, nothing else.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.publishing import SOURCE_UID, Section, Step, carried_out, connected, need_client
from pipeline.settings import ClickHouse, secret

if TYPE_CHECKING:
    from dashboards.publish import Tenant
    from pipeline.grafana import Grafana, Grantee

_KINDS: Final = ("team", "user")


class GrafanaSection(Section, Protocol):
    """The keys of [grafana]."""

    @property
    def folder(self) -> str: ...  # noqa: D102
    @property
    def clickhouse_url(self) -> str: ...  # noqa: D102
    @property
    def reader(self) -> str: ...  # noqa: D102
    @property
    def reader_password(self) -> str: ...  # noqa: D102
    @property
    def reader_password_file(self) -> str: ...  # noqa: D102


def generate(args: argparse.Namespace) -> int:
    """Write the dashboards, or with --check only say which files differ; then 1."""
    if args.dry_run or args.grafana:
        raise Refuse("`generate` writes files, --check only looks; a Grafana is for `publish`")
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        raise Refuse(
            "dashboards are generated with grafana-foundation-sdk, which is not installed:"
            " pip install 'megawatch[dev]'; what was generated is committed and needs nothing"
        )
    from dashboards import generate as generator

    names = generator.drift() if args.check else [path.name for path in generator.write()]
    for name in names:
        verb = "is not what the pages say" if args.check else "written"
        print(f"{name}: {verb}", file=sys.stderr)
    if args.check and names:
        print("run `megawatch dashboards generate` and commit what it writes", file=sys.stderr)
    if args.json:
        print(json.dumps({"drift" if args.check else "written": names}))
    return int(args.check and bool(names))


def publish(
    args: argparse.Namespace, section: GrafanaSection, clickhouse: ClickHouse, clock: Clock
) -> int:
    """Bring a Grafana up to date; 1 if something of it was refused."""
    if args.check:
        raise Refuse("--check is for `generate`: --dry-run shows what `publish` would do")
    need_client()
    from dashboards import publish as publishing

    pages = publishing.read(publishing.FOLDER)
    grafana, version = connected(args.grafana, section, clock)
    steps: Iterable[Step]
    if args.tenant:
        steps = _tenants(args, section, clickhouse, grafana)
    else:
        _only_with_tenants(args)
        title = args.folder or section.folder
        wanted = _site_source(section, clickhouse)
        steps = publishing.site(grafana, pages, title, wanted, force=args.force)
    return carried_out(steps, grafana, version, args)


def _site_source(section: GrafanaSection, clickhouse: ClickHouse) -> dict[str, object] | None:
    from dashboards import publish as publishing

    url = section.clickhouse_url or clickhouse.url
    if not url:
        return None
    reader = publishing.Reader(
        url=url, database=clickhouse.database, user=section.reader,
        password=secret(section.reader_password, section.reader_password_file),
    )  # fmt: skip
    key = secret(section.token, section.token_file)
    return publishing.source(SOURCE_UID, "Megawatch", reader, key)


def _only_with_tenants(args: argparse.Namespace) -> None:
    for name in ("password_file", "user", "viewer"):
        if getattr(args, name):
            raise Refuse(f"--{name.replace('_', '-')} is about a tenant: name it with --tenant")


def _tenants(
    args: argparse.Namespace, section: GrafanaSection, clickhouse: ClickHouse, grafana: "Grafana"
) -> Iterator[Step]:
    """The steps for every tenant, each by itself: one that is refused does not hold up the next."""
    from dashboards import publish as publishing

    page = publishing.read(publishing.FOLDER).get(publishing.TENANT_UID)
    if page is None:
        raise Refuse(f"there is no dashboard {publishing.TENANT_UID} for tenants")
    key = secret(section.token, section.token_file)
    for one in _wanted(args, section, clickhouse, grafana):
        try:
            yield from publishing.tenant(grafana, page, one, key, force=args.force)
        except Refuse as error:
            yield Step("tenant", one.name, "refused", str(error))


def _wanted(
    args: argparse.Namespace, section: GrafanaSection, clickhouse: ClickHouse, grafana: "Grafana"
) -> list["Tenant"]:
    from dashboards.publish import Reader, Tenant, tenant_id

    if args.folder:
        raise Refuse("--folder is for the site's dashboards: a tenant has a folder of its own")
    url = section.clickhouse_url or clickhouse.url
    if not url:
        raise Refuse("where does Grafana find ClickHouse? set [grafana] clickhouse_url")
    count = len(args.tenant)
    if len(set(args.tenant)) < count:
        raise Refuse("a tenant is named twice")
    if len(args.password_file) != count:
        raise Refuse(
            f"{count} --tenant, {len(args.password_file)} --password-file: each tenant has a user"
            " of ClickHouse, whose password is in a file"
        )
    users = _as_many(args.user, count, "--user")
    viewers = _as_many(args.viewer, count, "--viewer")
    found = []
    for name, file, user, viewer in zip(
        args.tenant, args.password_file, users, viewers, strict=True
    ):
        database = f"{clickhouse.database}_tenant_{tenant_id(name)}"
        password = secret("", file)
        if not password:
            raise Refuse(f"{file} is empty: the password of tenant {name!r} belongs into it")
        reader = Reader(
            url=url, database=database, user=user or f"{database}_grafana", password=password
        )
        found.append(Tenant(name=name, reader=reader, who=_grantee(grafana, viewer)))
    return found


def _as_many(given: Sequence[str], count: int, flag: str) -> Sequence[str]:
    if len(given) not in (0, count):
        raise Refuse(f"{count} --tenant, {len(given)} {flag}: give one for each, or none at all")
    return given or [""] * count


def _grantee(grafana: "Grafana", viewer: str) -> "Grantee | None":
    if not viewer:
        return None
    kind, _, name = viewer.partition(":")
    if kind not in _KINDS or not name:
        raise Refuse(f"--viewer {viewer!r}: write team:NAME or user:LOGIN")
    return grafana.team(name) if kind == "team" else grafana.user(name)
