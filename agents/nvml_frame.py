"""What the agent and its NVML child say to each other over two pipes.

Agent to child: one line of JSON, the wish (which metrics, how often), then 8 bytes a tick (TICK).
Child to agent: frames, each FRAME (payload bytes, kind) and the payload. Small and rare things are
JSON; a reading is binary: READING_HEAD, one status byte per GPU (0 read, else the NVML error that
says why the GPU is gone), then 64-bit integers, row after row: GPU by GPU the fast metrics, and
instance by instance the slice metrics, as wished, in the driver's units.

The child imports nothing of the product but this and what reads NVML: its memory is counted.
"""

import json
import struct
from array import array
from collections.abc import Sequence

TICK = struct.Struct("<q")
FRAME = struct.Struct("<IB")
READING_HEAD = struct.Struct("<qHH")  # tick_ms, GPUs, slice integers
SLOW_HEAD = struct.Struct("<H")  # GPU position

IDENTITY, READING, SLOW, XID, COST, PROBLEM = range(1, 7)

NOT_REPORTED = -(1 << 63)
FRAME_MAX_BYTES = 1 << 20


class Wish:
    """What the agent wants read: metric names by cadence, in the order of a reading's rows."""

    __slots__ = ("fast", "period_ms", "slices", "slow", "slow_ms")

    def __init__(
        self,
        fast: Sequence[str],
        slow: Sequence[str],
        slices: Sequence[str],
        period_ms: int,
        slow_ms: int,
    ) -> None:
        self.fast = tuple(fast)
        self.slow = tuple(slow)
        self.slices = tuple(slices)
        self.period_ms = period_ms
        self.slow_ms = slow_ms

    def line(self) -> bytes:
        """The first line that the child reads."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Wish":
        """The wish in that line."""
        return cls(**json.loads(line))


def frame(kind: int, payload: bytes) -> bytes:
    """The bytes of a frame."""
    return FRAME.pack(len(payload), kind) + payload


def split(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Takes the complete frames off the front of a buffer. Raises ValueError on nonsense."""
    frames = []
    at = 0
    while len(buffer) - at >= FRAME.size:
        size, kind = FRAME.unpack_from(buffer, at)
        if size > FRAME_MAX_BYTES or not IDENTITY <= kind <= PROBLEM:
            raise ValueError(f"no frame: {size} bytes of kind {kind}")
        end = at + FRAME.size + size
        if end > len(buffer):
            break
        frames.append((kind, bytes(buffer[at + FRAME.size : end])))
        at = end
    del buffer[:at]
    return frames


def pack_reading(tick_ms: int, status: bytes, fast: "array[int]", slices: "array[int]") -> bytes:
    """The payload of a READING; the instances' count follows from what is left."""
    head = READING_HEAD.pack(tick_ms, len(status), len(slices))
    return b"".join((head, status, fast.tobytes(), slices.tobytes()))


def unpack_reading(payload: bytes) -> tuple[int, bytes, "array[int]", "array[int]"]:
    """tick_ms, status, fast and slice integers of a READING."""
    tick_ms, gpus, sliced = READING_HEAD.unpack_from(payload)
    at = READING_HEAD.size
    status = payload[at : at + gpus]
    numbers = array("q")
    numbers.frombytes(payload[at + gpus :])
    cut = len(numbers) - sliced
    return tick_ms, status, numbers[:cut], numbers[cut:]
