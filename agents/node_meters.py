"""The power meters that Linux shows on a node: ACPI, power supplies (hwmon), RAPL (powercap).

AC input, DC output and CPU packages are different meters of one node and are never added. One is
the node's power: the AC input, else the DC output, else RAPL's psys. Only that one becomes records,
under the host's name. The others are read for the exporter and named `<host>/dc` and the like;
where only parts of the machine are metered, there is no node power at all.
"""

import errno
import functools
import queue
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pipeline.clock import Clock, SystemClock
from pipeline.errors import Unavailable
from pipeline.records import MeterReading

PERIOD_MS: Final = 2000
FRESH_PERIODS: Final = 3
GAP_S: Final = 10.0
"""Over a longer time a RAPL counter may have wrapped more than once: no power is made of it."""
LEAVE_S: Final = 0.5
"""How long `close` waits for reads that hang."""
WAIT_S: Final = 1.0
"""How long `discover` and `describe` wait for one value."""

What = Literal["ac", "dc", "rapl-psys", "rapl-package", "part"]
Reason = Literal[
    "permission", "vanished", "no value", "not a number", "unreadable", "gap", "stuck", "hung",
    "negative",
]  # fmt: skip
"""Why a reading is missing; "negative" alone is passed on as it was read."""

_PRECEDENCE: Final[tuple[What, ...]] = ("ac", "dc", "rapl-psys")
_LEFT: Final[Mapping[What, str]] = {
    "part": "left, since it is a part of the machine only",
    "rapl-package": "left, since CPU packages are not the node",
}
_ACPI: Final = "power_meter"
_ACPI_UNKNOWN_UW: Final = 0xFFFF_FFFF * 1000
"""ACPI's "not available" in mW, which kernels without the later check pass on as 4.29 MW."""
_POWER: Final = re.compile(r"power(\d+)_(?:input|average)")
_SUPPLY: Final = re.compile(r"(pin|pout)\d*")
_NUMBER: Final = re.compile(rb"\s*(-?[0-9]{1,18})\s*")  # more digits fit no reading
_BOARD_MV: Final = range(9_000, 80_000)
_REASONS: Final[Mapping[int | None, Reason]] = {
    errno.EACCES: "permission", errno.EPERM: "permission", errno.ENOENT: "vanished",
    errno.ENODEV: "vanished", errno.ENXIO: "vanished", errno.ENODATA: "no value",
}  # fmt: skip
_HINTS: Final[Mapping[Reason, str]] = {
    "permission": "run the agent as root or with CAP_DAC_READ_SEARCH",
    "vanished": "see whether its driver is still loaded",
    "no value": "ask the BMC why it has none",
    "not a number": "report it with the kernel's version",
    "unreadable": "look for its driver in the kernel log",
    "hung": "see whether the BMC is well",
}


@dataclass(frozen=True, slots=True)
class NodeMeter:
    """A meter: the sum over `paths`, in microwatts, or for RAPL in microjoules that count up.

    `why` says what it is, and why it is or is not the node's power (`principal`).
    """

    name: str
    what: What
    paths: tuple[Path, ...]
    why: str
    principal: bool = False


