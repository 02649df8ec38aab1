"""Power meters of a fake sysfs tree: which is the node's, what they say, what they do when ill."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.node_meters import GAP_S, LEAVE_S, Meters, NodeMeter, delta_uj, describe, discover
from pipeline.clock import ManualClock
from pipeline.records import MeterReading
from pipeline.topics import METERS, decode_record, encode_record

START = 1_790_000_000_000
PERIOD = 2000
RANGE_UJ = 262_143_328_850
"""The range of a real package."""


class Tree:
    """A sysfs tree that tests write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/class/hwmon").mkdir(parents=True)
        (root / "sys/class/powercap").mkdir()

    def write(self, path: str, value: object) -> Path:
        file = self.root / "sys/class" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        return file

    def acpi(self, number: int = 0, watts: object = 5312, info: str = "") -> Path:
        chip = f"hwmon/hwmon{number}"
        self.write(f"{chip}/name", "power_meter")
        self.write(f"{chip}/device/power1_oem_info", info)
        self.write(f"{chip}/device/power1_average_interval", 1000)
        value = watts * 1_000_000 if isinstance(watts, int) else watts
        return self.write(f"{chip}/device/power1_average", value)

    def pmbus(self, number: int, name: str, vin_mv: object = None, **watts: int) -> None:
        chip = f"hwmon/hwmon{number}"
        self.write(f"{chip}/name", name)
        if vin_mv is not None:
            self.write(f"{chip}/in1_label", "vin")
            self.write(f"{chip}/in1_input", vin_mv)
        for at, (label, value) in enumerate(watts.items(), 1):
            self.write(f"{chip}/power{at}_label", label)
            self.write(f"{chip}/power{at}_input", value * 1_000_000)

    def rapl(self, zone: str, name: str, energy_uj: object = 0) -> Path:
        self.write(f"powercap/{zone}/name", name)
        self.write(f"powercap/{zone}/max_energy_range_uj", RANGE_UJ)
        return self.write(f"powercap/{zone}/energy_uj", energy_uj)

    def found(self) -> dict[str, NodeMeter]:
        return {meter.name: meter for meter in discover(self.root, "n1")}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def opened(tree: Tree, clock: ManualClock) -> Iterator[Callable[[], Meters]]:
    """Opens the meters of the tree as it is then."""
    meters: list[Meters] = []

    def open_meters() -> Meters:
        meters.append(Meters("s", discover(tree.root, "n1"), clock, PERIOD))
        return meters[-1]

    yield open_meters
    for one in meters:
        one.close()


def until(ready: Callable[[], bool]) -> None:
    """Wait for another thread, for ten seconds at most."""
    end_s = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.001)


def turn(meters: Meters, clock: ManualClock, seconds: float = PERIOD / 1000) -> list[MeterReading]:
    """One tick, the answers of all meters to it included."""
    readings = meters.read(clock.now_ms())
    until(lambda: not any(p._is_busy and p._answers.empty() for _, p in meters._probes))
    readings += meters.read(clock.now_ms())
    clock.advance(seconds)
    return readings


def full(tree: Tree) -> None:
    tree.acpi(3, 5312)
    tree.pmbus(4, "dps2000", 230_000, pin=2700, pout=2500)
    tree.pmbus(5, "dps2000", 229_500, pin=2600, pout=2400)
    tree.rapl("intel-rapl:0", "package-0")
    tree.rapl("intel-rapl:0:0", "dram")
    tree.rapl("intel-rapl:1", "package-1")
    tree.rapl("intel-rapl:2", "psys")
    tree.rapl("intel-rapl-mmio:0", "package-0")  # the same package, shown twice


# ---- discovery


