"""Recorded files of every kind, sound and hostile, into rows or one clear sentence."""

import zoneinfo
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog import FAST_BY_NAME
from pipeline.errors import Refuse
from pipeline.formats import cells, readers, samples, series, values
from pipeline.formats.contract import METRICS, SAMPLES, Options, pairs, resolve
from pipeline.formats.series import Samples
from pipeline.records import (
    ENERGY_COUNTER,
    ENERGY_TRAPEZOID,
    FLAG_ABSURD_ENERGY,
    FLAG_ABSURD_POWER,
    FLAG_NEGATIVE_POWER,
    id64,
)

T0 = 1_758_682_623_946
NULL = {name: metric.null_code for name, metric in METRICS.items()}
HEAD = b"ts,node,gpu,power_w,temp_gpu_c\n"
GOOD = HEAD + b"1758682623946,n1,0,390.78,42\n1758682624946,n1,0,400,43\n"


def load(path: Path, data: bytes, options: Options | None = None) -> Samples:
    file = path / "log.csv"
    file.write_bytes(data)
    return series.joined(samples.load([file], options or Options(), lambda _d, _t: None))


def refused(path: Path, data: bytes, options: Options | None = None) -> str:
    with pytest.raises(Refuse) as caught:
        load(path, data, options)
    return str(caught.value)


def same(a: Samples, b: Samples) -> bool:
    return all(np.array_equal(a.fast[name], b.fast[name]) for name in a.fast)


