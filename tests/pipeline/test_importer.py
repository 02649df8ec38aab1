"""Imports into a store: once each row, few partitions an insert, the same again is nothing."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import importer, progress
from pipeline.clock import ManualClock
from pipeline.errors import Refuse
from pipeline.formats import tables
from pipeline.formats.cells import MAX_INDEX
from pipeline.formats.contract import Options
from pipeline.formats.samples import Columns
from pipeline.importer import ImportReport, import_samples
from pipeline.records import Allocation, Inventory, MeterReading, id64
from tests.pipeline.memory_store import MemoryStore

T0 = 1_758_682_800_000
HOUR = 3_600_000


def write(path: Path, name: str, text: str) -> Path:
    file = path / name
    file.write_text(text)
    return file


def log(rows: list[tuple[int, int, float]]) -> str:
    return "ts,node,gpu,power_w\n" + "".join(f"{ts},n,{gpu},{w}\n" for ts, gpu, w in rows)


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    """Row for row: also in another order, and together with new rows."""
    store = MemoryStore()
    first = [(T0 + i * 1000, gpu, 100.0) for i in range(10) for gpu in range(3)]
    a = write(tmp_path, "a.csv", log(first))
    report = import_samples(store, [a], Options())
    assert (report.rows_read, report.rows_inserted, report.hours, report.gpus) == (30, 30, 1, 3)
    assert (report.from_ms, report.until_ms) == (T0, T0 + 9001)
    before, tokens = store.rows(), list(store.tokens)
    records = list(store.records)
    report = import_samples(store, [a], Options())
    assert (report.rows_inserted, report.rows_known) == (0, 30)
    more = [*first[::-1], (T0 + 10_000, 0, 100.0), (T0 + HOUR, 0, 1.0)]
    b = write(tmp_path, "b.csv", log(more))
    assert store.rows() == before
    assert store.tokens == tokens
    assert store.records == records
    report = import_samples(store, [b], Options())
    assert (report.rows_inserted, report.rows_known, report.hours) == (2, 30, 2)
    assert before < store.rows()


def test_a_crash_between_inserts_is_repaired_by_repeating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was inserted before, the whole is there once afterwards, with the same tokens."""
    monkeypatch.setattr(importer, "CHUNK_ROWS", 7)
    file = write(tmp_path, "a.csv", log([(T0 + i * 1000, i % 2, 1.0) for i in range(40)]))
    whole, broken = MemoryStore(), MemoryStore(fail_after=3)
    import_samples(whole, [file], Options())
    with pytest.raises(ConnectionError):
        import_samples(broken, [file], Options())
    broken.fail_after = None
    report = import_samples(broken, [file], Options())
    assert report.rows_known == 21
    assert broken.rows() == whole.rows()
    assert broken.tokens == whole.tokens


