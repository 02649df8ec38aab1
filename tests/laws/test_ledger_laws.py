"""The ledger's laws on random input: parts add up, nothing is lost, order does not matter."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.ledger.cells import (
    ENERGY,
    FIELDS,
    MEASURED,
    QUARTER_MS,
    SHOW_MS,
    SPAN,
    Sums,
    cells,
    divided,
)
from pipeline.ledger.holdings import (
    LEASE,
    NOBODY,
    WHOLE,
    Claim,
    Part,
    Piece,
    apportion,
    parts,
    pieces,
    together,
)

T0 = 1_790_000_100_000 // QUARTER_MS * QUARTER_MS
SPAN_MS = 2 * QUARTER_MS


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    """A claim around two quarters of an hour, often at odd milliseconds, sometimes empty."""
    begin = draw(st.integers(-100_000, SPAN_MS)) + T0
    length = draw(st.sampled_from([0, 1, 1000, 60_000, 61_234, QUARTER_MS, 10**9]))
    rank = draw(st.sampled_from([LEASE, 0, 0, 1]))
    share = 0 if rank == LEASE else draw(st.sampled_from([0, 0, 250_000, 333_333, 700_000, WHOLE]))
    return Claim(
        begin, begin + length, draw(st.integers(2, 4)), draw(st.integers(5, 7)), rank, share
    )


some_claims = st.lists(claims(), max_size=7)


@given(st.integers(0, 10**15), st.lists(st.integers(0, WHOLE), max_size=9))
def test_apportioned_parts_add_up(total: int, weights: list[int]) -> None:
    """To the total, each within one of its exact part."""
    out = apportion(total, weights)
    assert sum(out) == (total if sum(weights) else 0)
    for weight, part in zip(weights, out, strict=True):
        assert abs(part * sum(weights) - total * weight) < max(1, sum(weights))


@given(some_claims)
def test_parts_are_the_device(held: list[Claim]) -> None:
    """Always, whatever is claimed, in whichever order."""
    found = parts(held)
    assert sum(part.share_ppm for part in found) == WHOLE
    assert all(part.share_ppm > 0 for part in found)
    for a, b in zip(found, parts(held[::-1]), strict=True):
        # A millionth that cannot be divided goes to the first that was named.
        assert a[:2] == b[:2]
        assert abs(a.share_ppm - b.share_ppm) <= len(held)


@given(some_claims)
def test_a_lease_decides_the_tenant(held: list[Claim]) -> None:
    """No scheduler's account stands in its place."""
    leased = {c.tenant for c in held if c.rank == LEASE}
    if leased:
        assert {part.tenant for part in parts(held)} <= leased


@given(some_claims)
def test_pieces_have_no_holes(held: list[Claim]) -> None:
    """And do not overlap, and neighbours differ."""
    found = pieces(held, T0, T0 + SPAN_MS)
    assert found[0].from_ms == T0
    assert found[-1].until_ms == T0 + SPAN_MS
    for a, b in pairwise(found):
        assert a.until_ms == b.from_ms
        assert a.parts != b.parts


@given(st.lists(some_claims, min_size=1, max_size=4))
def test_a_node_is_the_sum_of_its_devices(of_gpus: list[list[Claim]]) -> None:
    """Each counts the same, at every instant."""
    mine = {i: pieces(held, T0, T0 + SPAN_MS) for i, held in enumerate(of_gpus)}
    for piece in together(mine, T0, T0 + SPAN_MS):
        assert sum(part.share_ppm for part in piece.parts) == WHOLE
        exact: dict[tuple[int, int], int] = defaultdict(int)
        for device in mine.values():
            at = next(p for p in device if p.from_ms <= piece.from_ms < p.until_ms)
            for part in at.parts:
                exact[part.tenant, part.workload] += part.share_ppm
        for part in piece.parts:
            want = exact[part.tenant, part.workload] / len(mine)
            assert abs(part.share_ppm - want) <= 1


# -- cells --------------------------------------------------------------------------------------

Row = tuple[int, int, int]  # ts_ms, dt_ms, energy_mj


