"""The command line's grammar: every command, its arguments, and an example of its use."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from pipeline.errors import Refuse

Parser = argparse.ArgumentParser
_BACK: Final = re.compile(r"-\d+[smhd]")


class _Parser(Parser):
    """Says what is wrong in one sentence, and leaves the exit to the front door."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As ever, but `--from -24h` is a time and not an option."""
        return super().parse_known_args(_joined(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise Refuse."""
        raise Refuse(f"{message} (see `{self.prog} --help`)")


def _joined(arguments: Sequence[str]) -> list[str]:
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] in ("--from", "--to") and _BACK.fullmatch(argument):
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


Command = Callable[..., Parser]


def parser() -> Parser:
    """The whole grammar."""
    made = _Parser(
        prog="megawatch",
        description="Power, health and use of every GPU of a site.",
        epilog="example: megawatch up --simulate 4 --duration 60",
    )
    made.add_argument("--config", metavar="FILE", help="TOML file; keys in megawatch.example.toml")
    made.add_argument("--verbose", action="store_true", help="say more on standard error")
    commands = made.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(
        name: str, text: str, example: str, *, stored: bool = False, as_json: bool = True
    ) -> Parser:
        one = commands.add_parser(
            name, help=text, description=text, epilog=f"example: megawatch {example}"
        )
        if stored:
            one.add_argument("--data", metavar="D", help="folder of the embedded store (data)")
            one.add_argument(
                "--store", metavar="URL", help="a ClickHouse server, http(s)://host:port"
            )
        if as_json:
            one.add_argument("--json", action="store_true", help="JSON as the last line")
        return one

    _add_running(command)
    _add_asking(command)
    _add_keeping(command)
    _add_sights(command)
    _add_alerts(command)
    return made


def _add_running(command: Command) -> None:
    """What runs until it is stopped."""
    up = command("up", "everything in one process", "up --simulate 4")
    up.add_argument("--data", metavar="D", help="folder for store and spool (data)")
    up.add_argument("--duration", type=float, metavar="S", help="end after so many seconds")
    up.add_argument("--listen", metavar="HOST:PORT", help="where the dashboards are served")
    _add_source(up)
    agent = command(
        "agent", "sample this node and ship it to Kafka", "agent --source nvml", as_json=False
    )
    agent.add_argument("--spool", metavar="DIR", help="folder of the spool")
    agent.add_argument("--listen", metavar="HOST:PORT", help="where /metrics is served")
    _add_source(agent)
    command(
        "pipeline", "Kafka to ClickHouse", "pipeline --store http://localhost:8123",
        stored=True, as_json=False,
    )  # fmt: skip
    slurm = command(
        "slurm", "Slurm's jobs as allocations", "slurm --once --dry-run", stored=True,
        as_json=False,
    )  # fmt: skip
    slurm.add_argument(
        "--period", type=float, metavar="S", help="seconds between two questions (10)"
    )
    slurm.add_argument("--once", action="store_true", help="ask once and end")
    slurm.add_argument("--dry-run", action="store_true", help="say what would be asserted")
    console = command(
        "console", "the dashboards on a local page", "console --data data", stored=True,
        as_json=False,
    )  # fmt: skip
    console.add_argument("--listen", metavar="HOST:PORT", help="where the page is served")
    bench = command("bench", "measure this machine", "bench ingest --quick")
    bench.add_argument("what", choices=("ingest", "soak", "agent", "ledger", "query", "alerts"))
    bench.add_argument("--quick", action="store_true", help="smaller: a minute or two")
    bench.add_argument(
        "--gpus", type=_positive, metavar="N", help="soak, query, alerts: of the site (220000)"
    )
    bench.add_argument("--minutes", type=_positive, metavar="N", help="soak: how long (60)")


def _add_asking(command: Command) -> None:
    """What answers a question."""
    power = command(
        "power", "watts by step, with coverage", "power --from -1h --step 1m", stored=True
    )
    _add_period(power)
    power.add_argument("--step", choices=("1s", "1m", "15m", "1h"), default="1m")
    power.add_argument("--by", choices=("site", "tenant"), default="site")
    ledger = command(
        "ledger", "quarters of an hour, closed and proved", "ledger close", stored=True
    )
    ledger.add_argument("action", choices=("close", "status", "verify"))
    _add_period(ledger)
    usage = command(
        "usage", "who used what: a period's statement",
        "usage --from 2026-10-01 --to 2026-11-01 --tenant lab-a --format html -o lab-a.html",
        stored=True,
    )  # fmt: skip
    _add_period(usage)
    usage.add_argument("--tenant", metavar="X", help="one tenant's, with nothing about others")
    usage.add_argument("--by", choices=("tenant", "workload"), default="tenant")
    usage.add_argument("--format", choices=("table", "csv", "json", "html"), default="table")
    usage.add_argument("-o", dest="output", metavar="F", help="seal it into the chain and write it")
    usage.add_argument("--sign", metavar="KEY", help="PEM file of an Ed25519 key, with -o")
    verify = command("verify", "check statements' chain and signatures", "verify 2026-10.json",
                     as_json=True)  # fmt: skip
    verify.add_argument("file", nargs="+", metavar="FILE")
    verify.add_argument("--key", action="append", default=[], metavar="FILE",
                        help="a public key that you trust")  # fmt: skip
    sql = command(
        "sql", "the operator's own query, read-only", 'sql "SELECT count() FROM gpu_samples"',
        stored=True, as_json=False,
    )  # fmt: skip
    sql.add_argument("query")
    sql.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command("status", "what the store holds and how fresh it is", "status", stored=True)
    command("doctor", "what works here, and what to do about the rest", "doctor")
    schema = command("schema", "the tables as SQL", "schema --cluster main", as_json=False)
    schema.add_argument("--cluster", metavar="NAME")
    schema.add_argument("--rbac", action="store_true", help="roles, row policies, quotas instead")
    schema.add_argument(
        "--tenant", action="append", default=[], metavar="X", help="with --rbac: a tenant to admit"
    )
    decode = command("decode", "a message taken apart", "decode message.bin", as_json=False)
    decode.add_argument("file", nargs="+", metavar="FILE")


def _add_keeping(command: Command) -> None:
    """What changes a store or a broker."""
    imported = command(
        "import", "recorded history, at full speed",
        "import samples log.csv --map ts=timestamp --set node=n1", stored=True,
    )  # fmt: skip
    imported.add_argument(
        "what", choices=("samples", "meters", "allocations", "inventory", "contracts")
    )
    imported.add_argument("files", nargs="+", metavar="FILE")
    _add_columns(imported)
    imported.add_argument(
        "--format", default="auto", choices=("auto", "csv", "parquet", "nvidia-smi", "records"),
        help="records: allocations as `slurm --dry-run` says them, a line of JSON each",
    )  # fmt: skip
    imported.add_argument("--keep-good", action="store_true", help="leave bad rows out, count them")
    imported.add_argument("--zone", metavar="Z", help="of times that name none: Europe/Berlin")
    letters = command("deadletters", "what could not be read", "deadletters list", stored=True)
    letters.add_argument("action", choices=("list", "replay"))
    letters.add_argument("--limit", type=int, default=100)
    topics = command("topics", "the Kafka topics", "topics create")
    topics.add_argument("action", choices=("create",))
    command(
        "migrate", "bring the schema up to date", "migrate --store http://localhost:8123",
        stored=True,
    )  # fmt: skip
    backup = command(
        "backup", "a copy of the embedded store", "backup monday.tar.gz", stored=True, as_json=False
    )
    backup.add_argument("to", metavar="TO", help="a folder, .tar or .tar.gz that is not there yet")
    restore = command(
        "restore", "an embedded store from a backup", "restore monday.tar.gz --data new",
        as_json=False,
    )  # fmt: skip
    restore.add_argument("source", metavar="FROM")
    restore.add_argument("--data", metavar="D", help="folder that has no store yet")


def _add_sights(command: Command) -> None:
    """What people look at, and what wakes them."""
    boards = command(
        "dashboards", "Grafana's dashboards: written as files, brought into a Grafana",
        "dashboards publish --grafana https://grafana.example:3000 --dry-run",
    )  # fmt: skip
    boards.add_argument("action", choices=("generate", "publish"))
    boards.add_argument("--check", action="store_true", help="generate: only say what differs")
    _add_publishing(boards)
    boards.add_argument("--folder", metavar="NAME", help="publish: the folder in Grafana")
    boards.add_argument(
        "--tenant", action="append", default=[], metavar="X",
        help="publish: this tenant's folder, data source and dashboard, not the site's",
    )  # fmt: skip
    boards.add_argument(
        "--password-file", action="append", default=[], metavar="F",
        help="for each --tenant: the password of its ClickHouse user",
    )  # fmt: skip
    boards.add_argument(
        "--user", action="append", default=[], metavar="U",
        help="for each --tenant: its ClickHouse user (<database>_tenant_<id>_grafana)",
    )  # fmt: skip
    boards.add_argument(
        "--viewer", action="append", default=[], metavar="team:NAME|user:LOGIN",
        help="for each --tenant: who sees it; without, everybody in the organisation",
    )  # fmt: skip


def _add_publishing(to: Parser) -> None:
    to.add_argument("--grafana", metavar="URL", help="publish: where; the token is in [grafana]")
    to.add_argument("--dry-run", action="store_true", help="publish: only show what changes")
    to.add_argument(
        "--force", action="store_true", help="publish: also over what somebody changed in Grafana"
    )


def _add_alerts(command: Command) -> None:
    """What wakes people."""
    alerts = command(
        "alerts", "rules: listed, generated, published, evaluated; other people's judged",
        "alerts list",
        stored=True,
    )  # fmt: skip
    alerts.add_argument("action", choices=("list", "generate", "publish", "run", "lint"))
    alerts.add_argument("file", nargs="*", metavar="FILE", help="lint: Prometheus rule files")
    alerts.add_argument("--check", action="store_true", help="generate: only say what differs")
    alerts.add_argument("--to", metavar="DIR", help="generate: as configured, into this folder")
    _add_publishing(alerts)
    alerts.add_argument(
        "--listen",
        default="127.0.0.1:9467",
        metavar="HOST:PORT",
        help="run: where /metrics is served",
    )


def _add_period(to: Parser) -> None:
    to.add_argument("--site", metavar="S")
    to.add_argument("--from", dest="since", metavar="T", help="ISO 8601, epoch ms, or -24h")
    to.add_argument("--to", dest="until", metavar="T")


def _add_source(to: Parser) -> None:
    to.add_argument("--source", choices=("nvml", "simulator", "replay", "dcgm"))
    to.add_argument("--simulate", type=_positive, metavar="N", help="N nodes of 8 GPUs")
    to.add_argument("--seed", type=int, default=1, help="of the simulation")
    to.add_argument(
        "--fault", action="append", default=[], metavar="KIND[:GPU][@S][+S]",
        help="let it happen to the simulation after S seconds, for S more: rack_loss@60+300;"
        " a wrong KIND lists all",
    )  # fmt: skip
    to.add_argument("--replay", action="append", metavar="FILE", help="a recorded log")
    to.add_argument("--speed", type=float, default=1.0, metavar="X", help="of the replay")
    to.add_argument("--loop", action="store_true", help="replay for ever")
    _add_columns(to)


def _add_columns(to: Parser) -> None:
    to.add_argument(
        "--map", action="append", default=[], metavar="OURS=THEIRS",
        help="our name of a column of theirs",
    )  # fmt: skip
    to.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a value for every row"
    )
    to.add_argument(
        "--ignore-extra", action="store_true", help="leave out columns that have no name here"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
