"""Recorded logs played again: pace, holds, gaps, energy, end."""

from pathlib import Path

import pytest

from agents.replay import ReplaySource
from agents.source import Reading
from pipeline.clock import ManualClock
from pipeline.errors import Refuse, Unavailable
from pipeline.formats.contract import Options
from pipeline.records import ENERGY_COUNTER, ENERGY_TRAPEZOID, FLAG_HELD
from pipeline.settings import Site
from pipeline.wire import LAYOUT

T0 = 1_758_682_800_000
NOW = 1_790_000_000_000
FAST = [column.name for column in LAYOUT.fast]
NULL = 0xFFFFFFFF


def play(
    path: Path, text: str, *, speed: float = 1.0, loop: bool = False, options: Options | None = None
) -> ReplaySource:
    file = path / "log.csv"
    file.write_text(text)
    site = Site(name="s", node="here")
    return ReplaySource(
        [file], site, options=options, speed=speed, loop=loop, clock=ManualClock(NOW)
    )


def row(reading: Reading, gpu: int = 0) -> dict[str, int]:
    return {name: vector[gpu] for name, vector in zip(FAST, reading.fast, strict=True)}


def log(*rows: tuple[int, float]) -> str:
    lines = "".join(f"{T0 + at},n,0,{watts}\n" for at, watts in rows)
    return "ts,node,gpu,power_w\n" + lines


def test_a_log_at_its_own_pace(tmp_path: Path) -> None:
    """The latest row at each tick, stamped now; energy of the ramp between."""
    source = play(tmp_path, log((0, 100), (400, 100), (1000, 200), (2000, 200)))
    one, two, three = (row(source.read(NOW + i * 1000)) for i in range(3))
    assert [r["power_w"] for r in (one, two, three)] == [1000, 2000, 2000]
    assert [r["dt_ms"] for r in (one, two, three)] == [1000] * 3
    assert [r["flags"] for r in (one, two, three)] == [0, 0, 0]
    assert [r["energy_j"] for r in (one, two, three)] == [NULL, 130_000, 200_000]
    assert [r["energy_kind"] for r in (one, two, three)] == [0, ENERGY_TRAPEZOID, ENERGY_TRAPEZOID]
    with pytest.raises(Unavailable, match="end of recording"):
        source.read(NOW + 3000)
    (inventory,) = source.inventory()
    assert (inventory.site, inventory.node, inventory.from_ms) == ("s", "n", NOW)
    assert [gpu.uuid for gpu in inventory.gpus] == ["n/0"]
    assert source.records() == []
    source.close()


@pytest.mark.parametrize("speed", [0.5, 1, 2, 10])
def test_energy_is_that_of_the_replay(tmp_path: Path, speed: float) -> None:
    """A constant 500 W gives 500 J a second at any speed, to the millijoule in sum."""
    rows = [(i * 286, 500.0) for i in range(400)]
    source = play(tmp_path, log(*rows), speed=speed)
    ticks = int(rows[-1][0] / speed) // 1000
    energy = [row(source.read(NOW + i * 1000))["energy_j"] for i in range(ticks + 1)]
    assert energy[0] == NULL
    assert sum(energy[1:]) == pytest.approx(ticks * 500_000, abs=1)
    assert all(abs(one - 500_000) <= 1 for one in energy[1:])


def test_a_slow_log_is_held_and_a_gap_is_empty(tmp_path: Path) -> None:
    """Rows seen before are flagged; ten seconds after the last row there is none, then a new
    start without a lump."""
    rows = [(0, 100), (5000, 100), (60_000, 100), (61_000, 100)]
    source = play(tmp_path, log(*rows))
    found = [row(source.read(NOW + i * 1000)) for i in range(62)]
    assert [r["flags"] for r in found[:7]] == [0, *[FLAG_HELD] * 4, 0, FLAG_HELD]
    assert [r["energy_j"] for r in found[:7]] == [NULL, *[100_000] * 5, NULL]
    assert [i for i, r in enumerate(found) if r["dt_ms"] == 0] == list(range(16, 60))
    assert found[20]["power_w"] == -(1 << 31)
    assert [r["energy_j"] for r in found[60:]] == [NULL, 100_000]
    assert found[60]["dt_ms"] == 2000


def test_it_loops_with_a_new_epoch(tmp_path: Path) -> None:
    """After the last row the first; nothing is carried over the seam."""
    source = play(tmp_path, log((0, 100), (1000, 200), (2000, 300)), loop=True)
    epoch = source.driver_epoch
    found = [row(source.read(NOW + i * 1000)) for i in range(7)]
    assert [r["power_w"] for r in found] == [1000, 2000, 3000, 1000, 2000, 3000, 1000]
    assert [i for i, r in enumerate(found) if r["energy_j"] == NULL] == [0, 3, 6]
    assert source.generation == 3
    assert source.driver_epoch != epoch


def test_counters_win_over_power(tmp_path: Path) -> None:
    """Energy is the counter's growth, between rows in proportion; a reset is not known."""
    counter = ((0, 50), (2000, 250), (4000, 10), (6000, 210))
    lines = "".join(f"{T0 + at},n,0,1,{joules}\n" for at, joules in counter)
    source = play(tmp_path, "ts,node,gpu,power_w,energy_counter_j\n" + lines)
    found = [row(source.read(NOW + i * 1000)) for i in range(7)]
    # One second after the last row before the reset nothing is known.
    assert [r["energy_j"] for r in found] == [
        NULL, 100_000, 100_000, NULL, NULL, 100_000, 100_000,
    ]  # fmt: skip
    assert found[1]["energy_kind"] == ENERGY_COUNTER
    slow = dict(zip([c.name for c in LAYOUT.slow], source.read(NOW + 6000).slow, strict=True))
    assert slow["energy_counter_j"][0] == 400_000


