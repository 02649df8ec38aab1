"""One TOML file, overridable by MEGAWATCH_SECTION__KEY; every key is in the example under deploy/.

Lists and tables are JSON in the environment. An unknown key is an error that names the nearest
valid one. Secrets come from the environment or from the file that a `..._file` key names, never
from a flag, and are never printed.
"""

import difflib
import os
import socket
import tomllib
import typing
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.errors import Refuse

PREFIX: Final = "MEGAWATCH_"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Site(_Section, frozen=True):
    """The site, and this node's place in it."""

    name: str = "site"
    timezone: str = "UTC"
    node: str = ""
    hall: str = ""
    row: str = ""
    rack: str = ""
    pdu: str = ""

    @property
    def hostname(self) -> str:
        """The node's name: as configured, else the machine's."""
        return self.node or socket.gethostname()


class AgentSettings(_Section, frozen=True):
    """Sampling, spooling and shipping on a node."""

    source: str = "nvml"
    period_ms: int = 1000
    flush_ms: int = 4000
    slow_every_s: int = 10
    spool: str = "/var/lib/megawatch/spool"
    spool_max_mib: int = 4096
    listen: str = "127.0.0.1:9465"
    node_meters: bool = True
    meter_period_ms: int = 2000
    slurm_jobs: str = "/run/megawatch/slurm-jobs"
    dcgm_url: str = "http://127.0.0.1:9400/metrics"
    backfill_kib_per_s: int = 512
    token_file: str = ""


class Kubernetes(_Section, frozen=True):
    """Which pods hold the node's GPUs, asked of its kubelet; an empty socket: nobody is asked.

    resources: of device plugins and DRA drivers, `*` stands for anything.
    """

    socket: str = ""
    resources: tuple[str, ...] = (
        "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-*", "gpu.nvidia.com",
    )  # fmt: skip
    pod_label: str = ""


class Kafka(_Section, frozen=True):
    """The broker, as kafka-python's options of the same names."""

    bootstrap: str = ""
    topic_prefix: str = "megawatch."
    group: str = "megawatch"
    replication: int = 3
    lane_partitions: int = 1
    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = ""
    sasl_password_file: str = ""
    session_timeout_ms: int = 30_000


class Slurm(_Section, frozen=True):
    """The site's feed of Slurm's jobs."""

    period_s: float = 10.0
    squeue: str = "squeue"
    scontrol: str = "scontrol"
    timeout_s: float = 60.0
    seen: str = "/var/lib/megawatch/slurm.seen"
    listen: str = "127.0.0.1:9468"
    token_file: str = ""


class ClickHouse(_Section, frozen=True):
    """The store: `data` is a folder (embedded, chDB), `url` a server."""

    data: str = ""
    url: str = ""
    username: str = "default"
    password: str = ""
    password_file: str = ""
    database: str = "megawatch"
    ca_file: str = ""
    max_disk_gib: float = 50.0
    samples_ttl_days: int = 7
    health_ttl_days: int = 28
    seconds_ttl_days: int = 180
    minutes_ttl_days: int = 400


class Pipeline(_Section, frozen=True):
    """From Kafka to the store."""

    batch_rows: int = 450_000
    batch_age_ms: int = 1000
    listen: str = "127.0.0.1:9466"
    backfill_rows_per_s: int = 100_000
    fill_minutes_every_s: int = 15
    token_file: str = ""


class Ledger(_Section, frozen=True):
    """Closing quarters of an hour."""

    precedence: tuple[str, ...] = ("slurm", "slurm-node", "kubernetes", "import", "simulator")
    grace_s: int = 120
    close_every_s: int = 60


class GrafanaSettings(_Section, frozen=True):
    """Where dashboards and rules are published, and how Grafana reads ClickHouse."""

    url: str = ""
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    folder: str = "Megawatch"
    clickhouse_url: str = ""
    reader: str = "reader"
    reader_password: str = ""
    reader_password_file: str = ""


class Console(_Section, frozen=True):
    """The local page of dashboards."""

    listen: str = "127.0.0.1:8080"
    token_file: str = ""