@st.composite
def gpu_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of a GPU over the two quarters, with gaps, at a period that is not always a second."""
    period = draw(st.sampled_from([7_000, 13_300, 61_000]))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    ticks = np.arange(T0, T0 + SPAN_MS, period)
    ticks = ticks[rng.random(len(ticks)) > draw(st.sampled_from([0.0, 0.3]))]
    return [(int(t), period, int(rng.integers(0, 5_000_000))) for t in ticks]


def spans(rows: Mapping[int, Sequence[Row]], length_ms: int) -> NDArray[np.void]:
    """Rows added up over spans of that length; of 1: each by itself."""
    total: dict[tuple[int, int], list[int]] = {}
    for gpu, mine in rows.items():
        for ts_ms, dt_ms, energy in mine:
            entry = total.setdefault((gpu, ts_ms // length_ms * length_ms), [0, 0, 0])
            entry[0] += energy
            entry[1] += dt_ms
            entry[2] += 1
    out = np.zeros(len(total), SPAN)
    for i, ((gpu, begin), (energy, time, count)) in enumerate(sorted(total.items())):
        out[i]["device"], out[i]["from_ms"], out[i]["length_ms"] = gpu, begin, length_ms
        out[i]["rows"] = count
        out[i]["energy_mj"], out[i]["measured_ms"], out[i]["max_dw"] = energy, time, energy // 1000
    return out


def among(found: NDArray[np.void], wanted: NDArray[np.void]) -> NDArray[np.void]:
    """Those that lie within the wanted ones."""
    inside = [
        any(
            w["device"] == f["device"]
            and w["from_ms"] <= f["from_ms"] < w["from_ms"] + w["length_ms"]
            for w in wanted
        )
        for f in found
    ]
    return found[np.array(inside, np.bool_)]


Ledger = dict[tuple[int, int, int, int], tuple[int, int]]


def ledger(rows: Mapping[int, Sequence[Row]], held: Mapping[int, Sequence[Claim]],
           from_ms: int, until_ms: int) -> Ledger:  # fmt: skip
    """(gpu, quarter, tenant, workload) -> (energy, time), the product's way."""
    mine = {g: [r for r in of if from_ms <= r[0] < until_ms] for g, of in rows.items()}
    made = cells(
        {gpu: pieces(held[gpu], from_ms - SHOW_MS, until_ms) for gpu in rows}, from_ms, until_ms
    )
    given_ = Sums.zero(made)
    left = given_.give(spans(mine, QUARTER_MS))
    left = given_.give(among(spans(mine, 60_000), left))
    assert not len(given_.give(among(spans(mine, 1), left)))
    done = divided(given_, made.until_ms - made.from_ms)
    return {
        (int(done.device[i]), int(done.quarter_ms[i]), int(done.tenant[i]), int(done.workload[i])):
        (int(done.sums[i, ENERGY]), int(done.sums[i, MEASURED]))
        for i in range(len(done.device)) if done.sums[i].any()
    }  # fmt: skip