def test_a_plain_file(tmp_path: Path) -> None:
    """Rounded storage integers, ids by site and key, null where nothing is reported."""
    found = load(tmp_path, GOOD)
    assert found.fast["power_w"].tolist() == [3908, 4000]
    assert found.fast["power_w"].dtype == np.dtype("<i4")
    assert found.fast["gpu"].tolist() == [id64("site", "n1/0")] * 2
    assert found.fast["node"].tolist() == [id64("site", "n1")] * 2
    assert found.fast["site"].tolist() == [id64("site")] * 2
    assert found.fast["ts"].tolist() == [T0, T0 + 1000]
    assert "util_gpu_pct" not in found.fast
    filled = series.filled(found.fast)
    assert set(filled["util_gpu_pct"].tolist()) == {NULL["util_gpu_pct"]}
    assert set(filled) >= set(FAST_BY_NAME)
    assert found.fast["energy_j"].tolist() == [NULL["energy_j"], 395_400]
    assert found.fast["energy_kind"].tolist() == [0, ENERGY_TRAPEZOID]
    assert found.fast["dt_ms"].tolist() == [1000, 1000]
    assert found.health == {}
    (inventory,) = found.inventories
    assert (inventory.node, inventory.from_ms, inventory.until_ms) == ("n1", T0, T0 + 2000)
    assert [gpu.uuid for gpu in inventory.gpus] == ["n1/0"]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        b"\n\n" + GOOD,
        GOOD.replace(b"\n", b"\n\n"),
        GOOD[:-1],
        GOOD.replace(b"n1", b'"n1"'),
        GOOD.replace(b",", b" , "),
        GOOD + GOOD,
        HEAD + b"".join(GOOD.splitlines(keepends=True)[:0:-1]),
        GOOD.replace(b"1758682623946", b"2025-09-24T02:57:03.946Z"),
        GOOD.replace(b"1758682623946", b"2025/09/24 02:57:03.946"),
        GOOD.replace(b"1758682623946", b"2025-09-24T04:57:03.946999+02:00"),
        GOOD.replace(b"390.78", b"390.78 W"),
        GOOD.replace(b"42", b"42.0"),
        GOOD.replace(b"390.78", b"1.00").replace(b"43\n", b"43\n1758682623946,n1,00,390.78,42\n"),
    ],
    ids=[
        "bom", "crlf", "blank lines first", "blank lines", "no last newline", "quotes", "spaces",
        "header again", "unsorted", "iso", "nvidia-smi time", "offset", "unit", "float",
        "last of equal times",
    ],
)  # fmt: skip
def test_the_same_in_other_clothes(tmp_path: Path, data: bytes) -> None:
    """However a tool or an editor leaves the file, its rows are the same."""
    assert same(load(tmp_path, data), load(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\n\n\n", "no header"),
        (b"1758682623946,n1,0,390\n", "no column 'ts', 'node'|unknown columns"),
        (b"ts,ts,node,gpu,power_w\n", "'ts' stand in the header more than once"),
        (HEAD.replace(b"temp_gpu_c", b"temp"), "unknown columns 'temp': rename them"),
        (HEAD.replace(b"node,", b""), "no column 'node'"),
        (b"ts,node,power_w\n", "no column 'gpu'"),
        (b"ts,node,gpu\n", "no column of a metric"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
        ("ts,node".encode("utf-16"), "UTF-16"),
        (HEAD + b"x,n1,0,1,1\n", "line 2: ts 'x' is no time"),
        (HEAD + b"-5,n1,0,1,1\n", "ts '-5'"),
        (HEAD + b"1758682623,n1,0,1,1\n", "ts '1758682623' is no time of 2010"),
        (HEAD + b"9999-01-01,n1,0,1,1\n", "ts '9999-01-01'"),
        (HEAD + b"2025-13-45T00:00:00Z,n1,0,1,1\n", "line 2: ts"),
        (HEAD + b",n1,0,1,1\n", "line 2: ts ''"),
        (GOOD + b"1758682625946,n1,0,abc,1\n", "line 4: power_w 'abc' is no number"),
        (GOOD + b'"1758682625946","n1",0,"a\nb",1\nx,n1,0,1,1\n', "line 4: power_w"),
        (GOOD + b"1758682625946,n1,0,inf,1\n", "line 4: power_w 'inf'"),
        (GOOD + b"1758682625946,n1,0,1e300,1\n", "power_w '1e300'"),
        (GOOD + b"1758682625946,n1,0,5 %,1\n", "power_w '5 %'"),
        (GOOD + b"1758682625946,n1,0,1,40000\n", "temp_gpu_c '40000'"),
        (GOOD + b"1758682625946,n1,0,1\n", "line 4: 4 values, the header has 5"),
        (GOOD + b"1758682625946,n1,0,1,1,1\n", "line 4: 6 values"),
        (GOOD + b"1758682625946,,0,1,1\n", "line 4: node is empty"),
        (GOOD + b"1758682625946,n1,,1,1\n", "gpu and uuid are both empty"),
        (GOOD + b"1758682625946,n1,-1,1,1\n", "gpu '-1' is no index"),
        (GOOD + b"1758682625946,n1,99999999999999999999,1,1\n", "is no index"),
        (GOOD + b"1758682625946,n\x00,0,1,1\n", "node 'n\\\\x00' is no printable"),
        (GOOD + b"1758682625946,n\xff,0,1,1\n", "is no printable"),
        (GOOD + b'1758682625946,"n\n",0,1,1\n1758682625946,"a\nb",0,1,1\n', "is no printable"),
        (GOOD + b"1758682625946," + b"n" * 300 + b",0,1,1\n", "at most 255"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    """The sentence names the file, the line, the column and the value."""
    sentence = refused(tmp_path, data)
    assert "log.csv" in sentence
    assert "\n" not in sentence
    assert any(word.replace("\\\\", "\\") in sentence for word in words.split("|")), sentence


def test_the_good_rows_are_kept_on_demand(tmp_path: Path) -> None:
    """Bad rows are counted and the first ten told; the others are as if there were no bad ones."""
    bad = b"".join(b"1758682625946,n1,0,bad%d,1\n" % i for i in range(12)) + b"1,2\n\xff\n"
    found = load(tmp_path, GOOD + bad, Options(keep_good=True))
    assert same(found, load(tmp_path, GOOD))
    assert (found.bad.count, len(found.bad.sentences), found.rows_read) == (14, 10, 16)
    assert "line 4" in found.bad.sentences[0]
    assert "13 more bad rows" in refused(tmp_path, GOOD + bad)


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    """It is one bad row, quoted short; one of more than 16 MiB is refused as such."""
    long = GOOD + b"1758682625946,n1,0," + b"9" * 10_000_000 + b",1\n"
    sentence = refused(tmp_path, long)
    assert "line 4" in sentence
    assert len(sentence) < 400
    assert same(load(tmp_path, long, Options(keep_good=True)), load(tmp_path, GOOD))
    assert "16 MiB" in refused(tmp_path, GOOD + b"9" * (17 << 20))


def test_negative_and_absurd_power_is_kept_and_flagged(tmp_path: Path) -> None:
    """Kept with a bit; the trapezoid passes over it."""
    rows = ((0, "100"), (1, "-3"), (2, "20000"), (3, "100"))
    lines = "".join(f"{T0 + i * 1000},n,0,{w},1\n" for i, w in rows)
    found = load(tmp_path, HEAD + lines.encode())
    assert found.fast["power_w"].tolist() == [1000, -30, 200_000, 1000]
    assert found.fast["flags"].tolist() == [0, FLAG_NEGATIVE_POWER, FLAG_ABSURD_POWER, 0]
    assert found.fast["energy_j"].tolist() == [*[NULL["energy_j"]] * 3, 300_000]


def test_energy_as_given_or_counted(tmp_path: Path) -> None:
    """energy_j as it is; else the counter's growth, null at a reset, kept raw in health rows."""
    given = f"ts,node,gpu,power_w,energy_j\n{T0},n,0,100,7.5\n{T0 + 1000},n,0,100,\n"
    found = load(tmp_path, given.encode())
    assert found.fast["energy_j"].tolist() == [7500, NULL["energy_j"]]
    assert found.fast["energy_kind"].tolist() == [ENERGY_COUNTER, 0]
    counter = (5000, 5100.5, 3, 4, 90_000)
    lines = "".join(f"{T0 + i * 1000},n,0,100,{c}\n" for i, c in enumerate(counter))
    found = load(tmp_path, b"ts,node,gpu,power_w,energy_counter_j\n" + lines.encode())
    null = NULL["energy_j"]
    assert found.fast["energy_j"].tolist() == [null, 100_500, null, 1000, null]
    assert found.fast["flags"].tolist() == [0, 0, 0, 0, FLAG_ABSURD_ENERGY]
    assert found.health["energy_counter_j"].tolist() == [5_000_000]
    assert found.health["ts"].tolist() == [T0]


def test_a_uuid_is_the_key_and_may_move(tmp_path: Path) -> None:
    """One GPU, two nodes: one id, two closed intervals."""
    head = b"ts,node,gpu,uuid,model,power_w\n"
    lines = f"{T0},a,0,GPU-1,H200,1\n{T0 + 1000},a,0,GPU-1,,1\n{T0 + 9000},b,3,GPU-1,H200,1\n"
    found = load(tmp_path, head + lines.encode())
    assert set(found.fast["gpu"].tolist()) == {id64("site", "GPU-1")}
    told = [(i.node, i.from_ms - T0, [g.model for g in i.gpus]) for i in found.inventories]
    assert told == [("a", 0, ["H200"]), ("b", 9000, ["H200"])]


def test_nvidia_smi_as_it_writes(tmp_path: Path) -> None:
    """Header with units, values with units or without, [N/A], local times."""
    head = b"timestamp, index, uuid, name, power.draw [W], temperature.gpu, utilization.gpu [%]\n"
    units = b"2025/09/24 02:57:03.946, 0, GPU-1, NVIDIA H100 80GB HBM3, 390.78 W, 42, 100 %\n"
    more = b"2025/09/24 02:57:04.946, 0, GPU-1, NVIDIA H100 80GB HBM3, [N/A], 42, [Not Supported]\n"
    options = Options(constants={"node": "n1"}, format="nvidia-smi")
    found = load(tmp_path, head + units + more, options)
    assert found.fast["power_w"].tolist() == [3908, NULL["power_w"]]
    assert found.fast["util_gpu_pct"].tolist() == [100, NULL["util_gpu_pct"]]
    assert found.fast["ts"].tolist() == [T0, T0 + 1000]
    assert found.inventories[0].gpus[0].model == "NVIDIA H100 80GB HBM3"
    plain = head + (units + more).replace(b" W,", b",").replace(b" %", b"")
    assert same(load(tmp_path, plain, options), found)
    assert "no column 'node'" in refused(tmp_path, head + units)
    berlin = Options(constants={"node": "n1"}, zone="Europe/Berlin")
    assert load(tmp_path, head + units, berlin).fast["ts"].tolist() == [T0 - 7_200_000]
    twice = (head + units).replace(b"2025/09/24 02:57", b"2025/10/26 02:57")
    assert "is no time" in refused(tmp_path, twice, berlin)


@pytest.mark.parametrize("gpu", ["h100-80gb-hbm3", "h100-mig", "h200", "l40s"])
def test_the_full_query_of_real_gpus(tmp_path: Path, captures: Path, gpu: str) -> None:
    """Every field that nvidia-smi has: what is ours is read, the rest left out when told to."""
    (capture,) = (captures / "nvidia_gpu_exporter_captures").glob(f"linux*nvidia-{gpu}__*.txt")
    lines = capture.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith(b"timestamp, driver_version"))
    data = b"".join(lines[at : at + 2])
    assert "unknown columns" in refused(tmp_path, data, Options(constants={"node": "n"}))
    found = load(tmp_path, data, Options(constants={"node": "n"}, ignore_extra=True))
    assert found.rows == 1
    assert 200 < found.fast["power_w"][0] < 7000
    assert found.fast["pstate"][0] < 16
    assert found.health["power_limit_max_w"][0] >= 3000
    assert found.health["mem_total_mib"][0] > 40_000
    assert found.fast["throttle_reasons"][0] != NULL["throttle_reasons"]
    assert int(found.health["mig_mode"][0] == 1) == ("mig" in gpu)


def test_the_real_log(captures: Path) -> None:
    """60,040 rows in four segments; energy within 0.1 % of an independent integral."""
    folder = captures / "nanogpt_8gpu_nvsmi"
    names = pairs(
        ["ts=timestamp", "gpu=gpu_index", "temp_gpu_c=temperature_C", "power_w=power_W",
         "util_gpu_pct=utilization_gpu_percent"], "--map",
    )  # fmt: skip
    files = sorted((folder / "raw").glob("*.csv"))
    options = Options(rename=names, constants={"node": "nanogpt"})
    found = series.joined(samples.load(files, options, lambda _d, _t: None))
    assert (found.rows, found.rows_repeated, found.bad.count) == (60_040, 0, 0)
    table = pq.read_table(folder / "telemetry.parquet")
    gpu = table["gpu_index"].to_numpy()
    at = table["ts"].cast(pa.int64()).to_numpy() / 1e6
    watts = table["w"].to_numpy()
    expected = 0.0
    for g in range(8):
        when, power = at[gpu == g], watts[gpu == g]
        order = np.argsort(when)
        for a, b in pairwise(order):
            if when[b] - when[a] <= 10:
                expected += (power[a] + power[b]) / 2 * (when[b] - when[a])
    known = found.fast["energy_j"] != NULL["energy_j"]
    joules = found.fast["energy_j"][known].sum(dtype=np.int64) / 1000
    assert joules == pytest.approx(expected, rel=1e-3)
    assert (~known).sum() == 4 * 8
    first = found.fast["dt_ms"][~known]
    assert set(first.tolist()) == {291}
    stands = found.fast["dt_ms"].astype(np.int64).sum() / 8
    assert 0.98 < stands / (7505 * 291) < 1.02


def test_parquet_has_the_same_names(tmp_path: Path) -> None:
    """Timestamps of any unit, integers, missing values; a bad row is named by its number."""
    when = [datetime(2025, 9, 24, 2, 57, 3, 946_000, tzinfo=UTC)] * 2
    columns = {
        "ts": pa.array(when, pa.timestamp("us", "UTC")),
        "node": pa.array(["n1", "n1"]).dictionary_encode(),
        "gpu": pa.array([0, 1], pa.int8()),
        "power_w": pa.array([390.78, None], pa.float32()),
        "temp_gpu_c": pa.array([42, 43], pa.int64()),
    }
    file = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), file)
    found = series.joined(samples.load([file], Options(), lambda _d, _t: None))
    assert found.fast["ts"].tolist() == [T0, T0]
    assert sorted(found.fast["power_w"].tolist()) == [NULL["power_w"], 3908]
    pq.write_table(pa.table(columns | {"temp_gpu_c": pa.array([1, 99_999])}), file)
    with pytest.raises(Refuse, match="line 2: temp_gpu_c 99999"):
        samples.load([file], Options(), lambda _d, _t: None)
    pq.write_table(pa.table(columns | {"power_w": pa.array([[1], [2]])}), file)
    with pytest.raises(Refuse, match="holds no numbers"):
        samples.load([file], Options(), lambda _d, _t: None)
    file.write_bytes(b"PAR1 but no more")
    with pytest.raises(Refuse, match="not readable Parquet"):
        samples.load([file], Options(), lambda _d, _t: None)


def test_options_are_checked(tmp_path: Path) -> None:
    """Misspelt names get the nearest one, missing columns a list."""
    assert "did you mean 'power_w'" in refused(tmp_path, GOOD, Options(rename={"powr_w": "x"}))
    assert "no such column" in refused(tmp_path, GOOD, Options(rename={"power_w": "x"}))
    assert "no such time zone" in refused(tmp_path, GOOD, Options(zone="Mars/Base"))
    for wrong in ("a", "=b", "a="):
        with pytest.raises(Refuse, match="write --map name=value"):
            pairs([wrong], "--map")
    with pytest.raises(Refuse, match="given twice"):
        pairs(["a=b", "a=c"], "--map")
    with pytest.raises(Refuse, match="cannot read"):
        samples.load([tmp_path / "none.csv"], Options(), lambda _d, _t: None)
    assert resolve(["ts", "power"], SAMPLES, Options(rename={"power_w": "power"}), "f") == {
        "ts": 0, "power_w": 1,
    }  # fmt: skip


CELL = st.one_of(
    st.sampled_from(["", " ", "nan", "-", "[N/A]", "1", "-1", "1e400", "0x1F", "P0", "390 W",
                     "2025-09-24", "1758682623946", '"', "\x00", "é", "n1", "2025/09/24 1:1"]),
    st.text(max_size=6),
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELL, min_size=4, max_size=6), max_size=5), st.booleans())
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    tmp_path: Path, rows: list[list[str]], newline: bool
) -> None:
    """No other exception, and with --keep-good every row is read or counted."""
    end = "\r\n" if newline else "\n"
    data = HEAD + end.join(",".join(row) for row in rows).encode("utf-8", "replace")
    try:
        load(tmp_path, data)
    except Refuse:
        found = load(tmp_path, data, Options(keep_good=True))
        assert found.bad.count > 0


