"""The console in a real browser, over a store that a real simulation filled.

With MEGAWATCH_SCREENSHOTS=FOLDER, pictures of every dashboard are written there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.console import Console
from dashboards.console_pages import FOLDER, read
from dashboards.pages import PAGES
from pipeline.errors import Unavailable
from pipeline.settings import ClickHouse
from pipeline.store import Store
from tests.real.conftest import require_real

pytestmark = pytest.mark.real

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 75
"""Of the simulation: long enough for a whole minute of rollups."""
UIDS = list(read(FOLDER, [page.uid for page in PAGES]))
WIDE = {"width": 1440, "height": 1000}
PHONE = {"width": 390, "height": 844}


def chromium() -> Any:
    """A started browser; raises Unavailable."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Unavailable("the package playwright is not installed") from error
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise Unavailable(f"none of {', '.join(NAMES)} is on the PATH")
    driver = sync_playwright().start()
    return driver, driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver, started = require_real("Chromium", chromium)
    yield started
    started.close()
    driver.stop()


@pytest.fixture(scope="module")
def served(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A console over a store that `megawatch up` filled, and the milliseconds that it covers."""
    data = tmp_path_factory.mktemp("browser") / "data"
    subprocess.run(
        [sys.executable, "-m", "megawatch", "up", "--simulate", "4", "--duration", str(SECONDS),
         "--listen", "127.0.0.1:0", "--data", str(data), "--json"],
        check=True, capture_output=True, timeout=SECONDS + 120,
        env=os.environ | {"MEGAWATCH_AGENT__LISTEN": "127.0.0.1:0"},
    )  # fmt: skip
    store = Store(ClickHouse(data=str(data)))
    console = Console(store, "127.0.0.1:0")
    span = store.query(
        "SELECT toUnixTimestamp(min(ts)) * 1000, toUnixTimestamp(max(ts)) * 1000 FROM power_seconds"
    ).rows[0]
    yield console.url.rstrip("/"), span
    console.close()
    store.close()


class Tab:
    """A page that remembers what its console complained of."""

    def __init__(self, browser: Any, base: str, **context: Any) -> None:
        self.context = browser.new_context(viewport=WIDE, timezone_id="UTC", **context)
        self.page = self.context.new_page()
        self.base = base
        self.complaints: list[str] = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        self.page.goto(self.base + path)
        self.settle()
        return self.page

    def settle(self) -> None:
        """Until every panel in view has its answer, and all of them have been in view."""
        page = self.page
        page.wait_for_selector("#grid .panel")
        height = page.evaluate("document.documentElement.scrollHeight")
        for top in [*range(0, height, 700), 0]:
            page.evaluate(f"scrollTo(0, {top})")
            page.wait_for_timeout(120)
            until(page, "!document.querySelector('.panel.loading')")
        page.wait_for_timeout(100)


def until(page: Any, truth: str) -> None:
    """Wait for a JavaScript expression; the driver's own way is what the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(truth):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {truth}")


@pytest.fixture
def tab(browser: Any, served: Any) -> Iterator[Tab]:
    made = Tab(browser, served[0])
    yield made
    made.context.close()


def address(served: Any, uid: str, **more: str) -> str:
    """Of a dashboard over just the range that has data."""
    since, last = served[1]
    more = {"from": str(since), "to": str(last), "refresh": "off"} | more
    return f"/d/{uid}?" + "&".join(f"{name}={value}" for name, value in more.items())


def asked(page: Any, name: str) -> str:
    """A parameter of the page's address."""
    found: str = page.evaluate(f"new URLSearchParams(location.search).get('{name}') ?? ''")
    return found


def chart(page: Any) -> Any:
    """Where the first chart is, brought into view."""
    found = page.locator(".timeseries .u-over").first
    found.scroll_into_view_if_needed()
    return found.bounding_box()


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("MEGAWATCH_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("uid", UIDS)
def test_a_dashboard_opens_without_complaint_and_shows_values(
    tab: Tab, served: Any, uid: str, theme: str
) -> None:
    page = tab.open(address(served, uid, theme=theme))
    shoot(page, f"{uid}-{theme}")
    assert tab.complaints == []
    assert page.locator(".message.error").all_inner_texts() == []
    assert page.locator("#notice").inner_text() == ""
    shown = page.locator(".value:not(.none), .entry b, td, .bars b, canvas")
    assert any(re.search(r"\d", text) for text in shown.all_inner_texts())


def test_the_root_shows_the_first_dashboard_and_the_address_says_all(tab: Tab) -> None:
    page = tab.open("/")
    assert page.evaluate("location.pathname") == f"/d/{UIDS[0]}"
    assert asked(page, "from").startswith("now-")
    assert asked(page, "to") == "now"
    assert asked(page, "var-site")


def test_stale_data_says_since_when(tab: Tab, served: Any) -> None:
    page = tab.open("/?from=now-6h&to=now&refresh=off")
    newest = page.locator("#fresh")
    until(page, "document.getElementById('fresh').textContent")
    # The suite may come here within half a minute, when the store is still fresh.
    assert re.match(r"live, \d+ s behind|no samples since \d\d", newest.inner_text())


def test_a_drag_zooms_in_and_back_returns(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    before = page.evaluate("location.search")
    box = chart(page)
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
    page.mouse.up()
    until(page, f"location.search !== {json.dumps(before)}")
    since, last = served[1]
    share = (int(asked(page, "to")) - int(asked(page, "from"))) / (last - since)
    assert share == pytest.approx(0.3, abs=0.03)
    page.go_back()
    until(page, f"location.search === {json.dumps(before)}")
    assert tab.complaints == []


def test_the_cursor_is_shared_and_the_tooltip_names_values(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    box = chart(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".tip.seen")
    assert re.search(r"\d\s?k?W", page.locator(".tip.seen").inner_text())
    assert page.locator(".tip.seen").count() == 1
    places = page.locator(".timeseries .u-cursor-x").evaluate_all(
        "all => all.map(e => e.style.transform)"
    )
    assert len(places) > 1
    assert all(place and "-10px" not in place for place in places)


def test_a_legend_entry_isolates_its_series(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    entries = page.locator(".timeseries").first.locator(".entry")
    entries.nth(1).click()
    assert entries.nth(1).get_attribute("aria-pressed") == "true"
    assert "off" in entries.nth(0).get_attribute("class")
    page.keyboard.press("Escape")
    assert "off" not in entries.nth(0).get_attribute("class")


def test_a_variable_is_searched_and_chosen_by_keyboard(tab: Tab, served: Any) -> None:
    uid = "megawatch-node"
    if uid not in UIDS:
        pytest.skip("there is no page of nodes")
    page = tab.open(address(served, uid))
    page.locator("#vars button").last.click()
    page.keyboard.type("n02")
    page.keyboard.press("Enter")
    until(page, "/var-node=[^&]*n02/.test(location.search)")
    until(page, "[...document.querySelectorAll('#vars button')].at(-1).textContent.includes('n02')")
    tab.settle()
    assert page.locator(".message.error").count() == 0


def test_a_value_that_is_not_there_is_said(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0], **{"var-site": "12345"}))
    assert "there is no site “12345” here" in page.locator("#notice").inner_text()
    assert asked(page, "var-site") != "12345"


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Any, served: Any) -> None:
    tab = Tab(browser, served[0], color_scheme="dark")
    page = tab.open("/")
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    page.locator("#theme").click()
    page.locator("#theme").click()
    until(page, "document.documentElement.dataset.theme === 'light'")
    assert asked(page, "theme") == "light"
    assert page.evaluate(back) != dark
    tab.context.close()


def test_the_range_is_moved_and_chosen_by_keyboard(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    since, last = served[1]
    page.keyboard.press("ArrowLeft")
    until(page, f"location.search.includes('from={since - (last - since) // 2}')")
    page.locator("#time").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".popover")
    page.keyboard.press("Escape")
    assert page.locator(".popover").count() == 0
    assert page.evaluate("document.activeElement.id") == "time"


def test_a_wrong_time_is_said_in_the_picker(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    page.locator("#time").click()
    page.locator("#from").fill("yesterday-ish")
    page.locator(".popover .primary").click()
    assert "write a time as" in page.locator(".popover .wrong").inner_text()


@pytest.mark.parametrize("uid", UIDS)
def test_a_phone_shows_one_column(browser: Any, served: Any, uid: str) -> None:
    tab = Tab(browser, served[0], has_touch=True, is_mobile=True)
    tab.page.set_viewport_size(PHONE)
    page = tab.open(address(served, uid))
    shoot(page, f"{uid}-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    lefts = page.locator(".panel").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().left)"
    )
    assert len(set(lefts)) == 1
    tab.context.close()


def test_an_error_stands_in_its_panel(tab: Tab, served: Any) -> None:
    tab.page.route(
        "**/api/query/**",
        lambda route: route.fulfill(status=500, json={"error": "the query failed: on purpose"}),
    )
    page = tab.open(address(served, UIDS[0]))
    assert set(page.locator(".message.error").all_inner_texts()) == {"the query failed: on purpose"}


def test_a_panel_that_the_console_does_not_know_says_so(tab: Tab, served: Any) -> None:
    def changed(route: Any) -> None:
        tree = json.loads((FOLDER / f"{UIDS[0]}.json").read_text())
        tree["panels"][1]["type"] = "piechart"
        tree["panels"][2]["options"]["surprise"] = 1
        route.fulfill(json=tree)

    tab.page.route(f"**/api/dashboards/{UIDS[0]}", changed)
    page = tab.open(address(served, UIDS[0]))
    said = page.locator(".message.error").all_inner_texts()
    assert said[0] == "this console cannot draw a panel of type piechart"
    assert re.fullmatch(r"this console cannot draw \w+\.options\.surprise", said[1])


def test_the_csv_of_a_panel_is_what_it_shows(tab: Tab, served: Any) -> None:
    page = tab.open(address(served, UIDS[0]))
    link = page.locator(".timeseries .tool[download]").first.get_attribute("href")
    text = page.evaluate(f"fetch({json.dumps(link)}).then(a => a.text())")
    assert text.startswith("time,")
    assert text.count("\n") > 10


UNITS = [
    ([42414, "watt"], "42.41 kW"), ([0, "watt"], "0 W"), ([-10890, "watt"], "-10.89 kW"),
    ([1.5e9, "watt"], "1.50 GW"), ([700, "watt"], "700 W"), ([2.5, "kwatt"], "2.50 kW"),
    ([64, "celsius"], "64 °C"), ([0.998, "percentunit"], "99.8 %"), ([100, "percent"], "100 %"),
    ([90, "s"], "1.50 min"), ([0.25, "s"], "250.0 ms"), ([1500, "ms"], "1.50 s"),
    ([1073741824, "bytes"], "1.00 GiB"), ([1e9, "decbytes"], "1.00 GB"), ([12345, "none"], "12,345"),
    ([12345, "short"], "12.35 K"), ([7, "short"], "7"), ([3, "furlong"], "3 furlong"),
    ([-0.00000000001, "short", 2], "0.00"), ([5, "suffix:GPUs"], "5 GPUs"), ([2, "currencyEUR", 2], "€2.00"),
    ([999.97, "watt"], "1.00 kW"), ([0.00042, "MW/s"], "0.000420 MW/s"), ([8, "watt", 1], "8.0 W"),
]  # fmt: skip


def test_units_are_written_as_people_write_them(tab: Tab) -> None:
    page = tab.open("/")
    calls = json.dumps([call for call, _ in UNITS])
    got = page.evaluate(
        f"import('/static/units.js').then(m => {calls}.map(call => m.format(...call)))"
    )
    assert got == [text for _, text in UNITS]
    ticks = page.evaluate(
        "import('/static/units.js').then(m => [m.ticks([0, 2.5, 5], 'none'), m.ticks([0, 20000], 'watt')])"
    )
    assert ticks == [["0.0", "2.5", "5.0"], ["0 kW", "20 kW"]]


FRAMES = """import('/static/frame.js').then(m => {
  const answer = (times, names, values) => ({ names: ['time', 'l', 'v'],
    kinds: ['time', 'text', 'number'], columns: [times, names, values], interval_s: 1 });
  const gap = m.series(answer([0, 1000, 2000, 9000, 10000], ['a', 'a', 'a', 'a', 'a'], [1, 2, 3, 4, 5]));
  const many = m.series(answer(Array(230).fill(0), [...Array(230).keys()].map(i => `g${i}`), [...Array(230).keys()]));
  const top = m.largest(many.series, 24, false), summed = m.largest(many.series, 24, true);
  return { times: gap.times, values: gap.series[0].values, many: many.series.length,
    top: [top.shown.length, top.shown[0].name, top.note], note: summed.note,
    total: m.stacked(summed.shown).at(-1)[0], other: summed.shown.at(-1).name,
    hole: m.stacked([{ values: [1, null, null] }, { values: [2, 3, null] }]) };
})"""


def test_gaps_stay_gaps_and_many_series_are_cut_honestly(tab: Tab) -> None:
    got = tab.open("/").evaluate(FRAMES)
    assert got["times"] == [0, 1000, 2000, 3000, 9000, 10000]
    assert got["values"] == [1, 2, 3, None, 4, 5]
    assert got["many"] == 230
    assert got["top"] == [24, "g206", "24 of 230 shown: those with the highest values"]
    assert got["note"] == "23 of 230 shown, the rest is summed"
    assert got["total"] == sum(range(230))
    assert got["other"] == "207 others"
    assert got["hole"] == [[1, 0, None], [3, 3, None]]