def test_every_meter_is_found_once_and_only_the_ac_input_is_the_node(tree: Tree) -> None:
    full(tree)
    tree.pmbus(6, "tps53679", 12_000, pin=400, pout=350)
    tree.write("hwmon/hwmon7/name", "coretemp")
    found = tree.found()
    assert {name: (m.what, len(m.paths), m.principal) for name, m in found.items()} == {
        "n1": ("ac", 1, True),
        "n1/ac": ("ac", 2, False),
        "n1/dc": ("dc", 2, False),
        "n1/rapl-psys": ("rapl-psys", 1, False),
        "n1/rapl-package": ("rapl-package", 2, False),
        "n1/part": ("part", 2, False),
    }
    assert "ACPI" in found["n1"].why
    assert "never added" in found["n1/dc"].why
    assert found["n1/part"].why.startswith("tps53679 (pin, pout)")


def test_the_principal_meter_is_ac_then_dc_then_psys_and_never_packages(tree: Tree) -> None:
    def principal() -> tuple[str, int] | None:
        chosen = [m for m in discover(tree.root, "n1") if m.principal]
        assert [m.name for m in chosen] in ([], ["n1"])
        return (chosen[0].what, len(chosen[0].paths)) if chosen else None

    full(tree)
    assert principal() == ("ac", 1)
    shutil.rmtree(tree.root / "sys/class/hwmon/hwmon3")
    assert principal() == ("ac", 2)
    for chip in ("hwmon4", "hwmon5"):
        (tree.root / "sys/class/hwmon" / chip / "power1_input").unlink()
    assert principal() == ("dc", 2)
    shutil.rmtree(tree.root / "sys/class/hwmon")
    assert principal() == ("rapl-psys", 1)
    shutil.rmtree(tree.root / "sys/class/powercap/intel-rapl:2")
    assert principal() is None
    shutil.rmtree(tree.root / "sys")
    assert discover(tree.root, "n1") == []


def test_a_sum_that_lacks_one_supply_is_not_offered(tree: Tree) -> None:
    tree.pmbus(0, "dps2000", 230_000, pin=2700, pout=2500)
    tree.pmbus(1, "dps2000", 230_000, pout=2400)
    assert tree.found()["n1"].what == "dc"
    assert len(tree.found()["n1"].paths) == 2
    assert len(tree.found()["n1/part"].paths) == 1


@pytest.mark.parametrize("vin_mv", [12_000, 48_000, 54_500])
def test_a_regulator_is_no_power_supply(tree: Tree, vin_mv: int) -> None:
    tree.pmbus(0, "xdpe12284", vin_mv, pin=300, pout=280)
    assert [m.what for m in discover(tree.root, "n1")] == ["part"]


@pytest.mark.parametrize("vin_mv", [None, 0, 1_200, 115_000, 277_000, 400_000, "garbage"])
def test_a_supply_is_fed_with_mains_or_unfed_or_does_not_tell(tree: Tree, vin_mv: object) -> None:
    tree.pmbus(0, "cffps2", vin_mv, pin=300)
    assert tree.found()["n1"].what == "ac"


def test_the_acpi_meters_of_modules_are_not_the_machine(tree: Tree) -> None:
    tree.acpi(1, 400, "Module Power Socket 0")
    assert [(m.what, m.principal) for m in discover(tree.root, "n1")] == [("part", False)]
    tree.acpi(1, 400)
    tree.acpi(2, 300)  # two without a name: either may be a part of the other
    assert [(m.what, m.principal) for m in discover(tree.root, "n1")] == [("part", False)]


def test_a_gpu_and_a_nameless_chip_are_parts(tree: Tree) -> None:
    tree.write("hwmon/hwmon0/name", "amdgpu")
    tree.write("hwmon/hwmon0/power1_label", "PPT\nhostile")
    tree.write("hwmon/hwmon0/power1_average", 90_000_000)
    tree.write("hwmon/hwmon1/power1_input", 1)
    assert [m.name for m in discover(tree.root, "n1")] == ["n1/part", "n1/part-2"]
    assert all("\n" not in line for line in describe(tree.root, "n1"))


def test_the_machines_own_name_is_the_default(tree: Tree) -> None:
    tree.acpi()
    assert "/" not in discover(tree.root)[0].name
    assert discover(tree.root)[0].name


# ---- readings


