"""The wire format is pinned: a change of these files is a change that old agents will notice.

`python -m tests.golden.test_wire_golden` writes them anew.
"""

import re
from array import array
from pathlib import Path

import pytest

from pipeline import wire
from pipeline.catalog import ARRAY_CODE, NULL_CODE, WIDTH
from pipeline.decode import HEADER_DTYPE
from pipeline.wire import LAYOUT, Column, Header, Layout, Message

FOLDER = Path(__file__).parent
T0_MS = 1_795_000_000_000


def _values(column: Column, number: int, count: int) -> list[int]:
    """Integers that tell position, byte order and sign apart, and a null now and then."""
    bits = 8 * WIDTH[column.storage]
    out = []
    for i in range(count):
        value = ((number + 1) * 0x0102030405060708 + i * 0x11) % (1 << bits)
        if column.storage[0] == "i":
            value -= 1 << (bits - 1)
        out.append(NULL_CODE[column.storage] if (number + i) % 7 == 6 else value)
    return out


def _message(dt_ms: list[int], ticks: int, instances: tuple[tuple[int, int, int], ...]) -> Message:
    gpus = 2
    header = Header(
        site=0x0123456789ABCDEF, node=0x1122334455667788, stream=0xFEDCBA9876543210, seq=42,
        t0_ms=T0_MS, period_ms=1000, ticks=ticks, gpus=gpus, slices=len(instances),
        boot_epoch=0xB0070001, driver_epoch=0xD0000002, dropped=3,
    )  # fmt: skip

    def columns(block: tuple[Column, ...], count: int) -> tuple[bytes, ...]:
        named = {"dt_ms": dt_ms, "flags": [0] * count, "energy_kind": [1] * count}
        return tuple(
            array(ARRAY_CODE[c.storage], named.get(c.name) or _values(c, n, count)).tobytes()
            for n, c in enumerate(block)
        )

    ids = tuple(bytes(i[k] for i in instances) for k in range(3))
    return Message(
        header,
        (0xAAAAAAAAAAAAAAA2, 0x5555555555555557),
        (ids[0], ids[1], ids[2]),
        columns(LAYOUT.fast, ticks * gpus),
        columns(LAYOUT.slow, gpus),
        columns(LAYOUT.slices, ticks * len(instances)),
    )


MESSAGES = {
    "message": _message([1000] * 8, 4, ()),
    "message_mig": _message([1000] * 4, 2, ((0, 1, 0), (0, 2, 0), (1, 7, 3))),
    "message_holes": _message([1000, 0, 0, 0, 2000, 1000], 3, ()),
}


def _hex(raw: bytes) -> str:
    return "".join(f"{raw[i : i + 32].hex()}\n" for i in range(0, len(raw), 32))


@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_of_a_message_do_not_change(name):
    """Byte for byte, whatever the machine."""
    assert _hex(wire.encode(MESSAGES[name])) == (FOLDER / f"{name}.hex").read_text()


@pytest.mark.parametrize("name", MESSAGES)
def test_an_old_message_is_still_read(name):
    """The bytes on disk decode to what was encoded."""
    raw = bytes.fromhex((FOLDER / f"{name}.hex").read_text())
    assert wire.decode(raw) == MESSAGES[name]


def test_the_layout_of_the_catalogue_is_pinned():
    """A new metric changes the layout, so it changes this file: on purpose, or not at all."""
    text = (FOLDER / "layout.txt").read_text()
    assert f"{LAYOUT.hash:016x}\n{LAYOUT.describe()}\n".replace(";", ";\n") == text


def test_the_pinned_layout_is_read_by_its_description():
    """What is published with the inventory is enough to read messages."""
    _, _, text = (FOLDER / "layout.txt").read_text().partition("\n")
    layout = wire.parse_layout(text.replace("\n", ""))
    assert isinstance(layout, Layout)
    assert (layout, layout.hash) == (LAYOUT, LAYOUT.hash)


def test_the_header_is_where_the_page_says():
    """The table of the format's description, row by row, against the reader's own."""
    page = (FOLDER.parents[1] / "pipeline/README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", page, re.MULTILINE)
    fields = HEADER_DTYPE.fields
    assert fields is not None
    assert [(int(at), int(size), name) for at, size, name in rows] == [
        (field[1], field[0].itemsize, {"crc": "crc32", "reserved2": "reserved"}.get(name, name))
        for name, field in fields.items()
    ]


def _write() -> None:
    for name, message in MESSAGES.items():
        (FOLDER / f"{name}.hex").write_text(_hex(wire.encode(message)))
    text = f"{LAYOUT.hash:016x}\n{LAYOUT.describe()}\n"
    (FOLDER / "layout.txt").write_text(text.replace(";", ";\n"))


if __name__ == "__main__":
    _write()
