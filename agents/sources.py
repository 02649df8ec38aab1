"""The source that was asked for by name, opened."""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.agent import version
from agents.source import Source
from pipeline.errors import Refuse
from pipeline.settings import Settings

DEMO_NODES: Final = 8
"""Nodes of the simulated site that `megawatch up` shows where there is no GPU."""
DRIVER: Final = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of a source."""

    kind: str
    nodes: int = DEMO_NODES
    files: tuple[str, ...] = ()
    speed: float = 1.0
    loop: bool = False
    seed: int = 1
    rename: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    ignore_extra: bool = False
    faults: tuple[str, ...] = ()


def has_driver() -> bool:
    """True where NVML's library can be loaded; nothing of it is called."""
    # In a process of its own: the agent itself must not keep the driver's library open.
    code = f"import ctypes; ctypes.CDLL({DRIVER!r})"
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return probe.returncode == 0


def open_source(wanted: Wanted, settings: Settings) -> Source:
    """The source, which reads nothing yet. Raises Refuse."""
    site, agent = settings.site, settings.agent
    if wanted.kind == "simulator":
        from agents.faults import Fault
        from agents.simulator import SimulatorSource

        simulated = SimulatorSource(
            wanted.nodes, site=site.name, seed=wanted.seed, period_ms=agent.period_ms
        )
        for text in wanted.faults:
            simulated.inject(Fault.parse(text))
        return simulated
    if wanted.faults:
        raise Refuse(f"--fault happens to a simulated site, not to {wanted.kind}: add --simulate N")
    if wanted.kind == "nvml":
        from agents.nvml_source import NvmlSource

        return NvmlSource(
            site, site.hostname, period_ms=agent.period_ms, slow_every_s=agent.slow_every_s,
            agent_version=version(),
        )  # fmt: skip
    if wanted.kind == "dcgm":
        from agents.dcgm import DcgmSource

        return DcgmSource(agent.dcgm_url, site, period_ms=agent.period_ms)
    if wanted.kind == "replay":
        from agents.replay import ReplaySource
        from pipeline.formats.contract import Options, pairs

        if not wanted.files:
            raise Refuse("--source replay needs a recording: give --replay FILE")
        options = Options(
            site=site.name, rename=pairs(wanted.rename, "--map"),
            constants=pairs(wanted.constants, "--set"), ignore_extra=wanted.ignore_extra,
            zone=site.timezone,
        )  # fmt: skip
        files = [Path(name) for name in wanted.files]
        return ReplaySource(
            files, site, options=options, speed=wanted.speed, loop=wanted.loop,
            period_ms=agent.period_ms,
        )  # fmt: skip
    raise Refuse(f"[agent] source={wanted.kind!r}: it is one of nvml, simulator, replay, dcgm")


def from_arguments(args: argparse.Namespace, settings: Settings) -> Source:
    """The source that was asked for; without a word: NVML if there is a driver, else a simulation."""
    kind = args.source or ("simulator" if args.simulate else settings.agent.source)
    if args.replay:
        kind = "replay"
    if args.command == "up" and not args.source and kind == "nvml" and not has_driver():
        kind = "simulator"
    wanted = Wanted(
        kind=kind, nodes=args.simulate or DEMO_NODES, files=tuple(args.replay or ()),
        speed=args.speed, loop=args.loop, seed=args.seed, rename=tuple(args.map),
        constants=tuple(args.set), ignore_extra=args.ignore_extra,
        faults=tuple(args.fault),
    )  # fmt: skip
    return open_source(wanted, settings)