def test_only_the_principal_meter_becomes_records(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    full(tree)
    meters = opened()
    clock.advance(0.7)
    (reading,) = turn(meters, clock)
    assert reading == MeterReading(site="s", meter="n1", kind="node", ts_ms=START, watts=5312.0)
    assert decode_record(METERS, encode_record(reading)) == reading
    assert meters.watts(clock.now_ms()) == {
        ("n1", "ac"): 5312.0,
        ("n1/ac", "ac"): 5300.0,
        ("n1/dc", "dc"): 4900.0,
    }
    assert not meters.errors
    assert meters.watts(clock.now_ms() + 10 * PERIOD) == {}


def test_there_is_one_reading_per_period_however_often_it_is_asked(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    tree.acpi()
    meters = opened()
    readings = [r for _ in range(20) for r in turn(meters, clock, 0.5)]
    assert [r.ts_ms for r in readings] == [START + PERIOD * i for i in range(5)]


@pytest.mark.parametrize("microwatts", [-7_000_000, 999_999_999_999_999_999, 0])
def test_negative_and_absurd_watts_are_passed_on_as_read(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters], microwatts: int
) -> None:
    tree.acpi(0, str(microwatts))
    meters = opened()
    (reading,) = turn(meters, clock)
    assert reading.watts == microwatts / 1e6
    assert decode_record(METERS, encode_record(reading)) == reading
    assert dict(meters.errors) == ({("n1", "negative"): 1} if microwatts < 0 else {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a number"),
        (b"\n", "not a number"),
        (b"N/A\n", "not a number"),
        (b"12 13\n", "not a number"),
        (b"1e9\n", "not a number"),
        (b"0x10\n", "not a number"),
        (b"nan\n", "not a number"),
        (b"--5\n", "not a number"),
        (b"\xff\xfe\x00", "not a number"),
        ("٣\n".encode(), "not a number"),
        (b"9" * 19, "not a number"),
        (b"9" * 100_000, "not a number"),
        (b"4294967295000\n", "no value"),  # ACPI's all ones, in mW
    ],
)
def test_garbage_is_counted_and_no_reading(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters], content: bytes, reason: str
) -> None:
    file = tree.acpi()
    file.write_bytes(content)
    meters = opened()
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", reason): 1}
    file.write_text("1000000\n")
    assert [r.watts for r in turn(meters, clock)] == [1.0]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "permission"),
        (errno.EPERM, "permission"),
        (errno.ENODEV, "vanished"),
        (errno.ENXIO, "vanished"),
        (errno.ENODATA, "no value"),
        (errno.EIO, "unreadable"),
        (errno.ETIMEDOUT, "unreadable"),
    ],
)
def test_an_error_of_the_driver_is_counted_by_reason(
    tree: Tree,
    clock: ManualClock,
    opened: Callable[[], Meters],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    reason: str,
) -> None:
    file = tree.acpi()
    really_open = Path.open

    def failing(self: Path, *args: object, **options: object) -> object:
        if self == file:
            raise OSError(code, os.strerror(code))
        return really_open(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", failing)
    meters = opened()
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", reason): 1}
    (line,) = describe(tree.root, "n1")
    assert f"; {file}: {os.strerror(code).lower()}: " in line
    assert ("CAP_DAC_READ_SEARCH" in line) == (reason == "permission")


def test_a_sum_is_missing_when_one_supply_vanishes_and_back_when_it_returns(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    tree.pmbus(4, "dps2000", 230_000, pin=2700)
    tree.pmbus(5, "dps2000", 230_000, pin=2600)
    meters = opened()
    assert [r.watts for r in turn(meters, clock)] == [5300.0]
    gone = tree.root / "sys/class/hwmon/hwmon5"
    gone.rename(tree.root / "elsewhere")
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", "vanished"): 1}
    assert "see whether its driver is still loaded" not in describe(tree.root, "n1")[0]
    (tree.root / "elsewhere").rename(gone)
    assert [r.watts for r in turn(meters, clock)] == [5300.0]


def test_a_folder_in_place_of_a_file_is_unreadable(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    file = tree.acpi()
    file.unlink()
    file.mkdir()
    meters = opened()
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", "unreadable"): 1}


# ---- RAPL


STEPS = st.lists(st.integers(0, RANGE_UJ), min_size=1, max_size=50)


@given(start=st.integers(0, RANGE_UJ), steps=STEPS, max_uj=st.integers(1, RANGE_UJ))
def test_the_deltas_add_up_to_the_true_energy_over_any_wraps(
    start: int, steps: list[int], max_uj: int
) -> None:
    steps = [step % (max_uj + 1) for step in steps]  # at most one wrap between two looks
    true_uj = start % (max_uj + 1)
    counted_uj, before = 0, true_uj
    for step in steps:
        true_uj += step
        now = true_uj % (max_uj + 1)
        counted_uj += delta_uj(before, now, max_uj)
        before = now
    assert counted_uj == sum(steps)


def test_rapl_power_is_energy_over_time_across_the_wrap(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    file = tree.rapl("intel-rapl:1", "psys", RANGE_UJ - 400_000_000)
    meters = opened()
    assert turn(meters, clock) == []  # one look tells no power
    file.write_text("599999999")  # 1000 J later, the range being one less than its values
    assert [(r.ts_ms, r.watts) for r in turn(meters, clock)] == [(START + PERIOD, 500.0)]
    file.write_text("1199999999")
    assert [r.watts for r in turn(meters, clock)] == [300.0]
    assert not meters.errors


def test_packages_are_summed_over_sockets_and_are_no_record(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    files = [tree.rapl(f"intel-rapl:{i}", f"package-{i}") for i in range(2)]
    tree.rapl("intel-rapl:0:0", "core", 5)
    meters = opened()
    assert turn(meters, clock) == []
    files[0].write_text("400000000")
    files[1].write_text("200000000")
    assert turn(meters, clock) == []
    assert meters.watts(clock.now_ms()) == {("n1/rapl-package", "rapl-package"): 300.0}


def test_no_power_is_made_across_a_gap(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    file = tree.rapl("intel-rapl:1", "psys")
    meters = opened()
    turn(meters, clock, GAP_S)
    file.write_text("4000000000")
    assert [r.watts for r in turn(meters, clock, GAP_S + 2)] == [400.0]
    file.write_text("9000000000")
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", "gap"): 1}
    file.write_text("9600000000")
    assert [r.watts for r in turn(meters, clock)] == [300.0]


def test_a_counter_that_does_not_move_is_not_zero_watts(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters]
) -> None:
    tree.rapl("intel-rapl:1", "psys", 77)
    meters = opened()
    assert [r for _ in range(3) for r in turn(meters, clock)] == []
    assert dict(meters.errors) == {("n1", "stuck"): 2}


@pytest.mark.parametrize("max_uj", ["0", "-1", "", "many"])
def test_a_range_that_is_none_gives_no_power(
    tree: Tree, clock: ManualClock, opened: Callable[[], Meters], max_uj: str
) -> None:
    file = tree.rapl("intel-rapl:1", "psys", 77)
    tree.write("powercap/intel-rapl:1/max_energy_range_uj", max_uj)
    meters = opened()
    turn(meters, clock)
    file.write_text("78")
    assert turn(meters, clock) == []
    assert dict(meters.errors) == {("n1", "not a number"): 1}


# ---- reads that hang


@pytest.fixture
def hung(tree: Tree) -> Iterator[Path]:
    """The ACPI meter's file, which answers nobody until somebody writes to it."""
    file = tree.acpi()
    file.unlink()
    os.mkfifo(file)
    yield file
    # Whoever still waits is let go, so that no thread outlives its test.
    release(file, b"")
    until(lambda: not any(t.name.startswith("meter") for t in threading.enumerate()))


def release(file: Path, content: bytes) -> None:
    """Let a reader of the FIFO go with this content, if there is one."""
    try:
        end = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return
    os.write(end, content)
    os.close(end)


def test_a_read_that_hangs_goes_missing_and_holds_up_nobody(
    tree: Tree, clock: ManualClock, hung: Path
) -> None:
    tree.pmbus(4, "dps2000", 230_000, pout=2500)
    meters = Meters("s", discover(tree.root, "n1"), clock, PERIOD)
    begun_s = time.monotonic()
    for _ in range(4):
        assert meters.read(clock.now_ms()) == []
        until(lambda: not meters._probes[1][1]._answers.empty())
        assert meters.read(clock.now_ms()) == []
        assert meters.watts(clock.now_ms()) == {("n1/dc", "dc"): 2500.0}
        clock.advance(PERIOD / 1000)
    assert dict(meters.errors) == {("n1", "hung"): 3}
    assert time.monotonic() - begun_s < 5
    begun_s = time.monotonic()
    meters.close()
    meters.close()
    assert time.monotonic() - begun_s < 2 * LEAVE_S
    names = {thread.name for thread in threading.enumerate()}
    assert "meter n1" in names
    assert "meter n1/dc" not in names


def test_a_late_answer_is_dropped_and_the_next_one_counts(
    tree: Tree, clock: ManualClock, hung: Path
) -> None:
    meters = Meters("s", discover(tree.root, "n1"), clock, PERIOD)
    probe = meters._probes[0][1]
    for _ in range(2):
        meters.read(clock.now_ms())
        clock.advance(PERIOD / 1000)

    def answered(content: bytes) -> Callable[[], bool]:
        def try_it() -> bool:
            release(hung, content)
            return not probe._answers.empty()

        return try_it

    until(answered(b"1000000\n"))
    assert meters.read(clock.now_ms()) == []
    assert dict(meters.errors) == {("n1", "hung"): 2}
    until(answered(b"2000000\n"))
    assert [(r.ts_ms, r.watts) for r in meters.read(clock.now_ms())] == [(START + 2 * PERIOD, 2.0)]
    meters.close()


def test_discovery_does_not_wait_for_a_hung_voltage(tree: Tree, hung: Path) -> None:
    tree.pmbus(4, "dps2000", 0, pin=2500)
    volts = tree.root / "sys/class/hwmon/hwmon4/in1_input"
    volts.unlink()
    os.mkfifo(volts)
    begun_s = time.monotonic()
    assert tree.found()["n1/ac"].what == "ac"
    assert time.monotonic() - begun_s < 5
    release(volts, b"")


def test_the_doctor_does_not_hang_either(tree: Tree, hung: Path) -> None:
    (line,) = describe(tree.root, "n1", wait_s=0.05)
    assert line == (
        "n1: AC input by the ACPI power meter: the node's power; "
        "no answer within 0.05 s: see whether the BMC is well"
    )


# ---- the doctor


def test_the_doctor_says_of_each_meter_what_it_is_and_reads(tree: Tree) -> None:
    full(tree)
    supplies = "of 2 power supplies: left, never added to the node's power"
    packages = "RAPL of 2 CPU packages: left, since CPU packages are not the node"
    assert describe(tree.root, "n1") == [
        "n1: AC input by the ACPI power meter: the node's power; 5312 W now",
        f"n1/ac: AC input {supplies}; 5300 W now",
        f"n1/dc: DC output {supplies}; 4900 W now",
        "n1/rapl-psys: RAPL psys, the platform: left, never added to the node's power; readable",
        f"n1/rapl-package: {packages}; readable",
    ]


def test_the_doctor_says_so_when_nothing_tells_the_nodes_power(tree: Tree) -> None:
    tree.rapl("intel-rapl:0", "package-0")
    lines = describe(tree.root, "n1")
    assert len(lines) == 2
    assert "tells the node's power: load acpi_power_meter" in lines[1]


def test_closing_ends_every_thread(tree: Tree, opened: Callable[[], Meters]) -> None:
    full(tree)
    before = threading.active_count()
    meters = opened()
    assert threading.active_count() == before + 5
    meters.close()
    until(lambda: threading.active_count() == before)
    assert meters.read(START) == []
