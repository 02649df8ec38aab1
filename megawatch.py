"""The command line: parses, wires, and imports what a subcommand needs when it is called."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pipeline import arguments
from pipeline import settings as config
from pipeline.clock import SystemClock
from pipeline.errors import MegawatchError, Refuse, Retry
from pipeline.settings import Settings

if TYPE_CHECKING:
    from dashboards.console import Console
    from pipeline.owner import Output, Run
    from pipeline.store import Store

_log: Final = logging.getLogger("megawatch")
_DEFAULT_DATA: Final = "data"

Body = Callable[[argparse.Namespace, Settings], int]


# -- commands -----------------------------------------------------------------------------------


def _up(args: argparse.Namespace, settings: Settings) -> int:
    from agents.sources import from_arguments
    from alerts.rules import RULES
    from alerts.run import Running
    from pipeline import up
    from pipeline.owner import is_owned
    from pipeline.store import open_store

    data = Path(args.data or settings.clickhouse.data or _DEFAULT_DATA).resolve()
    if is_owned(data):
        raise Refuse(
            f"{data} is in use by another megawatch: stop it first, or choose a new folder"
        )
    settings = _embedded(settings, data)
    source = from_arguments(args, settings)
    stop = _stop_on_signals()
    store = open_store(settings.clickhouse)
    console = None
    try:
        console = _opened_console(settings, store, args.listen)
        options = up.Options(data, args.duration, args.json, console.url)
        clock = SystemClock()
        alerts = Running(settings, store, RULES, clock)
        return up.run(
            settings, source, store, options, _inside(settings, store), alerts, stop, clock
        )
    finally:
        if console is not None:
            console.close()
        source.close()
        store.close()


def _opened_console(settings: Settings, store: "Store", listen: str | None) -> "Console":
    """The console where it was asked for, or beside the usual port if somebody has that."""
    from dashboards.console import Console

    token = config.secret("", settings.console.token_file)
    try:
        return Console(store, listen or settings.console.listen, token)
    except Refuse as error:
        if listen or settings.console != config.Console():
            raise
        _log.warning("%s; taking another port", error)
        return Console(store, "127.0.0.1:0", token)


def _agent(args: argparse.Namespace, settings: Settings) -> int:
    from agents import agent
    from agents.sources import from_arguments
    from pipeline.kafka import Producer

    if not settings.kafka.bootstrap:
        raise Refuse("no broker: set [kafka] bootstrap, or MEGAWATCH_KAFKA__BOOTSTRAP=host:9092")
    if args.listen:
        settings = _replace(settings, "agent", listen=args.listen)
    if args.spool:
        settings = _replace(settings, "agent", spool=args.spool)
    name = f"megawatch-agent-{settings.site.hostname}"
    source = from_arguments(args, settings)
    return agent.run(
        settings, source, lambda: Producer(settings.kafka, name), _stop_on_signals(), SystemClock()
    )


def _pipeline(args: argparse.Namespace, settings: Settings) -> int:
    from pipeline.run import run

    if not settings.kafka.bootstrap:
        raise Refuse("no broker: set [kafka] bootstrap, or MEGAWATCH_KAFKA__BOOTSTRAP=host:9092")
    settings = _stored(args, settings)
    return run(settings, _inside, _stop_on_signals(), SystemClock())


def _restore(args: argparse.Namespace, settings: Settings) -> int:
    from pipeline.restore import restore

    data = Path(args.data or settings.clickhouse.data or _DEFAULT_DATA).resolve()
    return restore(Path(args.source).resolve(), data, _embedded(settings, data).clickhouse)


def _topics(args: argparse.Namespace, settings: Settings) -> int:
    from pipeline.kafka import create_topics

    if not settings.kafka.bootstrap:
        raise Refuse("no broker: set [kafka] bootstrap, or MEGAWATCH_KAFKA__BOOTSTRAP=host:9092")
    try:
        found = create_topics(settings.kafka)
    except Retry as error:  # nobody waits here for a broker that comes up later
        raise Refuse(str(error)) from error
    for topic in found:
        print(f"{topic.topic}: {topic.state}", *topic.differences, file=sys.stderr)
    if args.json:
        print(json.dumps(msgspec.to_builtins(found)))
    return 0


def _schema(args: argparse.Namespace, settings: Settings) -> int:
    from pipeline import rbac, schema

    if args.rbac:
        texts = rbac.statements(settings.clickhouse, args.tenant)
    elif args.cluster:
        texts = schema.cluster_statements(settings.clickhouse, args.cluster)
    else:
        texts = [s.sql for s in schema.statements("server", settings.clickhouse)]
    print(";\n\n".join(text.rstrip() for text in texts) + ";")
    return 0


def _decode(args: argparse.Namespace, _: Settings) -> int:
    from pipeline.show import show

    for name in args.file:
        raw = sys.stdin.buffer.read() if name == "-" else _read(Path(name))
        print(show(raw))
    return 0


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    from agents import kubernetes, node_meters, pod_slices, slurm_files
    from pipeline.doctor import examine

    probes = {"node meter": node_meters.describe(host=settings.site.hostname)}
    if settings.kubernetes.socket:
        socket = Path(settings.kubernetes.socket)
        probes["kubelet"] = kubernetes.describe(socket, settings.kubernetes.resources)
        probes["resource slices"] = pod_slices.describe(settings.site.hostname)
    if settings.agent.slurm_jobs:
        probes["slurm"] = slurm_files.describe(Path(settings.agent.slurm_jobs))
    return examine(settings, args.json, probes)


def _verify(args: argparse.Namespace, _: Settings) -> int:
    from pipeline.ledger.verify import verify

    documents, keys = (
        [(name, _read(Path(name))) for name in names] for names in (args.file, args.key)
    )
    return verify(documents, [key for _, key in keys], args.json)


def _alerts(args: argparse.Namespace, settings: Settings) -> int:
    if args.action != "run" or args.file:
        from alerts import command

        return command.run(args, settings, SystemClock())
    from alerts.rules import RULES
    from alerts.run import run

    return _serve(
        args, settings, "evaluates its rules",
        lambda mine, store, stop: run(mine, store, RULES, args.listen, stop, SystemClock()),
    )  # fmt: skip


def _slurm(args: argparse.Namespace, settings: Settings) -> int:
    from pipeline.slurm_run import serve

    settings = _stored(args, settings)
    if settings.clickhouse.data:
        _need_store(args, Path(settings.clickhouse.data))
    return serve(args, settings, _stop_on_signals(), SystemClock())


def _console(args: argparse.Namespace, settings: Settings) -> int:
    from dashboards import console

    token = config.secret("", settings.console.token_file)
    listen = args.listen or settings.console.listen
    return _serve(
        args, settings, "serves its console, at the address that it shows",
        lambda _, store, stop: console.run(store, listen, token, stop, SystemClock()),
    )  # fmt: skip


def _dashboards(args: argparse.Namespace, settings: Settings) -> int:
    from dashboards import command

    if args.action == "generate":
        return command.generate(args)
    return command.publish(args, settings.grafana, settings.clickhouse, SystemClock())


def _bench(args: argparse.Namespace, settings: Settings) -> int:
    import importlib

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not at once: servers that were started are stopped, folders removed.
        signal.signal(number, lambda signum, _: sys.exit(128 + signum))
    if args.what == "alerts":
        from alerts import bench
        from pipeline.bench.simulated import Simulated

        times = {"period_ms": bench.SAMPLES_MS, "flush_ms": bench.SAMPLES_MS}
        return bench.run(args, settings, lambda folder, nodes: Simulated(folder, nodes, **times))
    # What asks the dashboards' queries stands with them, above the pipeline.
    name = "dashboards.bench" if args.what == "query" else f"pipeline.bench.{args.what}"
    module = importlib.import_module(name)
    body: Callable[[argparse.Namespace, Settings], int] = module.run
    return body(args, settings)


_STORE_COMMANDS: Final = (
    "sql", "power", "status", "import", "deadletters", "backup", "migrate", "ledger", "usage",
)  # fmt: skip


def _on_store(args: argparse.Namespace, settings: Settings) -> int:
    """A command that works on a store: inside its owner if it has one, else by opening it."""
    from pipeline.owner import forward
    from pipeline.store import open_store

    settings = _stored(args, settings)
    if settings.clickhouse.data:
        data = Path(settings.clickhouse.data)
        if args.command not in ("import", "migrate"):
            _need_store(args, data)
        code = forward(data, sys.argv[1:])
        if code is not None:
            return code
    store = open_store(settings.clickhouse)
    try:
        return _inside(settings, store)(sys.argv[1:], Path.cwd(), sys.stdout, sys.stderr)
    finally:
        store.close()


def _serve(
    args: argparse.Namespace,
    settings: Settings,
    what: str,
    body: Callable[[Settings, "Store", threading.Event], int],
) -> int:
    """What runs long on a store of its own; `what` says what its owner does, if it has one."""
    from pipeline.owner import is_owned
    from pipeline.store import open_store

    settings = _stored(args, settings)
    if settings.clickhouse.data:
        data = Path(settings.clickhouse.data)
        if is_owned(data):
            raise Refuse(f"{data} is open in another megawatch: `megawatch up` {what}")
        _need_store(args, data)
    stop = _stop_on_signals()
    store = open_store(settings.clickhouse)
    try:
        return body(settings, store, stop)
    finally:
        store.close()


def _need_store(args: argparse.Namespace, data: Path) -> None:
    if not (data / "store").exists():
        raise Refuse(
            f"no store in {data}: start one with `megawatch up --data {args.data or data}`"
        )


# -- wiring -------------------------------------------------------------------------------------


def _inside(settings: Settings, store: "Store") -> "Run":
    """How a command line runs on an open store, for its owner or for somebody else."""
    from pipeline import commands

    def run(argv: Sequence[str], cwd: Path, out: "Output", err: "Output") -> int:
        mine = store.another()
        try:
            args = arguments.parser().parse_args(argv)
            if args.command == "usage":  # what renders it stands above the pipeline
                from dashboards import usage

                body = usage.run
            else:
                body = getattr(commands, "import_" if args.command == "import" else args.command)
            context = commands.Context(mine, settings, SystemClock(), cwd, out, err)
            code: int = body(args, context)
        except MegawatchError as error:
            print(f"megawatch: {error}", file=err)
            return _status_of(error)
        finally:
            mine.close()
        return code

    return run


def _stored(args: argparse.Namespace, settings: Settings) -> Settings:
    """Settings with the store that the arguments name."""
    if args.store and args.data:
        raise Refuse("give either --data FOLDER or --store URL, not both")
    if args.store:
        return _replace(settings, "clickhouse", url=args.store, data="")
    if settings.clickhouse.url and not args.data:
        return settings
    data = Path(args.data or settings.clickhouse.data or _DEFAULT_DATA).resolve()
    return _embedded(settings, data)


def _embedded(settings: Settings, data: Path) -> Settings:
    settings = _replace(settings, "clickhouse", data=str(data), url="")
    settings = _replace(settings, "slurm", seen=str(data / "slurm.seen"))
    return _replace(settings, "agent", spool=str(data / "spool"))


def _replace(settings: Settings, section: str, **changes: object) -> Settings:
    changed = msgspec.structs.replace(getattr(settings, section), **changes)
    return msgspec.structs.replace(settings, **{section: changed})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refuse(f"cannot read {path}: {error.strerror}") from error


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _status_of(error: MegawatchError) -> int:
    return 2 if isinstance(error, Refuse) else 1


def main() -> None:
    """Run a command; exits 2 with one sentence for what the user can mend, 1 for the rest."""
    sys.exit(_main())


def _main() -> int:
    try:
        args = arguments.parser().parse_args()
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        if not args.verbose:
            # The client calls every reconnection an error; what matters reaches us as exceptions.
            logging.getLogger("kafka").setLevel(logging.CRITICAL)
        settings = config.load(Path(args.config) if args.config else None)
        body: Body = _on_store if args.command in _STORE_COMMANDS else globals()[f"_{args.command}"]
        return body(args, settings)
    except MegawatchError as error:
        print(f"megawatch: {error}", file=sys.stderr)
        return _status_of(error)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    main()
