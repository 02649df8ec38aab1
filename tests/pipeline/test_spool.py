"""The spool on disk: numbers, bounds, full and damaged disks, one owner."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import Refuse, Retry
from pipeline.outbox import Outbox
from pipeline.spool import Outgoing, Spool, Stream
from pipeline.spool_file import SCHEMA_VERSION

MIB = 1 << 20


def text(stream: Stream) -> bytes:
    """A message that says what it was given."""
    return b"%d %d %d " % (stream.id, stream.next_seq, stream.dropped)


def big(stream: Stream) -> bytes:
    return text(stream).ljust(100_000, b".")


def samples(node: str = "a", t_ms: int = 0, *, large: bool = False) -> Outgoing:
    return Outgoing("samples", node, t_ms, big if large else text)


def contents(spool: Spool) -> list[tuple[int, ...]]:
    """(stream, seq, dropped) of every message of samples, oldest first."""
    box = Outbox(spool)
    found = [box.fetch(i) for i in sorted(box.live(0, 10**6))]
    box.close()
    return [tuple(int(n) for n in m.payload.split()[:3]) for m in found if m is not None]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Iterator[Spool]:
    spool = Spool(tmp_path, 64 * MIB, clock)
    yield spool
    spool.close()


def test_numbers_are_given_once_per_stream_and_survive_a_restart(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Each node has a stream of its own; reopening goes on with it."""
    for _ in range(2):
        spool = Spool(tmp_path, 64 * MIB, clock)
        assert spool.append([samples("a", 1), samples("b", 1), samples("a", 2)]) == 3
        a, b = spool.streams["a"], spool.streams["b"]
        spool.close()
    assert (a.next_seq, b.next_seq) == (4, 2)
    assert a.id != b.id
    assert a.last_tick_ms == 2
    spool = Spool(tmp_path, 64 * MIB, clock)
    assert [row[1] for row in contents(spool) if row[0] == a.id] == [0, 1, 2, 3]
    spool.close()


def test_an_append_is_on_the_disk_before_it_returns(spool: Spool) -> None:
    """WAL with synchronous FULL: a loss of power costs nothing that was reported as stored."""
    assert spool._db is not None
    assert spool._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert spool._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_records_have_no_number(spool: Spool) -> None:
    """JSON goes in as it is and uses up no sequence number."""
    spool.append([Outgoing("events", "a", 5, b"{}"), samples("a")])
    box = Outbox(spool)
    message = box.fetch(box.records(9)[0])
    box.close()
    assert message is not None
    assert message[1:] == ("events", "a", 5, b"{}")
    assert spool.streams["a"].next_seq == 1


def test_lanes_are_told_apart_by_the_newest_tick(spool: Spool) -> None:
    """Live are those at or after the border, the backlog those before, each oldest first."""
    spool.append([samples("a", t) for t in (10, 30, 20, 40)])
    box = Outbox(spool)

    def ticks(ids: list[int]) -> list[int]:
        return [m.t_ms for i in ids if (m := box.fetch(i))]

    assert ticks(box.live(30, 9)) == [30, 40]
    assert ticks(box.backlog(30, 9)) == [10, 20]
    assert ticks(box.live(0, 2)) == [10, 20]
    box.remove(box.live(30, 9))
    assert ticks(box.live(0, 9)) == [10, 20]
    box.close()


def test_the_oldest_goes_first_and_is_counted(tmp_path: Path, clock: ManualClock) -> None:
    """The file stays within its bound; what is missing is exactly what was counted."""
    spool = Spool(tmp_path, 2 * MIB, clock)
    for t in range(60):
        spool.append([samples("ab"[t % 2], t, large=True)])
    kept = contents(spool)
    for node in "ab":
        stream = spool.streams[node]
        seqs = [seq for stream_id, seq, _ in kept if stream_id == stream.id]
        assert seqs == list(range(stream.dropped, 30))
        assert stream.dropped > 5
    assert spool.drops == {"overflow": sum(s.dropped for s in spool.streams.values())}
    assert spool.path.stat().st_size <= 2 * MIB + 110_000
    assert kept[-1][2] > 0, "later messages carry the count"
    spool.close()
    again = Spool(tmp_path, 2 * MIB, clock)
    assert again.streams["a"] == spool.streams["a"]
    again.close()


def test_depth_says_what_waits(spool: Spool, clock: ManualClock) -> None:
    """Messages, bytes in use and when the oldest came in."""
    assert spool.depth().messages == 0
    assert spool.depth().oldest_ms is None
    born = clock.now_ms()
    spool.append([samples(large=True)])
    clock.advance(5)
    spool.append([samples(large=True)])
    depth = spool.depth()
    assert (depth.messages, depth.oldest_ms) == (2, born)
    assert 200_000 < depth.size_bytes < 300_000


