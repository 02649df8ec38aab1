"""Pages as Grafana's dashboard JSON, by the foundation SDK: needed to generate, not to run."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    gauge,
    heatmap,
    stat,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.text import TextMode

from dashboards.panel import GOOD, WIDTH, Annotation, Page, Panel, Variable

PLUGIN: Final = "grafana-clickhouse-datasource"
PLUGIN_VERSION: Final = "4.20.0"
DATASOURCE: Final = {"type": PLUGIN, "uid": "${ds}"}
TAG: Final = "megawatch"
SCHEMA_VERSION: Final = 41

_SOURCE: Final = model.DataSourceRef(type_val=PLUGIN, uid="${ds}")
_TIME_SERIES, _TABLE = 0, 1
"""Formats of the data source's answers."""


class _Query(variants.Dataquery):
    """A target of the ClickHouse data source."""

    def __init__(self, sql: str, fmt: int) -> None:
        self._json = query(sql, fmt)

    def build(self) -> Self:
        return self

    def to_json(self) -> dict[str, object]:
        return self._json

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data["rawSql"], data["format"])


def query(sql: str, fmt: int = _TABLE) -> dict[str, object]:
    """A target in the data source's own form."""
    return {
        "refId": "A", "datasource": DATASOURCE, "pluginVersion": PLUGIN_VERSION,
        "editorType": "sql", "rawSql": sql, "format": fmt,
        "queryType": "timeseries" if fmt == _TIME_SERIES else "table", "meta": {},
    }  # fmt: skip


def rendered(page: Page) -> dict[str, Any]:
    """A page as what Grafana imports."""
    made = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.answers)
        .tags([TAG])
        .refresh(page.refresh)
        .time(page.since, "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Megawatch")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
            .as_dropdown(False)
        )
        .with_variable(dashboard.DatasourceVariable("ds").type(PLUGIN).label("Data source"))
    )
    for variable in page.variables:
        made.with_variable(_variable(variable))
    number, top = 1, 0
    for row in (_head(page), *page.rows):
        left = 0
        for panel in row:
            built = _BUILDERS[panel.kind](panel)
            _common(built, panel)
            built.id(number).grid_pos(model.GridPos(h=panel.height, w=panel.width, x=left, y=top))
            made.with_panel(built)
            number, left = number + 1, left + panel.width
        assert left <= WIDTH, f"{page.uid}: the row of {row[0].title!r} is wider than the page"
        top += max(panel.height for panel in row)
    out: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    out["schemaVersion"] = SCHEMA_VERSION
    out["annotations"] = {"list": [_annotation(a) for a in page.annotations]}
    for variable_json in out["templating"]["list"]:
        # The SDK writes an interval variable's settings on every kind.
        for key in [k for k in variable_json if k.startswith("auto")]:
            del variable_json[key]
    return out


def _head(page: Page) -> tuple[Panel, ...]:
    return (Panel(kind="text", title="", content=page.answers, width=WIDTH, height=2),)


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_SOURCE)
        .query(variable.sql)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _annotation(annotation: Annotation) -> dict[str, object]:
    return {
        "name": annotation.name, "enable": True, "hide": False, "iconColor": annotation.color,
        "datasource": DATASOURCE, "target": query(annotation.sql),
    }  # fmt: skip


def _common(built: Any, panel: Panel) -> None:
    """What every panel has."""
    built.title(panel.title).description(panel.description)
    if panel.kind == "text":
        built.transparent(True)
        return
    built.datasource(_SOURCE).unit(panel.unit).no_value(panel.no_value)
    built.with_target(_Query(panel.sql, _FORMATS[panel.kind]))
    for name in ("decimals", "min", "max"):
        if getattr(panel, name) is not None:
            getattr(built, name)(getattr(panel, name))
    if panel.label:
        built.display_name(f"${{__field.labels.{panel.label}}}")
    steps = [model.Threshold(None, GOOD), *(model.Threshold(v, c) for v, c in panel.thresholds)]
    built.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    for column, unit in panel.columns.items():
        built.override_by_name(column, [model.DynamicConfigValue("unit", unit)])


_FORMATS: Final[Mapping[str, int]] = {
    "timeseries": _TIME_SERIES, "heatmap": _TIME_SERIES, "stat": _TABLE, "gauge": _TABLE,
    "bargauge": _TABLE, "table": _TABLE,
}  # fmt: skip


def _timeseries(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(60 if panel.stacked else 0)
        .show_points(shared.VisibilityMode.AUTO)
        .color_scheme(_color(model.FieldColorModeId.PALETTE_CLASSIC))
        .tooltip(
            common.VizTooltipOptions()
            .mode(shared.TooltipDisplayMode.MULTI)
            .sort(shared.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.thresholds:
        built.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shared.GraphThresholdsStyleMode.LINE)
        )
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL).group("A"))
    return built


def _color(mode: model.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _last(*, values: bool = False, fields: str = "") -> common.ReduceDataOptions:
    return common.ReduceDataOptions().values(values).calcs(["lastNotNull"]).fields(fields)


def _stat(panel: Panel) -> stat.Panel:  # noqa: ARG001, as all builders are called
    return (
        stat.Panel()
        .reduce_options(_last(fields="/.*/"))
        .color_mode(shared.BigValueColorMode.VALUE)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .text_mode(shared.BigValueTextMode.VALUE_AND_NAME)
        .justify_mode(shared.BigValueJustifyMode.AUTO)
        .color_scheme(_color(model.FieldColorModeId.THRESHOLDS))
    )


def _gauge(panel: Panel) -> gauge.Panel:  # noqa: ARG001
    return (
        gauge.Panel()
        .reduce_options(_last())
        .color_scheme(_color(model.FieldColorModeId.THRESHOLDS))
    )


def _bargauge(panel: Panel) -> bargauge.Panel:  # noqa: ARG001
    return (
        bargauge.Panel()
        .reduce_options(_last(values=True))
        .orientation(shared.VizOrientation.HORIZONTAL)
        .display_mode(shared.BarGaugeDisplayMode.BASIC)
        .value_mode(shared.BarGaugeValueMode.TEXT)
        .color_scheme(_color(model.FieldColorModeId.THRESHOLDS))
    )


def _table(panel: Panel) -> table.Panel:
    built = table.Panel().show_header(True).cell_height(shared.TableCellHeight.SM)
    for column, url in panel.links.items():
        link = {"title": f"Open {column}", "url": f"{url}&${{__url_time_range}}"}
        built.override_by_name(column, [model.DynamicConfigValue("links", [link])])
    for column in panel.hidden:
        built.override_by_name(column, [model.DynamicConfigValue("custom.hidden", True)])
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    color = (
        heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Cividis").steps(64)
    )
    if panel.min is not None:
        color.min(panel.min)
    if panel.max is not None:
        color.max(panel.max)
    return heatmap.Panel().calculate(False).color(color).show_legend()


_BUILDERS: Final[Mapping[str, Callable[[Panel], Any]]] = {
    "timeseries": _timeseries, "stat": _stat, "gauge": _gauge, "bargauge": _bargauge,
    "table": _table, "heatmap": _heatmap,
    "text": lambda panel: text.Panel().mode(TextMode.MARKDOWN).content(panel.content),
}  # fmt: skip