class Alerts(_Section, frozen=True):
    """Evaluating rules, and whom to tell.

    cap_kw: kilowatts by "site", "hall h01", "rack h01-r03" ...; thresholds: by the rule's name, in
    its unit.
    """

    interval_s: int = 15
    alertmanagers: tuple[str, ...] = ()
    webhook: str = ""
    dashboards_url: str = "http://127.0.0.1:8080"
    disabled: tuple[str, ...] = ()
    cap_kw: dict[str, float] = {}
    thresholds: dict[str, float] = {}


class Settings(_Section, frozen=True):
    """Everything that can be configured."""

    site: Site = Site()
    agent: AgentSettings = AgentSettings()
    kubernetes: Kubernetes = Kubernetes()
    kafka: Kafka = Kafka()
    slurm: Slurm = Slurm()
    clickhouse: ClickHouse = ClickHouse()
    pipeline: Pipeline = Pipeline()
    ledger: Ledger = Ledger()
    console: Console = Console()
    alerts: Alerts = Alerts()
    grafana: GrafanaSettings = GrafanaSettings()


def load(path: Path | None, env: Mapping[str, str] = os.environ) -> Settings:
    """Settings from defaults, then the file, then the environment. Raises Refuse."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text())
        except OSError as error:
            raise Refuse(f"cannot read configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refuse(f"configuration {path} is not TOML: {error}") from error
    where = str(path) if path else "configuration"
    _refuse_unknown(tree, where)
    for name, value in env.items():
        if name.startswith(PREFIX) and "__" in name:
            _override(tree, name, value)
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise Refuse(f"{where}: {error}") from error
    return _checked(settings)


def _refuse_unknown(tree: Mapping[str, Any], where: str) -> None:
    for section, keys in tree.items():
        kind = _section(section, f"{where}: [{section}]")
        if not isinstance(keys, Mapping):
            raise Refuse(f"{where}: {section!r} stands outside a section, write [{section}]")
        for key in keys:
            _known(key, kind.__struct_fields__, f"{where}: [{section}] {key}")


def _section(name: str, where: str) -> type[_Section]:
    hints = typing.get_type_hints(Settings)
    _known(name, hints, where)
    kind: type[_Section] = hints[name]
    return kind


def _known(name: str, valid: typing.Iterable[str], where: str) -> None:
    names = list(valid)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(names)}"
    raise Refuse(f"{where}: unknown name {name!r}, {hint}")


def _override(tree: dict[str, Any], name: str, value: str) -> None:
    section, _, key = name.removeprefix(PREFIX).lower().partition("__")
    kind = _section(section, name)
    _known(key, kind.__struct_fields__, name)
    target = typing.get_type_hints(kind)[key]
    try:
        # Lists and tables are written as JSON.
        given = msgspec.json.decode(value) if value[:1] in ("[", "{") else value
        typed = msgspec.convert(given, target, strict=False)
    except msgspec.MsgspecError as error:
        raise Refuse(f"{name}={value!r}: {error}") from error
    tree.setdefault(section, {})[key] = typed


def _checked(settings: Settings) -> Settings:
    try:
        zoneinfo.ZoneInfo(settings.site.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise Refuse(f"[site] timezone: no such time zone {settings.site.timezone!r}") from error
    agent = settings.agent
    if agent.period_ms < 100 or agent.flush_ms < agent.period_ms:
        raise Refuse(
            f"[agent] period_ms={agent.period_ms} flush_ms={agent.flush_ms}: "
            "the period is at least 100 ms and a flush at least one period"
        )
    if not 500 <= agent.meter_period_ms <= 10_000:
        raise Refuse(f"[agent] meter_period_ms={agent.meter_period_ms}: it is from 500 to 10000")
    if not 1 <= settings.alerts.interval_s <= 300:
        raise Refuse(f"[alerts] interval_s={settings.alerts.interval_s}: it is from 1 to 300")
    return settings


def secret(value: str, file: str) -> str:
    """A secret from the environment (`value`) or, better, from the file that holds it."""
    if value or not file:
        return value
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise Refuse(f"cannot read the secret in {file}: {error.strerror}") from error
