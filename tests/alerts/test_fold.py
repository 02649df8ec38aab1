"""Folding: one page per cause, nobody forgotten, whatever the order and however it grows."""

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts import fold as folding
from alerts.alert import Alert
from alerts.fold import Folded, Page, fold, incident_of
from alerts.topology import Place, Spot, Topology, count
from tests.alerts.sites import GPU_W, alert, silent_nodes, site

SITE = site()
SMALL = site(halls=2, rows=2, racks=2, nodes=2, gpus=2)
RACK = Place("rack", "s", "h01", "h01-r03")


def places(folded: Folded) -> list[str]:
    return [page.place.text for page in folded.pages]


def only(folded: Folded) -> Page:
    (page,) = folded.pages
    return page


def test_a_rack_of_72_is_one_page_that_says_it_all() -> None:
    nodes = silent_nodes("h01-r03")
    nodes[4] = replace(nodes[4], active_ms=10)
    folded = fold(nodes, SITE, {})
    page = only(folded)
    assert not folded.singles
    assert (page.place, page.size, page.incident) == (RACK, 72, "s rack h01-r03")
    assert page.damage == folding.Damage(72, 72 * GPU_W, ("lab-h01-row1",))
    assert page.children[0] == nodes[4].fingerprint
    assert set(page.children) == {a.fingerprint for a in nodes}


def test_every_gpu_of_a_rack_by_itself_is_the_same_page() -> None:
    gpus = [
        alert("GpuMissing", node=gpu.spot.node, gpu=gpu.uuid)
        for some in SITE.gpus.values() for gpu in some if gpu.spot.rack == "h01-r03"
    ]  # fmt: skip
    page = only(fold(gpus, SITE, {}))
    assert (page.place, page.damage.gpus, len(page.children)) == (RACK, 72, 72)
    by_number = [
        alert("GpuMissing", node=gpu.spot.node, gpu=str(gpu.number))
        for some in SITE.gpus.values() for gpu in some if gpu.spot.rack == "h01-r03"
    ]  # fmt: skip
    assert only(fold(by_number, SITE, {})).place == RACK


@pytest.mark.parametrize(
    ("racks", "expected"),
    [
        (["h01-r01"], ["rack h01-r01"]),
        (["h01-r01", "h01-r02"], ["pdu h01-pdu1"]),  # the row has as many, and is larger
        (["h01-r01", "h01-r03"], ["row h01-row1"]),
        (["h01-r01", "h01-r02", "h01-r03", "h01-r04"], ["row h01-row1"]),
        (["h01-r01", "h01-r05"], ["rack h01-r01", "rack h01-r05"]),
        (["h01-r01", "h02-r01"], ["rack h01-r01", "rack h02-r01"]),
        ([f"h01-r{n:02d}" for n in range(1, 9)], ["hall h01"]),
        ([f"h{h:02d}-r{n:02d}" for h in (1, 2) for n in range(1, 9)], ["site s"]),
    ],
)
def test_the_smallest_place_that_explains_all_is_named(
    racks: list[str], expected: list[str]
) -> None:
    folded = fold(chain.from_iterable(map(silent_nodes, racks)), SITE, {})
    assert places(folded) == expected
    assert not folded.singles


def test_a_row_that_is_gone_does_not_make_its_hall_of_a_single_gpu_elsewhere() -> None:
    row = [a for n in range(1, 5) for a in silent_nodes(f"h01-r{n:02d}")]
    stray = alert("GpuMissing", node="h01-r07-n01", gpu="0")
    folded = fold([*row, stray], SITE, {})
    assert places(folded) == ["row h01-row1"]
    assert list(folded.singles) == [stray.fingerprint]
    assert folded.singles[stray.fingerprint].gpus == 1


def test_less_than_the_stated_share_pages_singly() -> None:
    four, five = silent_nodes("h01-r03", 4), silent_nodes("h01-r03", 5)
    assert len(fold(four, SITE, {}).singles) == 4
    assert only(fold(five, SITE, {})).place == RACK


