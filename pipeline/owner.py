"""One owner of the embedded store: others run their commands inside it, over a Unix socket.

chDB is one process per folder. Whoever has folder D open listens on D/megawatch.sock (mode 0600).
A request is one line of JSON {"argv", "cwd", "tty"}; the answer is lines of {"out"} and {"err"}
(text for the caller's standard output and error) and at last {"exit"}.
"""

import contextlib
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

NAME: Final = "megawatch.sock"
_MAX_REQUEST: Final = 1 << 20
_CONNECT_S: Final = 2.0
_MAX_PATH: Final = 100


class Output(Protocol):
    """What a command writes to: a terminal, a file, or somebody else's."""

    def write(self, text: str, /) -> int:
        """Write a text."""
        ...

    def flush(self) -> None:
        """Hand over what is buffered."""
        ...

    def isatty(self) -> bool:
        """True if a person looks at it."""
        ...


Run = Callable[[Sequence[str], Path, Output, Output], int]
"""Runs a command line with a working directory, standard output and standard error."""


class _Frames:
    """A text stream whose writes become lines of JSON on a connection."""

    def __init__(
        self, connection: socket.socket, name: str, tty: bool, lock: threading.Lock
    ) -> None:
        self._connection, self._name, self._tty, self._lock = connection, name, tty, lock

    def write(self, text: str, /) -> int:
        if text:
            with self._lock:
                self._connection.sendall(json.dumps({self._name: text}).encode() + b"\n")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._tty


class _Request(msgspec.Struct, frozen=True):
    """A command line to run."""

    argv: list[str]
    cwd: str
    tty: bool


class _Handler(socketserver.StreamRequestHandler):
    """One request of one caller."""

    server: "_Server"

    def handle(self) -> None:
        try:
            request = msgspec.json.decode(self.rfile.readline(_MAX_REQUEST), type=_Request)
        except msgspec.MsgspecError:
            return  # whoever asks like this is none of ours
        lock = threading.Lock()
        out, err = (_Frames(self.connection, n, request.tty, lock) for n in ("out", "err"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the caller went away
            code = self.server.run(request.argv, Path(request.cwd), out, err)
            self.connection.sendall(json.dumps({"exit": code}).encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    run: Run


class Owner:
    """Listens while its process has the store open."""

    def __init__(self, data: Path, run: Run) -> None:
        """Begin to listen; the caller has the store open, so a socket found there is stale."""
        self.path = data / NAME
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _address(data) as address:
                self._server = _Server(address, _Handler)
        finally:
            os.umask(before)
        self._server.run = run
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="owner", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; commands under way are cut off."""
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _address(data: Path) -> Iterator[str]:
    """The socket's path in at most 107 bytes, which is all that the kernel takes."""
    path = str(data / NAME)
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield path
        return
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{NAME}"
    finally:
        os.close(folder)


def is_owned(data: Path) -> bool:
    """True if a process listens for the store in `data`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return _connected(connection, data)


def _connected(connection: socket.socket, data: Path) -> bool:
    connection.settimeout(_CONNECT_S)
    try:
        with _address(data) as address:
            connection.connect(address)
    except OSError:
        return False
    return True


def forward(
    data: Path, argv: Sequence[str], out: Output | None = None, err: Output | None = None
) -> int | None:
    """Run a command line inside the owner of `data`; its exit status, or None without an owner.

    What it says goes to `out` and `err`, without them to this process's own.
    """
    out, err = out or sys.stdout, err or sys.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        if not _connected(connection, data):
            return None
        connection.settimeout(None)
        request = {"argv": list(argv), "cwd": str(Path.cwd()), "tty": err.isatty()}
        connection.sendall(json.dumps(request).encode() + b"\n")
        for line in connection.makefile("rb"):
            frame = json.loads(line)
            if "exit" in frame:
                return int(frame["exit"])
            print(frame.get("out", ""), end="", flush=True, file=out)
            print(frame.get("err", ""), end="", flush=True, file=err)
    print("megawatch: the owner of the store ended before its answer did", file=err)
    return 1
