"""XIDs from the kernel log: those that NVML's events miss while no NVML client lives, and SXIDs."""

import os
import re
import secrets
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import Unavailable

KMSG: Final = Path("/dev/kmsg")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
RECORDS_PER_POLL: Final = 1000
SAME_WITHIN_MS: Final = 5_000

Kind = Literal["xid", "sxid", "gpu_lost"]
Pci = tuple[int, int, int]
"""PCI domain, bus, device."""

_READ_BYTES: Final = 8192
_LINE_BYTES: Final = 16_384
_DETAIL_CHARS: Final = 240
_PCI: Final = re.compile(
    r"(?:PCI:)?([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-9a-f])?", re.IGNORECASE
)
_XID: Final = re.compile(
    r"\b(?:NVRM: (Xid)|nvidia-nvswitch\d+: (SXid)) \(([^)]*)\): (\d{1,9})\b[, ]*(.*)"
)
_FALLEN: Final = re.compile(r"\bNVRM:.*\bfallen off the bus\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """What a line of the kernel log says; `code` is 0 for a loss that bears no XID."""

    kind: Kind
    code: int
    pci: Pci | None
    detail: str


def pci_address(text: str) -> Pci | None:
    """The PCI address in a text, however written: 0000:9b:00, PCI:0000:9B:00.0, 00000000:9B:00.0."""
    found = _PCI.search(text)
    return (int(found[1], 16), int(found[2], 16), int(found[3], 16)) if found else None


def parse(line: str) -> KernelEvent | None:
    """The GPU event in a line of dmesg or /dev/kmsg, if it bears one."""
    found = _XID.search(line)
    if found:
        kind: Kind = "xid" if found[1] else "sxid"
        pci = pci_address(found[3])
        if pci is None:
            return None
        return KernelEvent(kind, int(found[4]), pci, found[5].strip()[:_DETAIL_CHARS])
    lost = _FALLEN.search(line)
    if lost:
        return KernelEvent("gpu_lost", 0, pci_address(lost[0]), lost[0].strip()[:_DETAIL_CHARS])
    return None


class KernelLog:
    """New GPU events of the kernel log, never waiting for one.

    `dropped` counts what the kernel overwrote before it was read. Raises Unavailable where the log
    cannot be opened.
    """

    def __init__(self, path: Path = KMSG, *, from_start: bool = False) -> None:
        self.dropped = 0
        self._rest = b""
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(
                f"cannot read the kernel log {path}: {error.strerror}; XIDs are known from NVML "
                "alone (give the agent CAP_SYSLOG to read both)"
            ) from error
        if not from_start:
            os.lseek(self._file, 0, os.SEEK_END)

    def poll(self) -> list[KernelEvent]:
        """Events since the last call, from at most RECORDS_PER_POLL records."""
        found: list[KernelEvent] = []
        for _ in range(RECORDS_PER_POLL):
            chunk = self._read()
            if not chunk:
                break
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _LINE_BYTES:
                self._rest = b""
                self.dropped += 1
            events = (parse(line.decode("utf-8", "replace")) for line in lines)
            found += [event for event in events if event]
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self._file, _READ_BYTES)
        except BlockingIOError:
            return b""
        except BrokenPipeError:  # the kernel overwrote the next record; reading goes on after it
            self.dropped += 1
            return b"\n"
        except OSError:  # a record that does not fit, or a log that went away
            self.dropped += 1
            return b""

    def close(self) -> None:
        """Give the file back; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Twins:
    """Drops the second sight of an event that two channels report.

    Each event of one channel cancels at most one equal event of another channel within
    SAME_WITHIN_MS, so that an XID that truly came twice is told twice.
    """

    def __init__(self) -> None:
        self._alone: deque[tuple[int, str, str, int]] = deque(maxlen=1024)

    def is_second(self, at_ms: int, channel: str, gpu: str, code: int) -> bool:
        """True if another channel has told this event already."""
        for past in self._alone:
            past_ms, past_channel, past_gpu, past_code = past
            same = (past_gpu, past_code) == (gpu, code) and past_channel != channel
            if same and abs(at_ms - past_ms) <= SAME_WITHIN_MS:
                self._alone.remove(past)
                return True
        self._alone.append((at_ms, channel, gpu, code))
        return False


def boot_epoch(path: Path = BOOT_ID) -> int:
    """32 bits that change with every boot; where the kernel does not tell, with every start."""
    try:
        return zlib.crc32(path.read_bytes().strip())
    except OSError:
        return secrets.randbits(32)
