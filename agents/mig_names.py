"""The UUIDs of a node's MIG instances, which Kubernetes calls them by, as nvidia-smi lists them."""

import re
import subprocess
from typing import Final

from agents.pod_devices import Instance
from pipeline.errors import Unavailable

WAIT_S: Final = 20.0
"""Without persistence mode the driver is loaded first, which takes seconds."""
_GPU: Final = re.compile(r"GPU \d+: .*\(UUID: (GPU-[0-9A-Za-z-]+)\)\s*")
_MIG: Final = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[0-9A-Za-z-]+)\)\s*")


def parse(text: str) -> dict[str, Instance]:
    """By UUID, of what `nvidia-smi -L` printed."""
    found: dict[str, Instance] = {}
    gpu = ""
    for line in text.splitlines():
        if match := _GPU.fullmatch(line):
            gpu = match[1]
        elif gpu and (match := _MIG.fullmatch(line)):
            found[match[2]] = Instance(gpu, match[1])
    return found


class MigNames:
    """Asks nvidia-smi, one at a time: one that hangs in the driver is left alone, not doubled."""

    def __init__(self, program: str = "nvidia-smi", wait_s: float = WAIT_S) -> None:
        self._program = program
        self._wait_s = wait_s
        self._left: subprocess.Popen[str] | None = None

    def __call__(self) -> dict[str, Instance]:
        """Every instance of the node. Raises Unavailable."""
        if self._left is not None and self._left.poll() is None:
            raise Unavailable(f"{self._program} hangs")
        try:
            self._left = process = subprocess.Popen(
                [self._program, "-L"], text=True, errors="replace", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            said, _ = process.communicate(timeout=self._wait_s)
        except OSError as error:
            raise Unavailable(f"{self._program}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            # Never SIGKILL: it can wedge a GPU for good.
            process.terminate()
            raise Unavailable(f"{self._program}: no answer within {self._wait_s:g} s") from error
        if process.returncode:
            raise Unavailable(f"{self._program} ended with {process.returncode}")
        return parse(said)