class NoReading(Unavailable):
    """A meter has no value now; the message names the file."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Final = reason


class _Sensor(NamedTuple):
    chip: str
    folder: Path
    path: Path
    label: str


_Found = tuple[What, tuple[Path, ...], str]


def discover(root: Path = Path("/"), host: str = "") -> list[NodeMeter]:
    """The meters of this machine, at most one of them principal; `host` names it.

    `root` holds `sys/class`. What cannot be read is found all the same.
    """
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    sensors = [sensor for chip in chips for sensor in _sensors(chip)]
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    found = [*_hwmon(sensors), *_rapl({zone: _text(zone / "name") for zone in zones})]
    return _named(host or socket.gethostname(), found)


def _named(host: str, found: Sequence[_Found]) -> list[NodeMeter]:
    whats = [what for what, _, _ in found]
    principal = next((whats.index(what) for what in _PRECEDENCE if what in whats), None)
    seen: Counter[What] = Counter()
    meters = []
    for at, (what, paths, why) in enumerate(found):
        if at == principal:
            meters.append(NodeMeter(host, what, paths, f"{why}: the node's power", True))
            continue
        seen[what] += 1
        name = f"{host}/{what}" + (f"-{seen[what]}" if seen[what] > 1 else "")
        left = _LEFT.get(what, "left, never added to the node's power")
        meters.append(NodeMeter(name, what, paths, f"{why}: {left}"))
    return meters


def _hwmon(sensors: Sequence[_Sensor]) -> Iterator[_Found]:
    acpi = [s for s in sensors if s.chip == _ACPI]
    # Several ACPI meters are those of sockets and modules, as on Grace: none is the machine's.
    whole = [s for s in acpi if len(acpi) == 1 and "socket" not in s.label.lower()]
    labelled = [s for s in sensors if s.chip != _ACPI and _SUPPLY.fullmatch(s.label)]
    supplies = {folder for folder in {s.folder for s in labelled} if _is_supply(folder)}
    inputs, outputs = (
        [s for s in labelled if s.folder in supplies and s.label.startswith(side)]
        for side in ("pin", "pout")
    )
    rest = list(sensors)
    choices: tuple[tuple[What, list[_Sensor], set[Path], str], ...] = (
        ("ac", whole, {s.folder for s in whole}, "AC input by the ACPI power meter"),
        ("ac", inputs, supplies, f"AC input of {len(supplies)} power supplies"),
        ("dc", outputs, supplies, f"DC output of {len(supplies)} power supplies"),
    )
    for what, chosen, folders, why in choices:
        # A sum in which one supply is missing would be too small, and nobody would know.
        if chosen and {s.folder for s in chosen} == folders:
            rest = [s for s in rest if s not in chosen]
            yield what, tuple(s.path for s in chosen), why
    for chip in dict.fromkeys(s.chip for s in rest):
        mine = [s for s in rest if s.chip == chip]
        labels = ", ".join(dict.fromkeys(s.label for s in mine if s.label))
        yield "part", tuple(s.path for s in mine), f"{chip or 'nameless chip'} ({labels})"


def _is_supply(folder: Path) -> bool:
    """False for regulators on 12, 48 or 54 V, whose labels are those of power supplies.

    A supply is fed with mains, or with nothing just now, or does not tell.
    """
    for label in folder.glob("in*_label"):
        if _text(label).startswith("vin"):
            path = label.with_name(label.name.replace("_label", "_input"))
            feed_mv = _within(WAIT_S, functools.partial(_integer, path))
            if isinstance(feed_mv, int) and feed_mv in _BOARD_MV:
                return False
    return True


def _sensors(chip: Path) -> Iterator[_Sensor]:
    # Older drivers, ACPI's among them, keep their files with the device.
    for folder in (chip, chip / "device"):
        # In this order an average gives way to an input of the same channel.
        names = sorted(p.name for p in folder.glob("power*") if _POWER.fullmatch(p.name))
        channels = {name.partition("_")[0]: name for name in names}
        name = _text(chip / "name") or _text(chip / "device/name")
        for channel, file in channels.items():
            label = _text(folder / f"{channel}_label") or _text(folder / f"{channel}_oem_info")
            yield _Sensor(name, folder, folder / file, label)
        if channels:
            return


def _rapl(zones: Mapping[Path, str]) -> Iterator[_Found]:
    """Zones by folder, with their names; a second psys may repeat the first or add to it."""
    psys = [zone / "energy_uj" for zone, name in zones.items() if name == "psys"]
    packages = [zone / "energy_uj" for zone, name in zones.items() if name.startswith("package")]
    if psys:
        yield "rapl-psys", (psys[0],), "RAPL psys, the platform"
    if packages:
        yield "rapl-package", tuple(packages), f"RAPL of {len(packages)} CPU packages"


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text(errors="replace").split())
    except OSError:
        return ""


def delta_uj(before_uj: int, now_uj: int, max_uj: int) -> int:
    """Microjoules between two looks at a counter that goes from 0 to `max_uj` and begins anew."""
    return (now_uj - before_uj) % (max_uj + 1)


def _integer(path: Path) -> int:
    """The number in a file. Raises NoReading."""
    try:
        with path.open("rb", buffering=0) as file:
            text = file.read(64) or b""
    except OSError as error:
        reason = _REASONS.get(error.errno, "unreadable")
        raise NoReading(f"{path}: {(error.strerror or '').lower()}", reason) from error
    number = _NUMBER.fullmatch(text)
    if not number:
        raise NoReading(f"{path}: {text[:20]!r} is not a number", "not a number")
    return int(number[1])


class _Reader:
    """A meter as it is now, and for RAPL as it was at the last look."""

    def __init__(self, meter: NodeMeter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._at_s = 0.0
        self._before_uj: dict[Path, int] = {}

    def watts(self) -> float | None:
        """The sum, of which no part may be missing; None at RAPL's first look. Raises NoReading."""
        values = {path: _integer(path) for path in self._meter.paths}
        if self._meter.what.startswith("rapl"):
            return self._rapl_watts(values)
        for path, value in values.items():
            if value == _ACPI_UNKNOWN_UW:
                raise NoReading(f"{path}: no value", "no value")
        return sum(values.values()) / 1e6

    def _rapl_watts(self, now_uj: dict[Path, int]) -> float | None:
        at_s = self._clock.monotonic_s()  # after the read: a counter tells of its end
        before_uj, took_s = self._before_uj, at_s - self._at_s
        self._before_uj, self._at_s = now_uj, at_s
        if before_uj.keys() != now_uj.keys():
            return None
        if not 0 < took_s <= GAP_S:
            raise NoReading(f"{self._meter.name}: not read for {took_s:.0f} s", "gap")
        energy_uj = 0
        for path, now in now_uj.items():
            max_uj = _integer(path.with_name("max_energy_range_uj"))
            if max_uj < 1:
                raise NoReading(f"{path}: {max_uj} is no range", "not a number")
            energy_uj += delta_uj(before_uj[path], now, max_uj)
        if not energy_uj:
            # A platform without the wiring has the counter but never counts: unknown, not 0 W.
            raise NoReading(f"{self._meter.name}: the counter does not move", "stuck")
        return energy_uj / 1e6 / took_s


