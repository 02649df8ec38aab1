"""Memory of what was seen is never wrong: new is new, known is known, the rest is doubtful."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.seen import MAX_RANGES, Seen


class SeenAgainstASet(RuleBasedStateMachine):
    """Adds in any order, checked against a plain set that forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self.model: dict[int, set[int]] = {}

    @rule(stream=st.integers(0, 1), seq=st.integers(0, 120))
    def add(self, stream, seq):
        before = self.model.setdefault(stream, set())
        expected = max(0, seq - max(before) - 1) if before else 0
        assert self.seen.add(stream, seq) == expected
        before.add(seq)

    @rule(stream=st.integers(0, 1), seq=st.integers(0, 100), count=st.integers(1, 10))
    def add_a_run(self, stream, seq, count):
        for number in range(seq, seq + count):
            self.add(stream, number)

    @rule()
    def forget(self):
        self.seen.forget()
        self.model.clear()

    @invariant()
    def every_verdict_is_sound(self):
        for stream in (0, 1, 2):
            added = self.model.get(stream, set())
            for seq in range(135):
                verdict = self.seen.judge(stream, seq)
                if verdict == "new":
                    assert added
                    assert seq > max(added)
                if verdict == "known":
                    assert seq in added

    @invariant()
    def memory_is_bounded(self):
        assert all(len(r) <= MAX_RANGES for r in self.seen._streams.values())


TestSeen = SeenAgainstASet.TestCase
TestSeen.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(0, 40), min_size=1), st.integers(0, 45))
def test_with_few_gaps_memory_is_exact(seqs, asked):
    """Up to the bound nothing is forgotten: known and in a gap are told apart."""
    seen = Seen()
    for seq in seqs:
        seen.add(7, seq)
    ranges = sum(1 for s in set(seqs) if s - 1 not in seqs)
    if ranges <= MAX_RANGES:
        expected = "known" if asked in seqs else "new" if asked > max(seqs) else "doubtful"
        assert seen.judge(7, asked) == expected


def test_an_unknown_stream_is_doubtful():
    """After a restart only the table can tell."""
    assert Seen().judge(1, 0) == "doubtful"