def test_health_goes_with_its_samples(tmp_path: Path) -> None:
    """Slow values every ten seconds, before the samples, and not again."""
    rows = "".join(f"{T0 + i * 1000},n,0,1,{i * 100}\n" for i in range(25))
    file = write(tmp_path, "a.csv", "ts,node,gpu,power_w,energy_counter_j\n" + rows)
    store = MemoryStore()
    import_samples(store, [file], Options())
    (health,) = store.health
    assert health["ts"].tolist() == [T0, T0 + 10_000, T0 + 20_000]
    assert health["energy_counter_j"].tolist() == [0, 1_000_000, 2_000_000]
    assert store.tokens[0].startswith("import/health/")
    import_samples(store, [file], Options())
    assert len(store.health) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 200 * 24), st.integers(0, 3_599_999), st.integers(0, 4)),
        min_size=1, max_size=120,
    ),
    st.integers(3, 50),
)  # fmt: skip
def test_chunks_are_small_sorted_and_whole(rows: list[tuple[int, int, int]], size: int) -> None:
    """Sorted by (hour, gpu, ts), at most 50 hours and CHUNK_ROWS rows, nothing lost or doubled."""
    hour = np.array([h for h, _, _ in rows], np.int64)
    ts = hour * HOUR + np.array([m for _, m, _ in rows], np.int64)
    gpu = np.array([g for _, _, g in rows], np.uint64)
    order = np.lexsort((ts, gpu, hour))
    columns: Columns = {"ts": ts[order], "gpu": gpu[order]}
    before, importer.CHUNK_ROWS = importer.CHUNK_ROWS, size  # type: ignore[misc]
    try:
        found = list(importer.chunks(columns))
    finally:
        importer.CHUNK_ROWS = before  # type: ignore[misc]
    for chunk in found:
        assert len(np.unique(chunk["ts"].astype(np.int64) // HOUR)) <= importer.MAX_HOURS
        assert 1 <= len(chunk["ts"]) <= size
    joined = np.concatenate([chunk["ts"] for chunk in found])
    assert np.array_equal(joined, columns["ts"])


def test_questions_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many GPUs and hours are asked about piece by piece; each piece finds its rows."""
    monkeypatch.setattr(importer, "MAX_GPU_HOURS", 4)
    rows = [(T0 + h * HOUR + i, gpu, 1.0) for h in range(3) for gpu in range(7) for i in (0, 500)]
    file = write(tmp_path, "a.csv", log(rows))
    store = MemoryStore()
    import_samples(store, [file], Options())
    calls = store.calls
    assert calls == 6
    assert import_samples(store, [file], Options()).rows_known == 42


def test_a_bad_row_stops_before_anything_is_inserted(tmp_path: Path) -> None:
    """Refused as a whole; with keep_good the rest is imported and the bad row told."""
    file = write(tmp_path, "a.csv", log([(T0, 0, 1.0), (5, 0, 1.0)]))
    store = MemoryStore()
    with pytest.raises(Refuse, match=r"a\.csv: line 3: ts '5'"):
        import_samples(store, [file], Options())
    assert not store.samples
    assert not store.records
    report = import_samples(store, [file], Options(keep_good=True))
    assert (report.rows_inserted, report.rows_bad, len(report.problems)) == (1, 1, 1)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    """A header alone is no error, and no insert."""
    store = MemoryStore()
    report = import_samples(store, [write(tmp_path, "a.csv", log([]))], Options())
    assert report == ImportReport(0, 0, 0, 0, 0)
    assert not store.samples
    assert report.as_dict()["rows_read"] == 0


def test_meters_once_each(tmp_path: Path) -> None:
    """By (kind, meter, ts); a reading repeated in the file counts once, the last stands."""
    text = (
        "ts,meter,kind,watts\n"
        f"{T0},main,site,1000000.5\n{T0},n1,node,5000\n{T0},n1,node,5001 W\n"
        f"{T0 + 1000},main,site,-20\n"
    )
    store = MemoryStore()
    file = write(tmp_path, "m.csv", text)
    report = importer.import_meters(store, [file], Options(site="s"))
    assert (report.rows_read, report.rows_inserted, report.rows_repeated) == (4, 3, 1)
    assert MeterReading(site="s", meter="n1", kind="node", ts_ms=T0, watts=5001.0) in store.records
    again = importer.import_meters(store, [file], Options(site="s"))
    assert (again.rows_inserted, again.rows_known) == (0, 3)
    assert len(store.records) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,m,site,1", "ts 'x'"),
        (f"{T0},,site,1", "meter is empty"),
        (f"{T0},m,house,1", "kind 'house' is none of node, rack, pdu, row, hall, site"),
        (f"{T0},m,site,", "watts is empty"),
        (f"{T0},m,site,nan", "watts 'nan' is no number"),
        (f"{T0},m,site,1e30", "watts '1e30'"),
        (f"{T0},m,site", "3 values, the header has 4"),
    ],
)
def test_bad_meters_are_named(tmp_path: Path, row: str, words: str) -> None:
    """File, line and value."""
    file = write(tmp_path, "m.csv", f"ts,meter,kind,watts\n{row}\n")
    with pytest.raises(Refuse) as caught:
        importer.import_meters(MemoryStore(), [file], Options())
    assert words in str(caught.value)
    assert "m.csv: line 2" in str(caught.value)


def test_allocations_are_asserted_once(tmp_path: Path) -> None:
    """Asserted now; the same again is not said again, a changed end is."""
    head = "tenant,workload,node,gpus,from,until\n"
    text = head + f'a,w1,n1,"0-3,5",{T0},{T0 + HOUR}\nb,,n2,,2025-09-24T03:00:00Z,\n'
    store, clock = MemoryStore(), ManualClock(T0 * 2)
    file = write(tmp_path, "a.csv", text)
    report = importer.import_allocations(store, [file], Options(site="s"), clock=clock)
    assert report.rows_inserted == 2
    assert store.records == [
        Allocation(site="s", source="import", tenant="a", workload="w1", node="n1",
                   gpus=(0, 1, 2, 3, 5), from_ms=T0, until_ms=T0 + HOUR, asserted_at_ms=T0 * 2),
        Allocation(site="s", source="import", tenant="b", node="n2", from_ms=T0,
                   asserted_at_ms=T0 * 2),
    ]  # fmt: skip
    clock.advance(60)
    assert importer.import_allocations(store, [file], Options(site="s")).rows_inserted == 0
    file.write_text(text.replace(f"{T0 + HOUR}", f"{T0 + 2 * HOUR}"))
    assert importer.import_allocations(store, [file], Options(site="s")).rows_inserted == 1


@pytest.mark.parametrize(
    "gpus", ["3-1", "a", "0-", "-1", "1,,2", f"{MAX_INDEX + 1}", "0-9999999999"]
)
def test_bad_lists_of_gpus(tmp_path: Path, gpus: str) -> None:
    """Refused with the form that is wanted."""
    text = f'tenant,node,gpus,from\na,n,"{gpus}",{T0}\n'
    with pytest.raises(Refuse, match="is no list such as 0-3,5"):
        importer.import_allocations(MemoryStore(), [write(tmp_path, "a.csv", text)], Options())


@given(st.sets(st.integers(0, MAX_INDEX), max_size=20))
def test_a_list_of_gpus_is_read_back(indices: set[int]) -> None:
    """Any set of indices, as single numbers."""
    assert tables.gpu_list(", ".join(map(str, indices))) == tuple(sorted(indices))


def test_inventory_is_one_record_per_node_place_and_interval(tmp_path: Path) -> None:
    """GPUs of a node come together; an open end is open; a backward one is refused."""
    head = "node,site,hall,rack,gpu,uuid,model,memory_mib,from,until\n"
    text = head + (
        f"n1,s,h1,r1,1,GPU-b,H200,143771,{T0},\nn1,s,h1,r1,0,GPU-a,H200,143771,{T0},\n"
        f"n2,s,h1,r2,0,,H200,,{T0},{T0 + HOUR}\n"
    )
    store = MemoryStore()
    importer.import_inventory(store, [write(tmp_path, "i.csv", text)], Options())
    one, two = store.records
    assert isinstance(one, Inventory)
    assert isinstance(two, Inventory)
    assert [(g.index, g.uuid, g.memory_mib) for g in one.gpus] == [
        (0, "GPU-a", 143_771), (1, "GPU-b", 143_771),
    ]  # fmt: skip
    assert (one.until_ms, one.hall, one.rack, two.until_ms) == (None, "h1", "r1", T0 + HOUR)
    assert two.gpus[0].uuid == "n2/0"
    wrong = head + f"n1,s,h1,r1,0,GPU-a,H200,1,{T0},{T0}\n"
    with pytest.raises(Refuse, match="is not after from"):
        importer.import_inventory(store, [write(tmp_path, "i.csv", wrong)], Options())


def test_ids_that_collide_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of one id would be one GPU."""
    monkeypatch.setattr("pipeline.formats.series.id64", lambda *_: 7)
    file = write(tmp_path, "a.csv", log([(T0, 0, 1.0), (T0, 1, 1.0)]))
    with pytest.raises(Refuse, match="have the same id"):
        import_samples(MemoryStore(), [file], Options())
    assert id64("s", "a") != id64("s", "b")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar_shows_only_on_a_terminal_and_after_a_while() -> None:
    """Nothing in the first two seconds or into a file; it is wiped at the end."""
    for stream, expected in ((Terminal(), "50% 5 rows"), (io.StringIO(), "")):
        clock = ManualClock()
        bar = progress.Bar("importing", stream, clock)
        clock.advance(1)
        bar(1, 10)
        assert stream.getvalue() == ""
        clock.advance(2)
        bar(5, 10)
        assert expected in stream.getvalue()
        bar.close()
        assert stream.getvalue().endswith("\x1b[K" if expected else "")
    assert "[" + "." * 30 + "]   0%" in progress.line("x", 0, 0, 0.0)