def test_a_full_disk_costs_messages_and_nothing_else(tmp_path: Path, clock: ManualClock) -> None:
    """Drops are counted with their reason, numbers show the gap, and it works again afterwards."""
    spool = Spool(tmp_path, 64 * MIB, clock)
    db = spool._db
    assert db is not None
    pages = db.execute("PRAGMA max_page_count = 60").fetchone()[0]
    stored = sum(spool.append([samples("a", t, large=True)]) for t in range(10))
    assert 1 <= stored < 10
    assert spool.drops == {"disk_full": 10 - stored}
    db.execute(f"PRAGMA max_page_count = {pages * 1000}")
    assert spool.append([samples("a", 10, large=True)]) == 1
    stream, kept = spool.streams["a"], contents(spool)
    assert stream.next_seq == 11
    assert stream.dropped == 10 - stored == 11 - len(kept)
    assert kept[-1][1:] == (10, stream.dropped)
    spool.close()
    again = Spool(tmp_path, 64 * MIB, clock)
    assert again.streams["a"] == stream
    again.close()


_SMALL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.clock import ManualClock
from pipeline.spool import Outgoing, Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
spool = Spool(Path(sys.argv[1]), 64 << 20, ManualClock())
kept = sum(spool.append([Outgoing("samples", "a", t, bytes(50_000))]) for t in range(20))
print(kept, dict(spool.drops))
spool.close()
"""


def test_a_disk_that_refuses_to_write_is_survived(tmp_path: Path) -> None:
    """The kernel's own refusal, not SQLite's: counted as a disk error."""
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_DISK, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    kept, drops = done.stdout.split(" ", 1)
    assert 1 <= int(kept) < 20
    assert drops.strip() == str({"disk_error": 20 - int(kept)})


@pytest.mark.parametrize("damage", [b"not a database at all".ljust(8192), b"\xff" * 100])
def test_a_damaged_file_is_moved_aside_at_the_start(
    tmp_path: Path, clock: ManualClock, damage: bytes
) -> None:
    """The agent starts with an empty spool and new streams, and the old file is kept."""
    spool = Spool(tmp_path, 64 * MIB, clock)
    spool.append([samples("a")])
    old = spool.streams["a"].id
    spool.close()
    with spool.path.open("r+b") as file:
        file.write(damage)
    again = Spool(tmp_path, 64 * MIB, clock)
    assert again.append([samples("a")]) == 1
    assert again.streams["a"].id != old
    assert again.drops["corrupt"] == 1
    assert (tmp_path / "spool.sqlite.corrupt").exists()
    again.close()


def test_damage_while_running_is_found_by_the_reader_and_repaired_by_the_writer(
    spool: Spool,
) -> None:
    """The reader gets Retry, the next append begins a new file, row ids go on growing."""
    spool.append([samples("a", t, large=True) for t in range(20)])
    spool.close()
    spool = Spool(spool.path.parent, 64 * MIB, ManualClock(1))
    box = Outbox(spool)
    ids = box.live(0, 99)
    assert spool.append([samples("a", 20)]) == 1
    last = box.live(20, 1)[0]
    with sqlite3.connect(spool.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    box.close()
    size = spool.path.stat().st_size
    with spool.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with pytest.raises(Retry):
        for message_id in ids:
            box.fetch(message_id)
    assert spool.append([samples("a", 21)]) == 1
    assert spool.life == 2
    assert spool.drops["corrupt"] >= 1
    fresh = box.live(0, 9)
    assert len(fresh) == 1
    assert fresh[0] > last, "although this clock stands at 1970"
    box.close()
    spool.close()


def test_a_second_process_is_refused_in_one_sentence(spool: Spool) -> None:
    """The folder is held by one process, which the sentence names."""
    script = (
        "import sys; from pathlib import Path; from pipeline.clock import SystemClock\n"
        "from pipeline.errors import Refuse; from pipeline.spool import Spool\n"
        "try: Spool(Path(sys.argv[1]), 1 << 26, SystemClock())\n"
        "except Refuse as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(spool.path.parent)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert "is in use by process" in done.stdout
    assert done.stdout.count("\n") == 1
    assert spool.append([samples()]) == 1


def test_misuse_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    """A bound of nothing, a folder that cannot be, a file from the future."""
    with pytest.raises(Refuse, match="spool_max_mib is at least 1"):
        Spool(tmp_path, 0, clock)
    (tmp_path / "file").touch()
    with pytest.raises(Refuse, match=r"cannot use spool folder .*file/x"):
        Spool(tmp_path / "file" / "x", 64 * MIB, clock)
    Spool(tmp_path / "new", 64 * MIB, clock).close()
    with sqlite3.connect(tmp_path / "new" / "spool.sqlite") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(Refuse, match="newer Megawatch"):
        Spool(tmp_path / "new", 64 * MIB, clock)


def test_a_closed_spool_takes_nothing(spool: Spool) -> None:
    """Its lock is gone, so it must not write behind the next owner's back."""
    spool.close()
    with pytest.raises(AssertionError, match="closed"):
        spool.append([samples()])
