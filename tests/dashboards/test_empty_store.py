"""Every panel before the first sample: no data, and never an error or a line of zeros."""

import time

import pytest

from dashboards.macros import Span, expand
from dashboards.pages import PAGES
from dashboards.panel import Page
from pipeline.store import Store


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.uid)
def test_a_page_of_nothing_is_no_error(store: Store, page: Page) -> None:
    now_ms = int(time.time()) * 1000
    span = Span(now_ms - 3_600_000, now_ms, 5)
    values: dict[str, str] = {}
    for variable in page.variables:
        query = expand(variable.sql, span, values)
        assert not store.query(query.sql, query.parameters).rows
        values[variable.name] = ""  # what Grafana gives where there is nothing to choose
    for panel in (panel for row in page.rows for panel in row if panel.sql):
        query = expand(panel.sql, span, values)
        found = store.query(query.sql, query.parameters).rows
        assert panel.kind not in ("timeseries", "heatmap") or not found, panel.title
