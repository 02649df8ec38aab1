"""XIDs and SXIDs from kernel log lines, new ones only, each told once."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.kernel_log import (
    RECORDS_PER_POLL,
    SAME_WITHIN_MS,
    KernelEvent,
    KernelLog,
    Twins,
    boot_epoch,
    parse,
    pci_address,
)
from pipeline.errors import Unavailable

DATA = Path(os.environ.get("MEGAWATCH_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
CAPTURES = DATA / "xid_catalog"

needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no xid_catalog in the test data")

XID_79 = (
    "3,1523,131453740743,-;NVRM: Xid (PCI:0000:9b:00): 79, pid='<unknown>', name=<unknown>, "
    "GPU has fallen off the bus."
)


@needs_captures
def test_every_real_line_is_understood_but_the_four_that_name_no_code_or_device() -> None:
    lines = (CAPTURES / "kmsg_xid_sxid_lines.txt").read_text().splitlines()
    silent = [line for line in lines if parse(line) is None]
    assert len(lines) == 109
    assert len(silent) == 4
    assert all("invalid" in line or "%d" in line or "xyz" in line for line in silent)


@needs_captures
def test_a_real_dmesg_with_xid_119_gives_those_and_nothing_else() -> None:
    lines = (CAPTURES / "dmesg-with-xid-119.log").read_text(errors="replace").splitlines()
    events = [event for line in lines if (event := parse(line))]
    assert [(e.kind, e.code, e.pci) for e in events] == [("xid", 119, (0, 0x9B, 0))] * 5


@needs_captures
def test_the_fabric_managers_own_log_bears_no_kernel_event() -> None:
    lines = (CAPTURES / "fabricmanager.log").read_text(errors="replace").splitlines()
    assert lines
    assert not any(map(parse, lines))


def test_an_xid_names_its_gpu_and_keeps_its_text() -> None:
    event = parse(XID_79)
    assert event == KernelEvent(
        "xid", 79, (0, 0x9B, 0), "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    )


def test_an_sxid_is_not_an_xid() -> None:
    line = "[131453.7] nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32"
    assert parse(line) == KernelEvent("sxid", 12028, (0, 5, 0), "Non-fatal, Link 32")


def test_a_gpu_may_fall_off_the_bus_without_an_xid() -> None:
    event = parse("3,9,9,-;NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.")
    assert event is not None
    assert (event.kind, event.code, event.pci) == ("gpu_lost", 0, (0, 0x3B, 0))


@pytest.mark.parametrize(
    "text", ["0000:9b:00", "PCI:0000:9B:00.0", "00000000:9B:00.0", "GPU 0000:9b:00.0 is"]
)
def test_a_pci_address_is_the_same_however_written(text: str) -> None:
    assert pci_address(text) == (0, 0x9B, 0)


@given(st.text() | st.text(alphabet="NVRM: Xid(PCI:0)79,"))
def test_no_text_breaks_the_parser(text: str) -> None:
    event = parse(text)
    assert event is None or event.kind in ("xid", "sxid", "gpu_lost")


def test_only_what_comes_after_opening_is_told_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text(XID_79 + "\n")
    log = KernelLog(path)
    assert log.poll() == []
    with path.open("a") as file:
        file.write("6,1524,1,-;usb 1-1: new device\n SUBSYSTEM=usb\n" + XID_79 + "\n")
    assert [event.code for event in log.poll()] == [79]
    assert log.poll() == []
    log.close()
    log.close()


def test_a_line_is_told_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text(XID_79[:60])
    log = KernelLog(path, from_start=True)
    assert log.poll() == []
    with path.open("a") as file:
        file.write(XID_79[60:] + "\n")
    assert [event.code for event in log.poll()] == [79]
    log.close()


def test_a_flood_is_read_in_bounded_portions_and_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    line = XID_79.ljust(8191) + "\n"  # as large as one read
    path.write_text(line * (RECORDS_PER_POLL + 10))
    log = KernelLog(path, from_start=True)
    assert len(log.poll()) == RECORDS_PER_POLL
    assert len(log.poll()) == 10
    log.close()


def test_a_line_without_an_end_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(b"x" * 100_000 + b"\n" + XID_79.encode() + b"\n")
    log = KernelLog(path, from_start=True)
    assert [event.code for event in log.poll()] == [79]
    assert log.dropped > 0
    log.close()


def test_a_log_that_cannot_be_opened_is_unavailable_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no-such.*No such file.*CAP_SYSLOG"):
        KernelLog(tmp_path / "no-such")


def test_an_event_of_two_channels_is_told_once() -> None:
    twins = Twins()
    assert not twins.is_second(1000, "nvml", "GPU-a", 79)
    assert twins.is_second(1000 + SAME_WITHIN_MS, "kernel", "GPU-a", 79)


def test_an_xid_that_came_twice_is_told_twice() -> None:
    twins = Twins()
    told = [
        twins.is_second(ms, channel, "GPU-a", 31)
        for ms, channel in ((1, "nvml"), (2, "nvml"), (3, "kernel"), (4, "kernel"))
    ]
    assert told == [False, False, True, True]


def test_other_gpus_codes_and_times_are_other_events() -> None:
    twins = Twins()
    assert not twins.is_second(0, "nvml", "GPU-a", 79)
    assert not twins.is_second(0, "kernel", "GPU-b", 79)
    assert not twins.is_second(0, "kernel", "GPU-a", 48)
    assert not twins.is_second(SAME_WITHIN_MS + 1, "kernel", "GPU-a", 79)


def test_the_boot_epoch_is_stable_and_follows_the_boot_id(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("0a4f2d0e-5a3c-4b57-9a4e-0c8f3f2e7a11\n")
    second.write_text("bb4f2d0e-5a3c-4b57-9a4e-0c8f3f2e7a12\n")
    assert boot_epoch(first) == boot_epoch(first)
    assert boot_epoch(first) != boot_epoch(second)
    assert 0 <= boot_epoch(tmp_path / "missing") < 1 << 32
