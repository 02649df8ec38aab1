"""The one store: ClickHouse, embedded (chDB, a folder) or on a server, behind one client."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline import native, schema, tokens
from pipeline.catalog import SLICE, SLOW
from pipeline.errors import Refuse, Retry
from pipeline.settings import ClickHouse, secret

_NEVER: Final = {"max_partitions_per_insert_block": 0}
_READ_ONLY: Final = {"readonly": 1}
_ENGINE_XML: Final = Path(__file__).with_name("engine.xml")


@dataclass(frozen=True, slots=True)
class Rows:
    """A result: column names, and rows of Python values."""

    names: tuple[str, ...]
    rows: Sequence[Sequence[Any]]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row by name."""
        return [dict(zip(self.names, row, strict=True)) for row in self.rows]


class Store:
    """A connection; make one per thread with `another`, they share the engine."""

    def __init__(self, settings: ClickHouse) -> None:
        """Connect. Raises Refuse when it can never work, Retry when the server is away."""
        self.settings = settings
        self._client = _connect(settings)
        self._types: dict[str, dict[str, str]] = {}
        self._hands: dict[str, BinaryIO] = {}

    @property
    def embedded(self) -> bool:
        """True for chDB in this process."""
        return not self.settings.url

    def another(self) -> "Store":
        """A second connection to the same store, for another thread."""
        return Store(self.settings)

    def close(self) -> None:
        """Release the connection."""
        self._client.close()
        for hand in self._hands.values():
            hand.close()

    def query(
        self, sql: str, parameters: Mapping[str, object] | None = None, **limits: object
    ) -> Rows:
        """Run a SELECT, read-only, with parameters bound as {name:Type}."""
        with _mapped():
            result = self._client.query(
                sql, parameters=dict(parameters or {}), settings=_READ_ONLY | limits
            )
        return Rows(tuple(result.column_names), result.result_rows)

    def raw(
        self, sql: str, fmt: str, parameters: Mapping[str, object] | None = None, **limits: object
    ) -> bytes:
        """The result of a SELECT of our own making in one of ClickHouse's formats."""
        with _mapped():
            return bytes(
                self._client.raw_query(
                    sql, parameters=dict(parameters or {}), fmt=fmt, settings=limits
                )
            )

    def foreign(self, sql: str, fmt: str) -> bytes:
        """The result of somebody else's query, read-only.

        On a connection of its own: with chDB a raw query leaves its connection read-only for good.
        """
        with contextlib.closing(self.another()) as apart, _mapped():
            return bytes(apart._client.raw_query(sql, fmt=fmt, settings=_READ_ONLY))  # noqa: SLF001

    def command(self, sql: str) -> None:
        """Run a statement of our own making that changes something."""
        with _mapped():
            self._client.command(sql)

    def insert(self, table: str, columns: Mapping[str, native.Values], token: str = "") -> None:
        """Insert a block; with a token, a repetition of the same insert changes nothing."""
        if not columns or not len(next(iter(columns.values()))):
            return
        types = self._column_types(table)
        columns = native.as_stored(columns, types)
        body = native.block(columns, {name: types[name] for name in columns})
        settings: dict[str, object] = dict(_NEVER)
        if token:
            settings["insert_deduplication_token"] = token
        with _mapped():
            if self.embedded:
                self._hand_over(table, columns, body, settings)
            else:
                self._client.raw_insert(
                    table, list(columns), insert_block=body, fmt="Native", settings=settings
                )

    def _hand_over(
        self, table: str, columns: Iterable[str], body: bytes, settings: Mapping[str, object]
    ) -> None:
        """Insert through a file in memory, as chDB reads blocks from files alone.

        The client does so too, with a new file each time. One for each table keeps its pages: a
        tenth of an insert less. It has no name that would outlive a killed process.
        """
        hand = self._hands.get(table)
        if hand is None:
            hand = self._hands[table] = _file_in_memory()
        hand.seek(0)
        hand.write(body)
        hand.truncate()
        hand.seek(0)  # which flushes; where /dev/fd shares the position, it is read from here
        said = ", ".join(f"{name} = {_quoted(value)}" for name, value in settings.items())
        self._client.command(
            f"INSERT INTO {table} ({', '.join(columns)})"
            f" FROM INFILE '/dev/fd/{hand.fileno()}' SETTINGS {said} FORMAT Native"
        )

    def _column_types(self, table: str) -> dict[str, str]:
        if table not in self._types:
            rows = self.query(
                "SELECT name, type FROM system.columns"
                " WHERE database = currentDatabase() AND table = {table:String}",
                {"table": table},
            ).rows
            self._types[table] = {name: kind for name, kind in rows}  # noqa: C416
        return self._types[table]

    def backup(self, target: Path) -> None:
        """Write a consistent copy of the embedded store to a folder, or to a .tar or .tar.gz."""
        self.command(f"BACKUP DATABASE default TO {_file(target)}")

    def restore(self, source: Path) -> None:
        """Fill this empty embedded store from a backup."""
        self.command(f"RESTORE DATABASE default FROM {_file(source)}")

    def migrate(self) -> list[str]:
        """Bring the schema up to date; returns what was done. Refuses a newer schema."""
        form: schema.Form = "embedded" if self.embedded else "server"
        self.command(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number UInt32, name String,"
            " applied_at DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY number"
        )
        done = {row[0] for row in self.query("SELECT number FROM schema_migrations").rows}
        steps = schema.statements(form, self.settings)
        newest = max(s.number for s in steps)
        if done and max(done) > newest:
            raise Refuse(
                f"the store has schema {max(done)}, newer than {newest} of this version: "
                "upgrade megawatch before it writes here"
            )
        applied = []
        for step in steps:
            if step.number not in done:
                self.command(step.sql)
                self.insert("schema_migrations", {"number": [step.number], "name": [step.name]})
                applied.append(f"{step.number:04d}_{step.name}")
        return applied + self._add_columns()

    def _add_columns(self) -> list[str]:
        """Columns of metrics that joined the catalogue after the table was made."""
        added = []
        if schema.coded("power_w") not in self._column_types("gpu_samples"):
            raise Refuse(
                "the store was made by a version before 0.1 that kept other columns in gpu_samples:"
                " give it a new folder or database, with --data or [clickhouse] database"
            )
        for table, columns in (
            ("gpu_samples", schema.sample_columns()),
            ("gpu_health", schema.metric_columns(SLOW)),
            ("slice_samples", schema.metric_columns(SLICE)),
        ):
            known = self._column_types(table)
            for name, definition in columns:
                if name not in known:
                    self.command(
                        f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {definition}"
                    )
                    added.append(f"{table}.{name}")
        if added:
            self._types.clear()
        return added


