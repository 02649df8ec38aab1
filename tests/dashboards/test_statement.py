"""What a customer is sent: nothing wrong, nothing hidden, nothing of others, nothing that runs.

`python -m tests.dashboards.test_statement` writes the golden files anew.
"""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import statement_plots as plots
from dashboards import statement_text as text
from dashboards.statement import html
from pipeline.errors import Refuse
from pipeline.ledger.figures import CAUSES, THROTTLES, Point, Statement, Terms, Use

FOLDER = Path(__file__).parents[1] / "golden"
SEAL = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
VOID = {"meta"}
MARCH_1 = 1_772_319_600_000  # 2026-03-01 00:00 in Berlin
TERMS = Terms(
    contracted_gpus=16, contracted_kw=12.8, price_per_gpu_hour="2.10", price_per_kwh="0.24",
    currency="EUR", availability_promised_pct=99.5, timezone="Europe/Berlin",
)  # fmt: skip


def statement(*tenants: Use, **changes: object) -> Statement:
    """A day of March in Berlin."""
    day = Statement(
        since="2026-03-01T00:00:00+01:00", until="2026-03-02T00:00:00+01:00", site="Frankfurt 1",
        timezone="Europe/Berlin", tenants=list(tenants), unallocated=None, total=None,
    )  # fmt: skip
    return msgspec.structs.replace(day, **changes)


def points(*watts: float | None) -> list[Point]:
    """Quarters from 1 March on; None is not measured."""
    return [
        Point(ts_ms=MARCH_1 + n * plots.QUARTER_MS, gpu_kw=kw, node_kw=None, gpu_hours=4.0,
              coverage=0.0 if kw is None else 1.0)
        for n, kw in enumerate(watts)
    ]  # fmt: skip


KESTREL = Use(
    tenant="Kestrel & Sons", gpu_hours_allocated=384.0, gpu_hours_active=301.25,
    gpu_hours_idle=75.0, gpu_energy_kwh=187.31, bridged_energy_kwh=1.5, idle_energy_kwh=9.125,
    site_energy_kwh=234.1375, site_energy_from="declared PUE 1.25", peak_15min_kw=11.2,
    peak_15min_at="2026-03-01T01:15:00+00:00", utilization_pct=71.239,
    throttled_hours={"power_cap": 3.25, "sw_thermal": 0.0, "hw_thermal": 0.0, "power_brake": 0.0},
    cost=862.59, cost_gpu_hours=806.4, cost_energy=56.19, currency="EUR", terms=TERMS,
    delivered_gpus=15.9, availability_pct=99.375, coverage=0.979,
    gap_hours=dict.fromkeys(CAUSES, 0.0) | {"node": 8.0}, estimated_share=0.008,
    provisional_hours=2.5, energy_mj="668916000000", bridged_mj="5400000000",
    curve=points(9.0, 9.5, None, None, 11.0, 11.2), histogram_hours=[40.0, *[8.0] * 8, 272.0],
    corrections=["2026-03-01 01:00 was closed again: 2.1 kWh became 2.2 kWh."],
)  # fmt: skip
JOBS = [
    Use(tenant="Batch Ltd", workload="small", account="cfd", gpu_energy_kwh=1.0, coverage=1.0),
    Use(tenant="Batch Ltd", workload="unmeasured", coverage=1.0),
    Use(tenant="Batch Ltd", workload="large", gpu_energy_kwh=99.0, coverage=0.5),
    Use(tenant="Batch Ltd", gpu_energy_kwh=50.0, coverage=1.0, corrections=["Closed again."]),
]
BARE = Use(tenant="Bare")
SMALL = statement(
    KESTREL, BARE, *JOBS, unallocated=Use(gpu_hours_allocated=48.0, coverage=1.0),
    total=Use(gpu_hours_allocated=432.0, gpu_energy_kwh=1234.5, coverage=0.981),
    notes=["Node meters were not read."],
)  # fmt: skip


def rendered(what: Statement, seal: str = "") -> str:
    return html(what, made_at="2026-03-02 08:00 UTC", seal=seal)


