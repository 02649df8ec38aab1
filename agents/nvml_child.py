"""The process that talks to the NVIDIA driver, so that nobody else hangs when the driver does.

It is started afresh by agents/nvml_link.py, answers one reading per tick, and does the slow reading
of a few GPUs after it has answered, in turn, so that no tick is late for it. It ends when its input
ends, or when the driver must be loaded anew (a library stays mapped until its process is gone).
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from agents import nvml_frame

EXIT_DRIVER_LOST = 3
NO_LIBRARY = 12  # NVML's own code for a library that is not found

Send = Callable[[int, bytes], None]


def main() -> int:
    """Speak the protocol of nvml_frame over standard input and output until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides when this process ends
    output = os.dup(1)
    os.dup2(2, 1)  # what a driver library prints must not fall into the frames
    lock = threading.Lock()

    def send(kind: int, payload: bytes) -> None:
        rest = memoryview(nvml_frame.frame(kind, payload))
        with lock:
            while rest:
                rest = rest[os.write(output, rest) :]

    wish = nvml_frame.Wish.parse(sys.stdin.buffer.readline())
    try:
        from agents import nvml
    except ImportError:
        tell_problem(send, NO_LIBRARY, "nvidia-ml-py is not installed: pip install nvidia-ml-py")
        return EXIT_DRIVER_LOST
    try:
        with contextlib.suppress(BrokenPipeError):  # the agent is gone
            serve(wish, send)
    except nvml.DriverLost as error:
        tell_problem(send, error.code, str(error))
        return EXIT_DRIVER_LOST
    return 0


def serve(wish: nvml_frame.Wish, send: Send) -> None:
    """Open the driver, answer ticks, let go of the driver. Raises DriverLost."""
    from agents import nvml
    from agents.nvml_session import Session

    library = nvml.Library()
    session = Session(library, wish, send)
    size = nvml_frame.TICK.size
    while len(asked := sys.stdin.buffer.read(size)) == size:
        session.tick(nvml_frame.TICK.unpack(asked)[0])
    session.close()
    library.shutdown()


def tell_problem(send: Send, code: int, sentence: str) -> None:
    """Say why this process ends."""
    with contextlib.suppress(BrokenPipeError):
        send(nvml_frame.PROBLEM, json.dumps([code, sentence]).encode())


if __name__ == "__main__":
    sys.exit(main())
