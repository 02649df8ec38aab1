"""Slow columns: a row a minute, at once when something is new, and never one too few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode import HEADER_DTYPE
from pipeline.thin import EVERY_MS, Thin, digests


def headers(*messages, ticks=4):
    """Headers of (stream, t0_ms), or (stream, t0_ms, lane)."""
    out = np.zeros(len(messages), HEADER_DTYPE)
    for i, (stream, t0_ms, *lane) in enumerate(messages):
        out[i]["stream"], out[i]["t0_ms"], out[i]["period_ms"] = stream, t0_ms, 1000
        out[i]["ticks"], out[i]["lane"] = ticks, lane[0] if lane else 0
    return out


def worth(thin, *messages, said=None):
    return thin.worth(headers(*messages), np.array(said or [0] * len(messages), np.uint64)).tolist()


def test_a_steady_stream_has_a_row_a_minute():
    """15 messages of 4 s are a minute: one of them is kept, in the same batch or in others."""
    thin, kept = Thin(), []
    for k in range(150):
        kept += worth(thin, (7, k * 4000), (9, k * 4000))
        thin.settle()
    assert sum(kept[0::2]) in (10, 11)
    assert sum(kept[1::2]) in (10, 11)
    assert sum(worth(Thin(), *((7, k * 4000) for k in range(150)))) in (10, 11)


@pytest.mark.parametrize("change", [(7, 4000), (7, 4000, 1), (8, 4000)])
def test_what_is_new_is_kept_at_once(change):
    """A changed digest; the other lane and another stream are strangers."""
    thin = Thin()
    assert worth(thin, (7, 0)) == [True]
    thin.settle()
    assert worth(thin, change, said=[1]) == [True]


def test_a_message_after_a_gap_is_kept():
    """The counters on its far side are what bridges it."""
    thin = Thin()
    assert worth(thin, (7, 0), (7, 4000), (7, 12_000)) == [True, False, True]


def test_what_was_not_stored_is_judged_again():
    """The insert failed: the same messages are worth the same rows the next time."""
    thin = Thin()
    first = worth(thin, (7, 0), (7, 4000))
    thin.undo()
    assert worth(thin, (7, 0), (7, 4000)) == first == [True, False]
    thin.settle()
    assert worth(thin, (7, 8000)) == [False]


def test_streams_that_ended_are_forgotten():
    """What is forgotten is only kept again."""
    thin = Thin()
    worth(thin, (7, 0), (8, 50_000))
    thin.settle()
    thin.forget_before(10_000)
    assert worth(thin, (7, 4000), (8, 54_000)) == [True, False]


def plainly(last, messages, said):
    """What is worth a row, message by message; `last` is what each life said last."""
    kept = []
    for (stream, t0_ms, lane), digest in zip(messages, said, strict=True):
        minute = (t0_ms + stream % EVERY_MS) // EVERY_MS
        kept.append(last.get((stream, lane)) != (minute, digest, t0_ms))
        last[stream, lane] = (minute, digest, t0_ms + 4000)
    return kept


said_messages = st.tuples(
    st.sampled_from([7, 8, 2**63 + 5]),
    st.integers(0, 30).map(lambda k: k * 4000),
    st.integers(0, 1),
)


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(said_messages, st.integers(0, 1)), max_size=12), st.booleans()
        ),
        max_size=8,
    )
)
def test_whole_batches_are_judged_as_messages_one_by_one_are(batches):
    """In any order, repeated in a batch or not, stored or to be tried again."""
    thin = Thin()
    last: dict[tuple[int, int], tuple[int, int, int]] = {}
    for batch, stored in batches:
        messages, said = [m for m, _ in batch], [d for _, d in batch]
        told = dict(last)
        assert worth(thin, *messages, said=said) == plainly(told, messages, said)
        if stored:
            thin.settle()
            last = told
        else:
            thin.undo()


@given(
    st.lists(
        st.lists(st.integers(-(2**15), 2**15 - 1), min_size=3, max_size=3), min_size=2, max_size=6
    )
)
def test_digests_tell_messages_apart(rows):
    """Equal where all values are equal, different where one is not (or the odds are 2^-64)."""
    columns = [np.array(rows, np.int16), np.array(rows, np.int16)[:, :2]]
    found = digests(columns).tolist()
    for a, one in zip(rows, found, strict=True):
        for b, other in zip(rows, found, strict=True):
            assert (a == b) == (one == other)


def test_rows_of_many_streams_are_spread_over_the_minute():
    """Or every minute would begin with the rows of the whole site."""
    thin, rng = Thin(), np.random.default_rng(1)
    streams = rng.integers(1, 2**62, 3000).tolist()
    counts = []
    for k in range(45):
        counts.append(sum(worth(thin, *((s, k * 4000) for s in streams))))
        thin.settle()
    assert max(counts[1:]) < 1.5 * len(streams) * 4000 / EVERY_MS