GOLDEN = {
    "statement_small.html": lambda: rendered(SMALL, SEAL),
    "statement_small.txt": lambda: text.table(SMALL) + "\n",
    "statement_small.csv": lambda: text.csv(SMALL),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_sent_does_not_change_unseen(name):
    """Byte for byte: look at the new page, then write the file anew."""
    assert GOLDEN[name]().encode() == (FOLDER / name).read_bytes()


class Page(HTMLParser):
    """Checks the nesting and keeps the words, the tags and the attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sections: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag == "section":
            self.sections.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            if "section" in self.open:
                self.sections[-1].append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


figures = st.one_of(st.floats(0, 1e9), st.sampled_from([0.0, 1e-9, 99.99951, float("nan"), 1e300]))
maybe = st.none() | figures
NAMES = ["Qqqa", "<b>Qqqb</b>", '"Qqqc&', "=Qqqd\x1b[31m", "Qqqe\u202e\x00\ud800", "'Qqqf\r\n@"]
curves = st.lists(
    st.builds(
        Point, ts_ms=st.integers(-5, 200).map(lambda n: MARCH_1 + n * plots.QUARTER_MS),
        gpu_kw=maybe, node_kw=maybe, gpu_hours=figures, coverage=st.none() | st.floats(0, 1),
    ), max_size=8,
)  # fmt: skip


def uses_of(tenant, workload=None):
    """Any use that the contract allows, of this tenant."""
    hours = dict.fromkeys(THROTTLES, figures)
    return st.builds(
        Use, tenant=st.just(tenant), workload=st.none() if workload is None else workload,
        account=st.sampled_from([None, "+acc", "<i>"]),
        gpu_hours_allocated=figures, gpu_hours_active=figures, gpu_hours_idle=figures,
        gpu_energy_kwh=maybe, bridged_energy_kwh=figures, idle_energy_kwh=maybe,
        node_energy_kwh=maybe, site_energy_kwh=maybe,
        site_energy_from=st.sampled_from([None, "metered", "-<u>"]), peak_15min_kw=maybe,
        peak_15min_at=st.sampled_from([None, "2026-03-01T12:15:00Z"]), utilization_pct=maybe,
        throttled_hours=st.fixed_dictionaries({}, optional=hours),
        cost=maybe, cost_gpu_hours=maybe, cost_energy=maybe,
        currency=st.sampled_from([None, "EUR", "<s>"]),
        terms=st.sampled_from([None, TERMS]), delivered_gpus=maybe, availability_pct=maybe,
        coverage=st.none() | st.floats(0, 1),
        gap_hours=st.dictionaries(st.sampled_from([*CAUSES, "=<p>"]), figures),
        estimated_share=st.floats(0, 1), provisional_hours=figures, curve=curves,
        histogram_hours=st.just([]) | st.lists(figures, min_size=10, max_size=10),
        corrections=st.sampled_from([[], ["@<q> again"]]),
    )  # fmt: skip


def tenants_of(names):
    """One to three uses of each of these tenants: itself, then jobs."""
    jobs = st.sampled_from(["job<1>", "=job"])
    rows = [
        st.tuples(uses_of(name), st.lists(uses_of(name, jobs), max_size=2)).map(
            lambda pair: [pair[0], *pair[1]]
        )
        for name in names
    ]
    return st.tuples(*rows).map(lambda lists: [use for rows in lists for use in rows])


@st.composite
def statements(draw):
    """Of several tenants, with or without what is left and the total."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return statement(
        *draw(tenants_of(names)),
        unallocated=draw(st.none() | uses_of(None)), total=draw(st.none() | uses_of(None)),
    )  # fmt: skip


def marks(words: str) -> set[str]:
    """Of which tenants it speaks."""
    return set(re.findall(r"Qqq[a-f]", words))


@settings(max_examples=60, deadline=None)
@given(statements())
def test_a_page_is_whole_and_says_only_what_is_known(made):
    """Tags nest; no word of Python, no power of ten, no place in a picture that is no number."""
    page = Page(rendered(made, SEAL))
    assert page.tags <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "small",
        "bdi", "dl", "dt", "dd", "span", "section", "div", "b", "ul", "li", "table", "caption",
        "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "line", "text", "rect",
        "path", "p", "footer",
    }  # fmt: skip
    assert not re.search(r"\b(None|nan|inf)\b", page.text)
    assert not re.search(r"\d[eE][+-]\d", page.text)
    numbers = [v for n, v in page.attributes if n in {"x", "y", "d", "x1", "y1", "width", "height"}]
    assert all(re.fullmatch(r"[-\d. MHV]+", value) for value in numbers)
    assert not {n for n, _ in page.attributes} & {"src", "href", "style", "xlink:href"}
    assert not any(n.startswith("on") for n, _ in page.attributes)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES).flatmap(lambda n: tenants_of([n])), uses_of("Qqqz"), st.booleans())
def test_a_tenants_own_statement_says_nothing_of_others(own, other, named):
    """Even if what nobody held is handed in by mistake."""
    left = msgspec.structs.replace(
        other, tenant=None, gpu_hours_allocated=777.123, corrections=["of Qqqz"]
    )
    made = statement(*own, unallocated=left)
    for said in (Page(rendered(made)).text, text.table(made), text.csv(made)):
        assert "Qqqz" not in said
        assert "nallocated" not in said
        assert "777.123" not in said
        assert marks(said) == marks(own[0].tenant)