def test_one_alert_is_no_page_of_its_own() -> None:
    rack = alert("RackDark", hall="h01", rack="h01-r03")
    folded = fold([rack], SITE, {})
    assert not folded.pages
    assert folded.singles[rack.fingerprint] == folding.Damage(72, 72 * GPU_W, ("lab-h01-row1",))


def test_what_names_no_known_place_is_told_by_itself() -> None:
    strangers = [
        alert(node="nobody"), alert(), alert(rack="nowhere"), alert(node="h01-r01-n01", gpu="GPU-x"),
        replace(alert(node="h01-r01-n01"), labels={"site": "t", "node": "h01-r01-n01"}),
    ]  # fmt: skip
    folded = fold(strangers, SITE, {})
    assert set(folded.singles) == {a.fingerprint for a in strangers}
    assert {damage.gpus for damage in folded.singles.values()} == {0}


def test_racks_that_are_numbered_within_their_hall_are_two() -> None:
    spots = [
        Spot("s", hall, "", "r1", "", f"{hall}-n{n}") for hall in ("a", "b") for n in range(2)
    ]  # fmt: skip
    made = count([(spot, 1) for spot in spots], {})
    assert made.sizes[Place("rack", "s", "a", "r1")] == 2
    assert [s.hall for s in made.spots_of({"rack": "r1", "hall": "b"})] == ["b", "b"]


def test_what_draws_is_not_lost() -> None:
    page = only(fold(silent_nodes("h01-r03"), site(silent=False), {}))
    assert (page.damage.gpus, page.damage.lost_w) == (72, 0.0)


def test_a_job_explains_what_no_place_does() -> None:
    nodes = [f"h0{h}-r0{r}-n01" for h in (1, 2) for r in (1, 5, 7)]
    busy = site(jobs=dict.fromkeys(nodes, "train-1") | {"h01-r02-n01": "train-2"})
    page = only(fold([alert(node=n) for n in nodes], busy, {}))
    assert (page.place.text, page.damage.gpus, page.size) == ("job train-1", 48, 48)
    assert len(fold([alert(node=n) for n in nodes[:2]], busy, {}).singles) == 2
    assert places(fold(silent_nodes("h01-r03"), site(jobs={
        f"h01-r03-n{n:02d}": "train-3" for n in range(1, 10)
    }), {})) == ["rack h01-r03"]  # fmt: skip


def test_a_page_that_stands_goes_on_until_little_is_left() -> None:
    nodes = silent_nodes("h01-r03")
    standing = {RACK: "s rack h01-r03"}
    assert places(fold(nodes[:1], SITE, {})) == []
    assert only(fold(nodes[:1], SITE, standing)).incident == "s rack h01-r03"
    rest = fold(nodes[:2], SITE, {Place("hall", "s", "", "h01"): "i"})
    assert len(rest.singles) == 2  # 16 of 576 GPUs: what is left is told by itself
    assert not rest.outgrown


def test_it_grows_upwards_under_the_same_incident() -> None:
    first = silent_nodes("h01-r03")
    rack = fold(first, SITE, {})
    standing = {page.place: page.incident for page in rack.pages}
    more = [a for n in range(1, 9) for a in silent_nodes(f"h01-r{n:02d}")]
    hall = fold(more, SITE, standing)
    page = only(hall)
    assert (page.place.text, page.incident) == ("hall h01", "s rack h01-r03")
    assert hall.outgrown == {RACK: page.place}


def test_a_page_inherits_the_incident_of_an_alert_that_was_told() -> None:
    nodes = silent_nodes("h01-r03")
    nodes[3] = replace(nodes[3], told="firing")
    assert only(fold(nodes, SITE, {})).incident == incident_of(nodes[3]) == "s node h01-r03-n04"


