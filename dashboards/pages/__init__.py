"""The dashboards, in the order in which a person meets them."""

from typing import Final

from dashboards.pages import site
from dashboards.panel import Page

PAGES: Final[tuple[Page, ...]] = (*site.PAGES,)
