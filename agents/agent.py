"""Wiring: one agent from its settings, until it is told to stop."""

import contextlib
import functools
import importlib.metadata
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agents.exporter import Exporter
from agents.exposition import Totals
from agents.kubernetes import Pods, open_pods
from agents.mig_names import MigNames
from agents.node_meters import Meters, discover
from agents.sampler import Observer, Sampler
from agents.shipper import Producer, Shipper
from agents.slurm_files import JobFiles
from agents.source import Source
from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.outbox import Outbox
from pipeline.records import Record
from pipeline.settings import Settings, secret
from pipeline.spool import Spool
from pipeline.web import Web

log = logging.getLogger(__name__)

FINISH_S: Final = 3.0
"""How long shipping may go on after the end was asked for."""
SAMPLER_LEAVES_S: Final = 1.5
SHIPPER_LEAVES_S: Final = 3.4
"""When a thread that has not ended is left behind: all is over within 5 s."""


def open_spool(settings: Settings, clock: Clock) -> Spool:
    """The spool that the settings name. Raises Refuse."""
    agent = settings.agent
    return Spool(Path(agent.spool), agent.spool_max_mib << 20, clock)


def run(
    settings: Settings,
    source: Source,
    producer_factory: Callable[[], Producer] | None,
    stop: threading.Event,
    clock: Clock,
    spool: Spool | None = None,
    observers: Sequence[Observer] = (),
) -> int:
    """Sample, spool, ship and export until `stop` is set; returns the exit status.

    Without a producer factory nothing is shipped: the spool is the log (pipeline/spool_log.py) of
    the same process, which then passes the spool in and closes it. Raises Refuse.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        if spool is None:
            spool = stack.enter_context(contextlib.closing(open_spool(settings, clock)))
        totals = Totals()
        meters = None
        # Only NVML is surely this machine: a simulated, replayed or remote node has other meters.
        if settings.agent.node_meters and source.name == "nvml":
            found = discover(host=settings.site.hostname)
            meters = Meters(settings.site.name, found, clock, settings.agent.meter_period_ms)
            stack.callback(meters.close)
        jobs = _jobs(settings, source, clock)
        if jobs is not None:
            stack.callback(jobs.close)
        pods = _pods(settings, source, clock)
        if pods is not None:
            stack.callback(pods.close)
            pods.start(settings.agent.period_ms)
        sampler = Sampler(
            source,
            spool,
            settings,
            clock,
            [totals, *(probe for probe in (jobs, pods) if probe is not None), *observers],
            _beside([probe.read for probe in (meters, jobs, pods) if probe is not None]),
        )
        shipper = None
        if producer_factory is not None:
            rate = settings.agent.backfill_kib_per_s << 10
            shipper = Shipper(Outbox(spool), producer_factory, clock, spool.wake, rate)
        exporter = Exporter(
            source,
            sampler,
            spool,
            shipper,
            totals,
            clock,
            settings.agent.period_ms,
            version(),
            meters,
            pods,
        )
        web = _web(settings, exporter)
        stack.callback(web.close)
        return _run_threads(sampler, shipper, stop)


def _jobs(settings: Settings, source: Source, clock: Clock) -> JobFiles | None:
    """What a prolog writes down of jobs on this node's GPUs."""
    agent, site = settings.agent, settings.site
    if not agent.slurm_jobs or source.name != "nvml":
        return None
    told = Path(agent.spool) / "slurm_jobs.json"
    folder = Path(agent.slurm_jobs)
    return JobFiles(site.name, site.hostname, folder, told, clock, MigNames())


def _pods(settings: Settings, source: Source, clock: Clock) -> Pods | None:
    """Who holds the GPUs; a simulated or replayed node has no kubelet."""
    asked = settings.kubernetes
    if not asked.socket or source.name not in ("nvml", "dcgm"):
        return None
    folder = Path(settings.agent.spool)
    return open_pods(settings.site, asked.socket, asked.resources, asked.pod_label, folder, clock)


def _beside(
    probes: Sequence[Callable[[int], Sequence[Record]]],
) -> Callable[[int], Sequence[Record]] | None:
    """What every probe has to tell, as one."""
    if not probes:
        return None
    return lambda now_ms: [record for read in probes for record in read(now_ms)]


def _run_threads(sampler: Sampler, shipper: Shipper | None, stop: threading.Event) -> int:
    """Both loops in threads; the shipper is told to stop once the last flush is in the spool."""
    failures: list[Exception] = []
    sampled = threading.Event()
    sampling = _start("sampler", functools.partial(sampler.run, stop), stop, failures)
    threads = [sampling]
    if shipper is not None:
        ship = functools.partial(shipper.run, sampled, FINISH_S)
        threads.append(_start("shipper", ship, stop, failures))
    stop.wait()
    sampling.join(SAMPLER_LEAVES_S)
    sampled.set()
    if shipper is not None:
        shipper.wake.set()
        threads[-1].join(SHIPPER_LEAVES_S)
    for error in failures:
        if isinstance(error, Refuse):
            raise error
    for thread in threads:
        if thread.is_alive():
            log.warning("the %s did not end in time and is left behind", thread.name)
    # A shipper that is left behind loses nothing: what it has not shipped is in the spool.
    return 1 if failures or sampling.is_alive() else 0


def _start(
    name: str, body: Callable[[], None], stop: threading.Event, failures: list[Exception]
) -> threading.Thread:
    def guarded() -> None:
        try:
            body()
        except Exception as error:
            # A mistake of ours: the whole agent ends, is restarted, and goes on from its spool.
            log.exception("%s failed", name)
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def _web(settings: Settings, exporter: Exporter) -> Web:
    agent = settings.agent
    token = secret("", agent.token_file)
    if agent.token_file and not token:
        raise Refuse(f"[agent] token_file={agent.token_file!r} is empty")
    return Web(agent.listen, exporter.pages(), token)


def version() -> str:
    """The version that is installed."""
    try:
        return importlib.metadata.version("megawatch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
