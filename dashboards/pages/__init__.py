"""The dashboards, in the order in which a person meets them."""

from typing import Final

from dashboards.pages import alerts, fleet, node, pipeline, site, tenant, workload
from dashboards.panel import Page

PAGES: Final[tuple[Page, ...]] = (
    *site.PAGES,
    *tenant.PAGES,
    *fleet.PAGES,
    *alerts.PAGES,
    *node.PAGES,
    *workload.PAGES,
    *pipeline.PAGES,
)