def open_store(settings: ClickHouse) -> Store:
    """The configured store, migrated. Raises Refuse with one sentence."""
    if not settings.url and not settings.data:
        raise Refuse("no store: give --data FOLDER (embedded) or --store URL (a ClickHouse server)")
    store = Store(settings)
    if store.embedded or not _is_current(store):
        store.migrate()
    return store


def _is_current(store: Store) -> bool:
    """Whether a server has exactly this schema, so that no right to change it is needed."""
    there = store.query(
        "SELECT count() FROM system.tables"
        " WHERE database = currentDatabase() AND name = 'schema_migrations'"
    ).rows[0][0]
    if not there:
        return False
    newest = max(step.number for step in schema.statements("server", store.settings))
    done: int = store.query("SELECT max(number) FROM schema_migrations").rows[0][0]
    return done == newest


def _file(path: Path) -> str:
    folder = "" if path.suffix in (".tar", ".gz") else "/"
    return f"File({_quoted(f'{path}{folder}')})"


def _quoted(value: object) -> str:
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_ENGINE_LOCK: Final = threading.Lock()


def _connect(settings: ClickHouse) -> Client:
    if settings.url:
        return _server(settings)
    folder = Path(settings.data) / "store"
    folder.mkdir(parents=True, exist_ok=True)
    with _ENGINE_LOCK:
        tokens.mend(folder)
        try:
            return clickhouse_connect.get_client(
                interface="chdb", path=str(folder), chdb_options={"config-file": str(_ENGINE_XML)}
            )
        except Exception as error:  # chDB raises bare exceptions, with the reason on stderr alone
            raise Refuse(
                f"cannot open the store in {folder}: another process has it open "
                "and does not answer on its socket, or the folder is damaged"
            ) from error


def _file_in_memory() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("megawatch"), "w+b")
    return tempfile.TemporaryFile()


def _server(settings: ClickHouse) -> Client:
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refuse(f"--store {settings.url!r} is not an http(s) address, like http://host:8123")
    if parts.password:
        raise Refuse(
            "put the ClickHouse password into [clickhouse] password_file, not into the URL"
        )
    try:
        client = clickhouse_connect.get_client(
            interface=parts.scheme, host=parts.hostname,
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            username=settings.username,
            password=secret(settings.password, settings.password_file),
            database=settings.database, ca_cert=settings.ca_file or None,
        )  # fmt: skip
    except ClickHouseError as error:
        raise Retry(f"cannot reach ClickHouse at {settings.url}: {_first_line(error)}") from error
    return client


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """The client's errors as ours: all are worth another try, the caller bounds how often."""
    try:
        yield
    except ClickHouseError as error:
        raise Retry(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:500]
