"""One process owns a store; others run their commands inside it, over a socket that is theirs."""

import contextlib
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.owner import NAME, Owner, forward

MEGAWATCH = [sys.executable, "-m", "megawatch"]


def echo(argv, cwd, out, err) -> int:
    """A command that says what it was given."""
    out.write(json.dumps({"argv": list(argv), "cwd": str(cwd), "tty": out.isatty()}))
    err.write("aside\n")
    return len(argv)


@pytest.fixture
def owned(tmp_path):
    owner = Owner(tmp_path, echo)
    yield tmp_path
    owner.close()


def test_a_command_runs_inside_the_owner(owned, capsys):
    """With the caller's arguments, folder, streams and status."""
    assert forward(owned, ["sql", "SELECT 'ü\n'"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["argv"] == ["sql", "SELECT 'ü\n'"]
    assert json.loads(said.out)["cwd"] == str(Path.cwd())
    assert said.err == "aside\n"


def test_only_its_user_may_ask(owned):
    """Mode 0600, from the first instant."""
    assert stat.S_IMODE((owned / NAME).stat().st_mode) == 0o600


def test_without_an_owner_there_is_no_answer(tmp_path):
    """Nor with a stale socket, a file, or nothing at all in its place."""
    assert forward(tmp_path, []) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / NAME))
    assert forward(tmp_path, []) is None
    Owner(tmp_path, echo).close()
    (tmp_path / NAME).write_text("")
    assert forward(tmp_path, []) is None


def test_a_stale_socket_does_not_keep_an_owner_out(tmp_path):
    """The machine lost power: the file is still there."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / NAME))
    owner = Owner(tmp_path, echo)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert forward(tmp_path, ["x"]) == 1
    owner.close()
    assert not (tmp_path / NAME).exists()


def test_a_folder_may_lie_deep(tmp_path, capsys):
    """Deeper than a socket's address is long."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    owner = Owner(deep, echo)
    assert forward(deep, ["a", "b", "c"]) == 3
    owner.close()
    assert json.loads(capsys.readouterr().out)["argv"] == ["a", "b", "c"]


def test_an_owner_that_dies_in_between_is_said(tmp_path, capsys):
    """No status came: that is a failure, in a sentence."""

    def die(argv, cwd, out, err) -> int:
        raise ConnectionResetError

    owner = Owner(tmp_path, die)
    assert forward(tmp_path, []) == 1
    assert "the owner of the store ended before its answer did" in capsys.readouterr().err
    owner.close()


@pytest.mark.parametrize("request_", [b"", b"\n", b"nonsense\n", b'{"argv": []}\n', b"[1]\n"])
def test_a_malformed_request_harms_nobody(owned, request_, capfd):
    """The next caller is served."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(owned / NAME))
        caller.sendall(request_)
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(100) == b""
    assert forward(owned, ["x"]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_callers_are_served_side_by_side(tmp_path, capsys):
    """A long import does not keep a status waiting."""
    both = threading.Barrier(2, timeout=10)

    def meet(argv, cwd, out, err) -> int:
        both.wait()
        return 0

    owner = Owner(tmp_path, meet)
    other = threading.Thread(target=forward, args=(tmp_path, []))
    other.start()
    assert forward(tmp_path, []) == 0
    other.join()
    owner.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """`megawatch up` over a folder, ready to be asked."""
    data = tmp_path_factory.mktemp("up") / "data"
    process = subprocess.Popen(
        [*MEGAWATCH, "up", "--simulate", "1", "--data", str(data), "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        env=os.environ | {"MEGAWATCH_AGENT__LISTEN": "127.0.0.1:0"},
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not asked(data, "SELECT count() FROM gpu_samples") > 0:
        time.sleep(0.2)
    yield process, data
    if process.poll() is None:
        process.terminate()
    process.communicate(timeout=20)


def megawatch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEGAWATCH, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )


def asked(data: Path, query: str) -> int:
    done = megawatch("sql", "--data", data, "--format", "csv", query)
    return int(done.stdout) if done.returncode == 0 else -1


def test_the_store_can_be_asked_while_it_is_in_use(up):
    """By another process: rows grow, and the status is one line of JSON."""
    _, data = up
    first = asked(data, "SELECT count() FROM gpu_samples")
    assert first > 0
    status = json.loads(megawatch("status", "--json", "--data", data).stdout.split("\n")[-2])
    assert status["rows"] >= first
    assert status["gpus_expected"] == 8


def test_a_mistake_is_said_to_whoever_made_it(up):
    """Status and sentence come back through the socket."""
    _, data = up
    done = megawatch("sql", "--data", data, "SELECT nothing FROM nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("megawatch: the query failed: ")
    assert done.stderr.count("\n") == 1


def test_a_second_owner_is_refused_in_one_sentence(up):
    """Two processes in one store would be the end of it."""
    _, data = up
    done = megawatch("up", "--simulate", 1, "--data", data, "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    said = [line for line in done.stderr.split("\n") if line]
    assert len(said) == 1
    assert said[0].startswith(f"megawatch: {data} is in use by another megawatch")


def test_a_signal_ends_it_cleanly(up):
    """SIGTERM: within seconds, status 0, no socket left behind, and the rows are there."""
    process, data = up
    before = asked(data, "SELECT count() FROM gpu_samples")
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert time.monotonic() - begun < 10  # a round of rules may be under way
    assert not (data / NAME).exists()
    assert asked(data, "SELECT count() FROM gpu_samples") >= before