def test_a_storm_is_one_page_until_it_has_abated() -> None:
    apart = [alert(node=f"h{h:02d}-r{r:02d}-n{n:02d}") for h in (1, 2) for r in range(1, 9)
             for n in (1, 2)]  # fmt: skip
    assert len(fold(apart[: folding.STORM], SITE, {}).singles) == folding.STORM
    storm = fold(apart, SITE, {})
    assert (places(storm), storm.singles) == (["storm s"], {})
    standing = {only(storm).place: only(storm).incident}
    assert places(fold(apart[:11], SITE, standing)) == ["storm s"]
    assert len(fold(apart[:10], SITE, standing).singles) == 10


# -- laws ---------------------------------------------------------------------------------------

NODES = sorted({spot.node for spot in SMALL.gpus})
RACKS = sorted({(spot.hall, spot.rack) for spot in SMALL.gpus})
ALERTS: list[Alert] = [
    *(alert(node=node) for node in NODES),
    *(alert("GpuMissing", node=node, gpu=str(i)) for node in NODES for i in range(2)),
    *(alert("RackDark", hall=hall, rack=rack) for hall, rack in RACKS),
    alert("CoverageLow"),
]
SOME = st.lists(st.sampled_from(range(len(ALERTS))), unique=True, max_size=16).map(
    lambda chosen: [ALERTS[n] for n in chosen]
)
STANDING = st.lists(st.sampled_from(sorted(SMALL.sizes)), unique=True, max_size=4).map(
    lambda chosen: {place: place.text for place in chosen}
)
LEVELS = ("node", "rack", "pdu", "row", "hall", "site")


def extent(place: Place, known: Topology) -> set[Spot]:
    return {
        spot for spot, gpus in known.gpus.items()
        if place in spot.places() or all(place in gpu.holders() for gpu in gpus)
    }  # fmt: skip


@given(SOME, STANDING)
def test_each_alert_is_in_exactly_one_page_or_single(
    alerts: list[Alert], standing: dict[Place, str]
) -> None:
    folded = fold(alerts, SMALL, standing)
    told = [*folded.singles, *(child for page in folded.pages for child in page.children)]
    assert sorted(told) == sorted(a.fingerprint for a in alerts)
    assert all(page.children for page in folded.pages)
    assert len({page.place for page in folded.pages}) == len(folded.pages)


@given(SOME, STANDING, st.randoms(use_true_random=False))
def test_order_does_not_matter(alerts: list[Alert], standing: dict[Place, str], chance) -> None:
    shuffled = list(alerts)
    chance.shuffle(shuffled)
    assert fold(shuffled, SMALL, standing) == fold(alerts, SMALL, standing)


@given(SOME)
def test_a_page_holds_all_of_each_child_and_has_no_more_than_its_place(alerts: list[Alert]) -> None:
    by_print = {a.fingerprint: a for a in alerts}
    for page in fold(alerts, SMALL, {}).pages:
        inside = extent(page.place, SMALL)
        for child in page.children:
            assert set(SMALL.spots_of(by_print[child].labels)) <= inside
        assert page.damage.gpus <= page.size == 2 * len(inside)


@settings(max_examples=200)
@given(SOME, SOME)
def test_more_alerts_never_take_one_out_of_a_page(few: list[Alert], more: list[Alert]) -> None:
    both = list({a.fingerprint: a for a in (*few, *more)}.values())
    before, after = fold(few, SMALL, {}), fold(both, SMALL, {})
    # Jobs and tenants explain only what places leave over, and that may become too little.
    placed = [page for page in before.pages if page.place.level in LEVELS]
    paged = {child for page in placed for child in page.children}
    assert not paged & set(after.singles)


@given(SOME, SOME)
def test_what_stands_is_told_on_or_outgrown_while_it_is_broken(
    few: list[Alert], more: list[Alert]
) -> None:
    before = fold(few, SMALL, {})
    standing = {page.place: page.incident for page in before.pages}
    both = list({a.fingerprint: a for a in (*few, *more)}.values())
    after = fold(both, SMALL, standing)
    now = {page.place for page in after.pages}
    placed = {place for place in standing if place.level in LEVELS}
    assert placed <= now | set(after.outgrown)
    for old, new in after.outgrown.items():
        assert new in now
        assert old not in now