def test_a_missed_stretch_gives_no_lump(tmp_path: Path) -> None:
    """After more than two missed ticks the delta is null and dt two periods."""
    source = play(tmp_path, log(*((i * 1000, 100) for i in range(20))))
    source.read(NOW)
    found = row(source.read(NOW + 7000))
    assert (found["energy_j"], found["dt_ms"]) == (NULL, 2000)


def test_nvidia_smi_plays_on_this_node(tmp_path: Path) -> None:
    """Its header needs no options: rows that name no node are of this one."""
    text = (
        "timestamp, index, uuid, name, power.draw [W], utilization.gpu [%]\n"
        "2025/09/24 03:00:00.000, 0, GPU-1, H200, 390.78 W, [N/A]\n"
        "2025/09/24 03:00:00.000, 1, GPU-2, H200, 400.00 W, 99 %\n"
    )
    source = play(tmp_path, text)
    found = source.read(NOW)
    assert [row(found, gpu)["power_w"] for gpu in (0, 1)] == [3908, 4000]
    assert [row(found, gpu)["util_gpu_pct"] for gpu in (0, 1)] == [255, 99]
    (inventory,) = source.inventory()
    assert inventory.node == "here"
    assert [(gpu.uuid, gpu.model) for gpu in inventory.gpus] == [
        ("GPU-1", "H200"),
        ("GPU-2", "H200"),
    ]


def test_many_nodes_stand_in_inventory_order(tmp_path: Path) -> None:
    """Node after node, GPU after GPU, whatever the file's order."""
    text = f"ts,node,gpu,power_w\n{T0},b,1,4\n{T0},a,1,2\n{T0},b,0,3\n{T0},a,0,1\n"
    source = play(tmp_path, text)
    assert [i.node for i in source.inventory()] == ["a", "b"]
    assert source.read(NOW).fast[FAST.index("power_w")].tobytes() == b"".join(
        (10 * n).to_bytes(4, "little") for n in (1, 2, 3, 4)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column"),
        ("ts,node,gpu,power_w\n", "has no rows"),
        ("ts,node,gpu,power_w\nx,n,0,1\n", "line 2: ts 'x'"),
        (f"ts,node,gpu,power_w\n{T0},n,0,abc\n", "line 2: power_w 'abc' is no number"),
        (f"ts,node,gpu,power_w\n{T0},n,0,1e300\n", "can hold"),
        (f"ts,node,gpu,power_w\n{T0},n,0\n", "more or fewer values"),
        (f"ts,node,gpu,power_w\n{T0},n,x,1\n", "gpu 'x' is no index"),
        (f"ts,node,gpu,power_w\n{T0},n,,1\n", "gpu"),
        (f"ts,node,gpu,power_w\n{T0},n\x00,0,1\n", "no printable name"),
        (f'ts,node,gpu,power_w\n{T0},n,0,"{"9" * 200_000}"\n', "is no CSV"),
    ],
)
def test_bad_recordings_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """By file, line, column and value."""
    with pytest.raises(Refuse) as caught:
        play(tmp_path, text)
    assert words in str(caught.value)


def test_bad_rows_are_counted_on_demand(tmp_path: Path) -> None:
    """keep_good plays the rest and says how many were left out."""
    text = log((0, 100), (1000, 100)) + "x,n,0,1\n1\n"
    source = play(tmp_path, text, options=Options(keep_good=True))
    assert source.rows_bad == 2
    assert row(source.read(NOW))["power_w"] == 1000


def test_speeds_have_limits(tmp_path: Path) -> None:
    """Zero, negative and absurd speeds are refused."""
    for speed in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(Refuse, match="speed"):
            play(tmp_path, log((0, 1)), speed=speed)
    with pytest.raises(Refuse, match="cannot read"):
        ReplaySource([tmp_path / "none.csv"], Site())


def test_the_real_log_at_ten_times_its_pace(captures: Path) -> None:
    """Four segments with gaps; a tenth of their energy, and no row in the gaps."""
    folder = captures / "nanogpt_8gpu_nvsmi/raw"
    names = {"gpu": "gpu_index", "temp_gpu_c": "temperature_C", "power_w": "power_W",
             "util_gpu_pct": "utilization_gpu_percent"}  # fmt: skip
    source = ReplaySource(
        sorted(folder.glob("*.csv")), Site(node="nanogpt"), options=Options(rename=names),
        speed=10, clock=ManualClock(NOW),
    )  # fmt: skip
    at = FAST.index("energy_j")
    millijoules = empty = 0
    for tick in range(0, 400_000, 1000):
        try:
            reading = source.read(NOW + tick)
        except Unavailable:
            break
        empty += reading.fast[0][0] == 0
        millijoules += sum(e for e in (reading.fast[at][g] for g in range(8)) if e != NULL)
    assert 80 < empty < 110
    assert millijoules / 1000 == pytest.approx(779_303, rel=0.02)
