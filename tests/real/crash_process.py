"""A process that a test starts, listens to, kills without warning and starts again."""

import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class Victim:
    """Runs a command in the project's folder; what it says on standard error goes to a file."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = list(command)
        self._log = log
        self._environment = None if environment is None else dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self.lives = 0

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it does not run"
        return self._process

    def start(self) -> None:
        """Begin another life."""
        self._heard = b""
        self.lives += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def wait_for(self, word: str, patience_s: float) -> None:
        """Until it says a line."""
        line = word.encode() + b"\n"
        until = time.monotonic() + patience_s
        assert self.process.stdout is not None
        while line not in self._heard:
            left = until - time.monotonic()
            assert left > 0, f"it did not say {word!r} within {patience_s} s{self.last_words()}"
            if _is_readable(self.process.stdout, left):
                said = self.process.stdout.read1(4096)  # type: ignore[attr-defined]
                assert said, f"it ended by itself{self.last_words()}"
                self._heard += said

    def tell(self, text: str = "") -> None:
        """A line for its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, at this very instant."""
        assert self.process.poll() is None, f"it ended by itself{self.last_words()}"
        self.end(signal.SIGKILL, 10)

    def stop(self, patience_s: float = 20) -> int:
        """SIGTERM; its exit status."""
        return self.end(signal.SIGTERM, patience_s)

    def end(self, number: int | None, patience_s: float) -> int:
        """Send a signal, if any, and wait for the end."""
        process, self._process = self.process, None
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def close(self) -> None:
        """Make sure that nothing is left running."""
        if self._process is not None:
            self.end(signal.SIGKILL, 10)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """Everything on standard error, of all lives."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def last_words(self) -> str:
        """The end of it, for a failure's message."""
        return ":\n" + self.said()[-3000:]


def _is_readable(stream: IO[bytes], timeout_s: float) -> bool:
    """True once there is something to read; select() takes no file number above 1,023."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))