_Answer = tuple[int, float | NoReading | None]
"""The tick that was asked for, and the value; None where there is none yet."""


class _Probe:
    """A thread that measures when it is asked to: a read that hangs holds up nobody else.

    One question at a time, hence at most one answer in the queue.
    """

    def __init__(self, measure: Callable[[], float | None], name: str = "meter") -> None:
        self._measure = measure
        self._asks: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._is_busy = False
        self.missed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (ts_ms := self._asks.get()) is not None:
            try:
                self._answers.put((ts_ms, self._measure()))
            except NoReading as problem:
                self._answers.put((ts_ms, problem))

    def ask(self, ts_ms: int) -> bool:
        """False if the last question is not answered yet."""
        if self._is_busy:
            self.missed += 1
            return False
        self._is_busy, self.missed = True, 0
        self._asks.put(ts_ms)
        return True

    def answer(self) -> _Answer | None:
        """None if there is none."""
        if self._answers.empty():
            return None
        self._is_busy = False
        return self._answers.get()

    def close(self, wait_s: float = 0.0) -> None:
        """Let the thread end as soon as its read has, and wait a while for that."""
        self._asks.put(None)
        self._thread.join(wait_s)


def _within(wait_s: float, measure: Callable[[], float | None]) -> float | NoReading | None:
    """One measurement, "hung" if it did not come in time."""
    probe = _Probe(measure)
    probe.ask(0)
    probe.close(wait_s)
    answer = probe.answer()
    return answer[1] if answer else NoReading(f"no answer within {wait_s:g} s", "hung")


