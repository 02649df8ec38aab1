"""Keeps one NVML child alive and asks it once per tick, never waiting longer than a deadline.

A child that does not answer is asked nothing more until it does. After a while it is told to end,
with SIGTERM only: a SIGKILL on a GPU client can wedge the GPU. One that does not end (state D, in
the driver) is left alone, and no second one is started beside it. A child that ended is started
again after a pause that doubles.
"""

import json
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

from agents import nvml_frame
from pipeline.clock import Clock
from pipeline.errors import Unavailable

OPEN_PATIENCE_S: Final = 120.0
"""Opening the driver takes seconds per GPU where persistence mode is off."""
PAUSE_MAX_S: Final = 60.0
STEADY_S: Final = 60.0
"""A child that lived so long starts the pauses anew."""
LEAVE_S: Final = 3.0
ENDING_S: Final = 0.1

_READ_BYTES: Final = 65_536
_ROOT: Final = Path(__file__).parents[1]

Deliver = Callable[[int, bytes], None]
Tell = Callable[[str, str], None]
"""Kind and detail of something that happened to the child."""


class _Process:
    """One life of the child."""

    def __init__(self, wish: bytes, environment: Mapping[str, str]) -> None:
        paths = (str(_ROOT), environment.get("PYTHONPATH", ""))
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "agents.nvml_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={
                "MALLOC_ARENA_MAX": "1",  # two threads do not need two arenas of memory
                **environment,
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            },
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._in = self._popen.stdin.fileno()
        self._out = self._popen.stdout.fileno()
        os.set_blocking(self._out, False)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN | select.POLLHUP)
        self._buffer = bytearray()
        self.is_hung_up = False
        self.write(wish)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def write(self, data: bytes) -> None:
        try:
            os.write(self._in, data)
        except BrokenPipeError:
            return  # it ended; reading says so

    def frames(self, timeout_s: float) -> list[tuple[int, bytes]] | None:
        """What it said; None when it has ended and said all.

        Raises TimeoutError after silence, ValueError at what is no frame.
        """
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            raise TimeoutError
        data = os.read(self._out, _READ_BYTES)
        if not data:
            return None
        self._buffer += data
        return nvml_frame.split(self._buffer)

    def state(self) -> str:
        """The letter that the kernel gives its state, empty when it is gone."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[0]

    def has_ended(self, wait_s: float = 0.0) -> bool:
        try:
            self._popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        self.hang_up()
        return True

    @property
    def exit_code(self) -> int:
        return self._popen.returncode or 0

    def hang_up(self) -> None:
        """Close both pipes, which ends a child that is not stuck."""
        if not self.is_hung_up:
            self.is_hung_up = True
            for pipe in (self._popen.stdin, self._popen.stdout):
                if pipe is not None:
                    pipe.close()

    def terminate(self) -> None:
        self._popen.terminate()


class Link:
    """The agent's end. `deliver` gets every frame, `born` is called when a child is started."""

    def __init__(
        self,
        wish: nvml_frame.Wish,
        clock: Clock,
        *,
        deliver: Deliver,
        born: Callable[[], None],
        tell: Tell,
        deadline_s: float,
        stop_after_s: float,
        environment: Mapping[str, str],
    ) -> None:
        self._wish = wish.line()
        self._clock = clock
        self._deliver = deliver
        self._born = born
        self._tell = tell
        self._deadline_s = deadline_s
        self._stop_after_s = stop_after_s
        self._environment = dict(environment)
        self._process: _Process | None = None
        self._opened = False
        self._asked_ms: int | None = None
        self._since_s = 0.0
        self._pause_s = 1.0
        self._start_at_s = 0.0
        self._asked_to_end = False
        self._said = ""
        self._queue: deque[tuple[int, bytes]] = deque()
        self._told: set[str] = set()
        self.problem = ""
        self.released = False

    def ask(self, tick_ms: int) -> None:
        """Have a READING of that tick delivered. Raises Unavailable where none comes in time."""
        if self.released:
            raise Unavailable(
                "the driver is released for an upgrade; resume reading when it is done"
            )
        deadline_s = self._clock.monotonic_s() + self._deadline_s
        process = self._present()
        while not self._idle:
            if not self._listen(process, deadline_s):
                self._late(process)
        process.write(nvml_frame.TICK.pack(tick_ms))
        self._asked_ms = tick_ms
        self._since_s = self._clock.monotonic_s()
        while not self._idle:
            if not self._listen(process, deadline_s):
                self._late(process)

    def wait_until_open(self, timeout_s: float) -> None:
        """Wait for the identity of the GPUs. Raises Unavailable."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        process = self._present()
        while not self._opened:
            if not self._listen(process, deadline_s):
                self._late(process)

    @property
    def _idle(self) -> bool:
        return self._opened and self._asked_ms is None

    def _present(self) -> _Process:
        process = self._process
        if process is None or (process.is_hung_up and process.has_ended()):
            return self._start()
        if process.is_hung_up:
            raise Unavailable(
                f"the NVML child {process.pid} was asked to end and does not (state "
                f"{process.state()}): no second one is started beside it"
            )
        return process

    def _start(self) -> _Process:
        now_s = self._clock.monotonic_s()
        if now_s < self._start_at_s:
            raise Unavailable(self.problem or "the NVML child is about to be started again")
        self._process = _Process(self._wish, self._environment)
        self._opened = False
        self._asked_ms = None
        self._asked_to_end = False
        self._said = ""
        self._queue.clear()
        self._since_s = now_s
        self._start_at_s = now_s
        self._born()
        return self._process

    def _listen(self, process: _Process, deadline_s: float) -> bool:
        """Take in one frame before the deadline; False when that has passed in silence.

        One at a time: what follows a reading, as other instances, belongs to the next one.
        """
        try:
            while not self._queue:
                frames = process.frames(deadline_s - self._clock.monotonic_s())
                if frames is None:
                    self._ended(process, "")
                self._queue.extend(frames)
        except TimeoutError:
            return False
        except ValueError as error:
            self._ended(process, f"the NVML child speaks nonsense: {error}")
        kind, payload = self._queue.popleft()
        self._heard(kind, payload)
        self._deliver(kind, payload)
        return True

    def _heard(self, kind: int, payload: bytes) -> None:
        if kind == nvml_frame.IDENTITY:
            self._opened = True
            self.problem = ""
        if kind == nvml_frame.PROBLEM:
            self._said = str(json.loads(payload)[1])
        if kind == nvml_frame.READING:
            self._asked_ms = None
        if kind in (nvml_frame.IDENTITY, nvml_frame.READING) and self._told:
            self._told.clear()
            self._tell("driver_back", "the NVIDIA driver answers again")

    def _ended(self, process: _Process, sentence: str) -> NoReturn:
        """The child is gone, or as good as: say why, and when the next one comes."""
        if not process.has_ended(wait_s=ENDING_S):
            if not self._asked_to_end:
                self._asked_to_end = True
                process.terminate()
            if not process.has_ended(wait_s=ENDING_S):
                self._late(process)
        now_s = self._clock.monotonic_s()
        if now_s - self._start_at_s > STEADY_S:
            self._pause_s = 1.0
        self._process = None
        self._start_at_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        code = process.exit_code
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self.problem = self._said or sentence or f"the NVML child {how}; it is started again"
        self._tell_once("driver_lost", self.problem)
        raise Unavailable(self.problem)

    def _late(self, process: _Process) -> NoReturn:
        """Nothing came in time: say so, and in the end tell the child to end."""
        hung_s = self._clock.monotonic_s() - self._since_s
        patience_s = 0.0 if self._opened else OPEN_PATIENCE_S
        if hung_s < patience_s:
            raise Unavailable(f"NVML is opening the GPUs, for {hung_s:.0f} s so far")
        sentence = f"the NVIDIA driver has been hung for {hung_s:.0f} s"
        self._tell_once("driver_hung", sentence)
        if hung_s >= patience_s + self._stop_after_s:
            sentence += f"; the NVML child {process.pid} was asked to end"
            if not self._asked_to_end:
                self._asked_to_end = True
                process.terminate()
            elif not process.has_ended():
                sentence += f" and does not (state {process.state()}): it is left alone"
                self._tell_once("child_stuck", sentence)
        raise Unavailable(sentence)

    def _tell_once(self, kind: str, detail: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._tell(kind, detail)

    def release(self) -> bool:
        """Let go of the driver, so that it can be unloaded; False while the child does not end."""
        self.released = True
        return self.close()

    def resume(self) -> None:
        """Read again, with whatever driver is loaded now."""
        self.released = False
        self._pause_s = 1.0
        self._start_at_s = self._clock.monotonic_s()

    def close(self) -> bool:
        """End the child; False if it does not end, which a driver in state D does to it."""
        process = self._process
        if process is None:
            return True
        process.hang_up()
        if not process.has_ended(wait_s=LEAVE_S):
            process.terminate()
            if not process.has_ended(wait_s=LEAVE_S):
                return False
        self._process = None
        return True