@settings(max_examples=40, deadline=None)
@given(statements())
def test_a_section_speaks_of_its_own_tenant(made):
    """The pages of a statement for many can be handed out one by one."""
    page = Page(rendered(made))
    sections = page.sections if text.is_private(made) else page.sections[1:]
    names = list(dict.fromkeys(use.tenant for use in made.tenants))
    assert len(sections) == len(names)
    for name, words in zip(names, sections, strict=True):
        assert marks(" ".join(words)) <= marks(name)


def test_markup_in_every_text_is_only_text():
    """A name, an account, a note, a seal, a price: none of them is a tag."""
    bad = "<script>alert(1)</script>"
    terms = msgspec.structs.replace(TERMS, price_per_kwh=bad, price_per_gpu_hour=bad, currency=bad)
    use = msgspec.structs.replace(
        KESTREL, tenant=bad, site_energy_from=bad, terms=terms, currency=bad, corrections=[bad],
        gap_hours={bad: 1.0}, throttled_hours={bad: 1.0}, energy_mj=bad, bridged_mj=bad,
    )  # fmt: skip
    job = Use(workload=bad, account=bad)
    made = statement(use, job, site=bad, notes=[bad])
    page = html(made, made_at=bad, seal=bad)
    assert "<script" not in page
    assert Page(page).text.count(bad) >= 18


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Mean utilisation", "not reported"), ("Throttled", "none recorded"),
        ("GPU energy", "not measured"), ("Node energy", "not metered"),
        ("Site energy", "not metered"), ("Peak quarter of an hour", "not measured"),
        ("Contracted", "no contract"), ("Cost", "not priced"), ("Availability", "no contract"),
        ("Coverage", "not known"), ("Not measured", "none recorded"),
        ("GPU-hours by day", "no source"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said_to_be_unknown(label, words):
    """Neither nought nor a blank."""
    assert f"{label} {words}" in Page(rendered(statement(BARE))).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coverage": 0.98999}, "Only 98.99 % of the GPU time was measured."),
        ({"coverage": None}, "It is not known how much of the GPU time was measured."),
        ({"provisional_hours": 0.01}, "<0.1 hours of the period are not closed yet"),
        ({"estimated_share": 0.00001}, "<0.01 % of the energy is estimated"),
        ({"availability_pct": 99.4999}, "Availability was 99.49 %; 99.50 % was promised."),
    ],
)
def test_bad_news_comes_first(change, words):
    """Each kind alone, before any figure; and none of it where all is well."""
    well = msgspec.structs.replace(
        KESTREL, coverage=0.99, provisional_hours=0.0, estimated_share=0.0, availability_pct=99.5
    )
    assert "Please note" not in Page(rendered(statement(well))).text
    page = Page(rendered(statement(msgspec.structs.replace(well, **change)))).text
    before, _, _ = page.partition("GPU-hours allocated")
    assert words in before


def test_jobs_stand_by_energy_and_those_without_last():
    """What was used outside of jobs is one row of them, never the tenant's own figures."""
    page = Page(rendered(statement(*JOBS))).text
    places = [page.index(f" {job} ") for job in ("large †", "no job", "small", "unmeasured")]
    assert places == sorted(places)
    assert "1 of 4 rows are measured in part" in page[: places[0]]
    assert page.index("Closed again.") < places[0]
    assert "GPU-hours allocated" not in page
    kinds = [row["kind"] for row in csv.DictReader(io.StringIO(text.csv(statement(*JOBS, BARE))))]
    assert kinds == ["workload"] * 4 + ["tenant"]
    assert "(no job)" in text.table(statement(*JOBS))


def test_a_gap_is_no_zero_and_is_shaded():
    """Two stretches of line, one shade where nothing was measured."""
    span = plots.span_of(statement())
    picture = plots.curve(KESTREL.curve, span, 12.8)
    (path,) = re.findall(r'class="gpu" d="([^"]+)"', picture)
    assert path.count("M") == 2
    base = plots.Frame(720, 210, (0.0, 1.0)).base
    assert max(float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)", path)) < base
    assert picture.count('class="shade"') == 1
    assert picture.count('class="limit"') == 1
    assert 'class="node"' not in picture


def test_time_without_gpus_is_no_gap():
    """A tenant that held nothing lacks no measurement."""
    idle = [Point(ts_ms=MARCH_1, gpu_kw=None, node_kw=None, gpu_hours=0.0, coverage=None)]
    picture = plots.curve(idle, plots.span_of(statement()), None)
    assert "shade" not in picture
    assert "path" not in picture