def slowly(rows: Mapping[int, Sequence[Row]], held: Mapping[int, Sequence[Claim]]) -> Ledger:
    """The same, row by row, as the contract says it; for holders that do not share."""
    out: dict[tuple[int, int, int, int], list[int]] = defaultdict(lambda: [0, 0])
    for gpu, mine in rows.items():
        cut = pieces(held[gpu], T0 - SHOW_MS, T0 + SPAN_MS)
        for ts_ms, dt_ms, energy in mine:
            i = next(k for k, p in enumerate(cut) if p.from_ms <= ts_ms < p.until_ms)
            who = cut[i].parts[0]
            out[gpu, ts_ms // QUARTER_MS * QUARTER_MS, who.tenant, who.workload][1] += dt_ms
            if i and ts_ms - dt_ms < cut[i].from_ms:
                tenants = {cut[i - 1].parts[0].tenant, who.tenant}
                who = Part(tenants.pop(), 0, WHOLE) if len(tenants) == 1 else NOBODY[0]
            out[gpu, ts_ms // QUARTER_MS * QUARTER_MS, who.tenant, who.workload][0] += energy
    return {key: (e, t) for key, (e, t) in out.items() if e or t}


@given(st.dictionaries(st.integers(1, 2**64 - 1), st.tuples(gpu_rows(), some_claims), min_size=1,
                       max_size=3))  # fmt: skip
@settings(max_examples=60)
def test_nothing_is_lost(site: dict[int, tuple[list[Row], list[Claim]]]) -> None:
    """For each GPU and quarter all holders together have what was measured, to the millijoule."""
    rows, held = {g: r for g, (r, _) in site.items()}, {g: c for g, (_, c) in site.items()}
    found: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for (gpu, quarter, _, _), (energy, time) in ledger(rows, held, T0, T0 + SPAN_MS).items():
        assert energy >= 0
        assert time >= 0
        found[gpu, quarter][0] += energy
        found[gpu, quarter][1] += time
    want: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for span in spans(rows, QUARTER_MS):
        want[int(span["device"]), int(span["from_ms"])] = [
            int(span["energy_mj"]), int(span["measured_ms"]),
        ]  # fmt: skip
    assert found == {key: value for key, value in want.items() if any(value)}


def _alone(held: Sequence[Claim]) -> bool:
    return all(len(p.parts) == 1 for p in pieces(held, T0 - SHOW_MS, T0 + SPAN_MS))


@given(gpu_rows(), some_claims.filter(_alone))
@settings(max_examples=60)
def test_sums_and_rows_agree(mine: list[Row], held: list[Claim]) -> None:
    """Reading quarters first, and rows only where hands change, is the same as reading all rows."""
    assert ledger({9: mine}, {9: held}, T0, T0 + SPAN_MS) == slowly({9: mine}, {9: held})


@given(gpu_rows(), some_claims)
@settings(max_examples=60)
def test_the_order_of_closing_does_not_matter(mine: list[Row], held: list[Claim]) -> None:
    """Two quarters at once, or one after the other."""
    both = ledger({9: mine}, {9: held}, T0, T0 + SPAN_MS)
    apart = ledger({9: mine}, {9: held}, T0 + QUARTER_MS, T0 + SPAN_MS)
    apart |= ledger({9: mine}, {9: held}, T0, T0 + QUARTER_MS)
    assert both == apart


@given(gpu_rows(), some_claims)
@settings(max_examples=40)
def test_minutes_whose_rows_are_gone(mine: list[Row], held: list[Claim]) -> None:
    """Are divided by time, and still add up."""
    made = cells({9: pieces(held, T0 - SHOW_MS, T0 + SPAN_MS)}, T0, T0 + SPAN_MS)
    given_ = Sums.zero(made)
    left = given_.give(among(spans({9: mine}, 60_000), given_.give(spans({9: mine}, QUARTER_MS))))
    given_.give_evenly(left)
    assert given_.sums[:, ENERGY].sum() == sum(row[2] for row in mine)
    assert given_.sums[:, MEASURED].sum() == sum(row[1] for row in mine)
    assert (given_.sums >= 0).all()


@given(st.integers(T0 - QUARTER_MS, T0 + SPAN_MS), st.integers(1, SPAN_MS), st.integers(0, 10**10))
def test_a_bridge_over_quarters_is_the_same_in_one_run_and_in_two(
    since: int, length: int, energy: int
) -> None:
    """What lies in the quarters adds up; nothing is given twice."""
    whole = [Piece(T0 - SHOW_MS, T0 + SPAN_MS, NOBODY)]

    def bridged(from_ms: int, until_ms: int) -> int:
        given_ = Sums.zero(cells({9: whole}, from_ms, until_ms))
        out = given_.bridge(9, since, since + length, energy)
        assert given_.sums[:, FIELDS.index("bridged_mj")].sum() == out
        return out

    both = bridged(T0, T0 + SPAN_MS)
    assert both == bridged(T0, T0 + QUARTER_MS) + bridged(T0 + QUARTER_MS, T0 + SPAN_MS)
    inside = since >= T0 and since + length <= T0 + SPAN_MS
    assert both == energy if inside else both <= energy
