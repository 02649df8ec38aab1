"""What works on this machine, what does not, and what to do about it."""

import ctypes
import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import MegawatchError
from pipeline.settings import Settings
from pipeline.table import render

State = Literal["ok", "off", "warn", "fail"]

SPOOL_MIB_PER_DAY: Final = 150
"""About what 8 GPUs at 1 Hz write into the spool while the broker is away."""
SOON_MS: Final = 4000
"""What completeness (view `settled`) and silence (alerts/rules/places.py) are reckoned with."""
_OFFER_NVML: Final = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` says what to do where it is not ok."""

    what: str
    state: State
    found: str
    fix: str = ""


def examine(settings: Settings, as_json: bool, probes: Mapping[str, Sequence[str]]) -> int:
    """Look at everything, print it; 1 if something configured does not work.

    `probes` is what the node's own probes found (meters, scheduler): lines by what they look at.
    """
    findings = [finding for check in _CHECKS for finding in check(settings)]
    findings += [Finding(what, "ok", line) for what, lines in probes.items() for line in lines]
    if as_json:
        print(json.dumps([asdict(f) for f in findings]))
    else:
        print(render(["", "state", "found", "what to do"],
                     [[f.what, f.state, f.found, f.fix] for f in findings]))  # fmt: skip
    return int(any(f.state == "fail" for f in findings))


def _python(_: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")


def _nvml(settings: Settings) -> Iterator[Finding]:
    try:
        ctypes.CDLL(_OFFER_NVML)
    except OSError:
        needed = settings.agent.source == "nvml"
        yield Finding(
            "NVML", "warn" if needed else "off", f"{_OFFER_NVML} is not here",
            "install NVIDIA's driver, or choose another source: [agent] source",
        )  # fmt: skip
        return
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    readable = [d for d in devices if os.access(d, os.R_OK | os.W_OK)]
    if len(readable) < len(devices):
        yield Finding("NVML", "fail", f"{len(devices) - len(readable)} of {len(devices)} devices "
                      "may not be opened", "run as a user that may, or add it to their group")  # fmt: skip
    else:
        yield Finding("NVML", "ok", f"library loads, {len(devices)} device files")
    if not os.access("/dev/kmsg", os.R_OK):
        yield Finding("kernel log", "warn", "/dev/kmsg may not be read",
                      "grant CAP_SYSLOG: XIDs between two lives of the driver's reader are lost")  # fmt: skip


def _pace(settings: Settings) -> Iterator[Finding]:
    pace = f"[agent] flush_ms={settings.agent.flush_ms}"
    if settings.agent.flush_ms <= SOON_MS:
        yield Finding("pace", "ok", pace)
    else:
        yield Finding("pace", "warn", pace, f"at most {SOON_MS}, or the newest seconds are shown"
                      " before they are complete, and alerts take GPUs for silent")  # fmt: skip


def _spool(settings: Settings) -> Iterator[Finding]:
    folder = Path(settings.agent.spool)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(there, os.W_OK):
        yield Finding("spool", "fail", f"{there} may not be written",
                      f"make {folder} writable, or set [agent] spool")  # fmt: skip
        return
    free_mib = shutil.disk_usage(there).free // 2**20
    bound = settings.agent.spool_max_mib
    if free_mib < bound:
        yield Finding("spool", "warn", f"{free_mib} MiB free in {there}, the spool may grow to {bound}",
                      "free some, or lower [agent] spool_max_mib")  # fmt: skip
    else:
        yield Finding("spool", "ok", f"{free_mib} MiB free, bound {bound} MiB: "
                      f"about {bound // SPOOL_MIB_PER_DAY} days of 8 GPUs")  # fmt: skip


def _kafka(settings: Settings) -> Iterator[Finding]:
    if not settings.kafka.bootstrap:
        yield Finding(
            "Kafka", "off", "no [kafka] bootstrap", "needed by agent and pipeline, not by up"
        )
        return
    from pipeline.kafka import inspect_topics

    try:
        topics = inspect_topics(settings.kafka)
    except MegawatchError as error:
        yield Finding("Kafka", "fail", str(error), "see the sentence")
        return
    yield Finding("Kafka", "ok", f"{settings.kafka.bootstrap} answers")
    for topic in topics:
        if topic.state != "exists" or topic.differences:
            yield Finding(f"topic {topic.topic}", "fail", f"{topic.state} {'; '.join(topic.differences)}",
                          "megawatch topics create")  # fmt: skip


def _store(settings: Settings) -> Iterator[Finding]:
    clickhouse = settings.clickhouse
    if clickhouse.url:
        from pipeline.store import Store

        try:
            store = Store(clickhouse)
            version = store.query("SELECT version()").rows[0][0]
            store.close()
        except MegawatchError as error:
            yield Finding("ClickHouse", "fail", str(error), "check [clickhouse] url and password")
            return
        yield Finding("ClickHouse", "ok", f"{clickhouse.url} runs {version}")
        return
    if importlib.util.find_spec("chdb") is None:
        yield Finding(
            "chDB", "off", "not installed", "pip install 'megawatch[pipeline]' where up runs"
        )
        return
    yield Finding("chDB", "ok", "the embedded engine is installed")


def _listeners(settings: Settings) -> Iterator[Finding]:
    for what, address in (("agent", settings.agent.listen), ("pipeline", settings.pipeline.listen)):
        host, _, port = address.rpartition(":")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), int(port)))
            except (OSError, ValueError, OverflowError) as error:
                yield Finding(f"{what} listen", "warn", f"{address}: {error}",
                              f"it may be running already; else change [{what}] listen")  # fmt: skip
                continue
        yield Finding(f"{what} listen", "ok", f"{address} is free")


_CHECKS: Final[tuple[Callable[[Settings], Iterator[Finding]], ...]] = (
    _python, _nvml, _pace, _spool, _kafka, _store, _listeners,
)  # fmt: skip