@given(st.binary(max_size=200))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    """The readers raise nothing but Refuse."""
    for body in (data, HEAD + data):
        try:
            load(tmp_path, body)
        except Refuse as sentence:
            assert str(sentence)


EARLIEST = datetime.fromisoformat("2010-01-02")
LATEST = datetime.fromisoformat("2099-12-30")


@given(st.datetimes(EARLIEST, LATEST), st.integers(-840, 840))
def test_a_time_is_the_same_fast_and_one_by_one(when: datetime, offset: int) -> None:
    """Arrow's conversion and Python's agree to the millisecond, with any offset."""
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    text = when.isoformat(timespec="microseconds") + zone
    utc = zoneinfo.ZoneInfo("UTC")
    one = cells.time_ms(text, utc)
    expected = round(when.replace(tzinfo=UTC, microsecond=0).timestamp()) * 1000
    assert one == expected + when.microsecond // 1000 - offset * 60_000
    assert values.times(pa.array([text]), utc)[0] == one
    assert values.times(pa.array([text, "x"]), utc)[0] == one


@given(st.one_of(st.integers(-(1 << 40), 1 << 40), st.floats(allow_nan=False, width=32)))
def test_storage_is_rounded_or_refused(value: float) -> None:
    """A value is stored to the nearest integer, or named as one that does not fit."""
    metric = FAST_BY_NAME["power_w"]
    out, bad = values.stored(np.array([float(value)]), metric)
    if bad[0]:
        assert not -(1 << 31) < value * 10 < (1 << 31) - 0.5
    else:
        assert abs(int(out[0]) - value * 10) <= 0.500001


def test_faults_are_shown_short() -> None:
    """A long value is cut, a huge number of bad rows is counted."""
    assert len(readers.shown("x" * 1000)) < 80