@pytest.mark.parametrize(("day", "quarters"), [("2026-03-29", 92), ("2026-10-25", 100)])
def test_days_when_clocks_change(day, quarters):
    """23 and 25 hours, in one bar, and it is said; a quarter later is another day's."""
    until = f"{day[:-2]}{int(day[-2:]) + 1}"
    span = plots.span_of(statement(since=day, until=until))
    assert span.end_ms - span.start_ms == quarters * plots.QUARTER_MS
    curve = [
        Point(ts_ms=span.start_ms + n * plots.QUARTER_MS, gpu_kw=1.0, node_kw=None, gpu_hours=0.25,
              coverage=1.0)
        for n in range(quarters + 1)
    ]  # fmt: skip
    hours = quarters // 4
    assert f"{day}: {hours}.000 GPU-hours" in plots.by_day(curve, span)
    assert plots.odd_days(span) == [f"{day}: {hours} h"]
    month = plots.span_of(statement(since=f"{day[:-2]}01", until=until))
    assert f"{day}: {hours}.000 GPU-hours" in plots.by_day(curve, month)
    assert plots.odd_days(month) == [f"{day}: {hours} h"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timezone": "Europe/Berlim"}, "Europe/Berlim"),
        ({"since": "in March"}, "in March"),
        ({"until": "2026-03-01T00:00:00+01:00"}, "is empty"),
    ],
)
def test_a_period_that_is_none_is_refused(change, words):
    with pytest.raises(Refuse, match=words):
        rendered(statement(KESTREL, **change))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.amount(0.0), "0"), (text.amount(-0.0), "0"), (text.amount(1e-9), "<0.001"),
        (text.amount(99.5), "99.500"), (text.amount(1234567.89), "1\u202f234\u202f567.9"),
        (text.amount(float("nan")), None), (text.at_least(99.999), "99.99"),
        (text.at_least(29.0), "29.00"), (text.at_least(100 * 0.29), "29.00"),
        (text.percent(0.001), "<0.01"), (text.fixed(-1e-9, 2), ">-0.01"),
        (text.amount(1e22), "10\u202f" + "\u202f".join(["000"] * 7) + ".0"),
        (text.clean("a\x1b[2J\n b\u202e"), "a\ufffd[2J b\ufffd"), (text.clean(" "), "(no name)"),
    ],
)  # fmt: skip
def test_how_figures_are_written(written, expected):
    """What is not zero never reads as zero, what is promised is never rounded up."""
    assert written == expected


@given(st.floats(0.001, 1e12))
def test_an_axis_reaches_its_values_in_few_steps(top):
    steps = plots.ticks(top)
    assert steps[-1] >= top * (1 - 1e-6)
    assert 3 <= len(steps) <= 6
    assert steps[-2] < top


@settings(max_examples=60, deadline=None)
@given(statements())
def test_csv_gives_back_every_figure_and_no_formula(made):
    """What is empty is not known; what is there is exact; text cannot run."""
    rows = list(csv.DictReader(io.StringIO(text.csv(made), newline="")))
    uses = text.uses(made)
    assert [row["kind"] for row in rows] == [kind for kind, _ in uses]
    for row, (_, use) in zip(rows, uses, strict=True):
        flat = {n: v for n, v in msgspec.structs.asdict(use).items() if not isinstance(v, list)}
        flat |= {f"throttled_{k}_hours": v for k, v in flat.pop("throttled_hours").items()}
        flat |= {f"gap_{k}_hours": v for k, v in flat.pop("gap_hours").items()}
        terms = flat.pop("terms")
        flat |= {f"terms_{n}": v for n, v in msgspec.structs.asdict(terms).items()} if terms else {}
        flat["from"] = made.since
        for name, value in flat.items():
            if isinstance(value, str):
                assert row[name] in (value, f"'{value}")
                assert not row[name].startswith(FORMULA)
            elif text.known(value) is None:
                assert row[name] == ""
            else:
                assert float(row[name]) == value
                assert "e" not in row[name]


def test_a_terminal_is_not_steered_by_a_name():
    """A row per tenant, the figures to the right, no escape sequences."""
    lines = text.table(statement(Use(tenant="x\x1b[2J\ny"), KESTREL, total=KESTREL)).split("\n")
    assert [line.split("  ")[0] for line in lines] == [
        "tenant", "x\ufffd[2J y", "Kestrel & Sons", "(total)",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


def _write() -> None:
    for name, made in GOLDEN.items():
        (FOLDER / name).write_bytes(made().encode())


if __name__ == "__main__":
    _write()