class Meters:
    """A node's meters, read in the background; all calls but `watts` come from one thread.

    `errors` counts by meter and Reason. Absurd and negative watts are passed on as read.
    """

    def __init__(
        self, site: str, found: Sequence[NodeMeter], clock: Clock, period_ms: int = PERIOD_MS
    ) -> None:
        self.errors: Final[Counter[tuple[str, Reason]]] = Counter()
        self._site = site
        self._period_ms = period_ms
        self._asked_ms = 0
        self._latest: dict[tuple[str, What], tuple[int, float]] = {}
        self._probes = [
            (meter, _Probe(_Reader(meter, clock).watts, f"meter {meter.name}"))
            for meter in found
            if meter.what != "part"
        ]

    def read(self, now_ms: int) -> list[MeterReading]:
        """What the principal meter said since the last call, at UTC ticks of the period.

        Never waits: whatever is due now is asked for and comes with a later call.
        """
        readings = []
        for meter, probe in self._probes:
            if answer := probe.answer():
                readings += self._settle(meter, answer, is_late=probe.missed > 0)
        tick_ms = now_ms // self._period_ms * self._period_ms
        if tick_ms != self._asked_ms:
            self._asked_ms = tick_ms
            for meter, probe in self._probes:
                if not probe.ask(tick_ms):
                    self.errors[meter.name, "hung"] += 1
        return readings

    def _settle(self, meter: NodeMeter, answer: _Answer, *, is_late: bool) -> list[MeterReading]:
        ts_ms, watts = answer
        if is_late:  # nobody knows of which moment it tells
            self.errors[meter.name, "hung"] += 1
        elif isinstance(watts, NoReading):
            self.errors[meter.name, watts.reason] += 1
        if is_late or not isinstance(watts, float):
            return []
        if watts < 0:
            self.errors[meter.name, "negative"] += 1
        self._latest[meter.name, meter.what] = ts_ms, watts
        if not meter.principal:
            return []
        site = self._site
        return [MeterReading(site=site, meter=meter.name, kind="node", ts_ms=ts_ms, watts=watts)]

    def watts(self, now_ms: int) -> dict[tuple[str, What], float]:
        """By name and what it is: the newest watts of each meter, unless they are old."""
        fresh_ms = FRESH_PERIODS * self._period_ms
        latest = dict(self._latest)
        return {key: w for key, (ts_ms, w) in latest.items() if abs(now_ms - ts_ms) <= fresh_ms}

    def close(self) -> None:
        """Stop reading, within LEAVE_S; a read that hangs is left behind. Idempotent."""
        probes, self._probes = self._probes, []
        for _, probe in probes:
            probe.close(LEAVE_S / len(probes))


def describe(root: Path = Path("/"), host: str = "", wait_s: float = WAIT_S) -> list[str]:
    """One line per meter: what it is, whether it can be read, what to do if not."""
    meters = discover(root, host)
    lines = [f"{meter.name}: {meter.why}{_state(meter, wait_s)}" for meter in meters]
    if not any(meter.principal for meter in meters):
        lines.append(
            f"no meter under {root / 'sys/class'} tells the node's power: load acpi_power_meter or "
            "the power supplies' driver, or import readings of a PDU (megawatch import meters)"
        )
    return lines


def _state(meter: NodeMeter, wait_s: float) -> str:
    if meter.what == "part":
        return ""
    value = _within(wait_s, _Reader(meter, SystemClock()).watts)
    if isinstance(value, NoReading):
        return f"; {value}: {_HINTS[value.reason]}"
    return "; readable" if value is None else f"; {value:.0f} W now"
