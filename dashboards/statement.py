"""A usage statement as one printable page, without scripts and without anything from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from dashboards import statement_plots as plots
from dashboards.statement_text import (
    Figure,
    amount,
    at_least,
    clean,
    columns,
    figures,
    is_private,
    known,
    money,
    notices,
    share,
    uses,
)
from pipeline.ledger.figures import Statement, Use

_TERMS: Final = (
    ("Active", "GPU time in which at least one kernel ran; idle is the rest that was measured."),
    ("Coverage", "measured GPU time as a share of the GPU time that was to be measured."),
    ("Bridged", "energy over a gap, from the GPU's own energy counter before and after it."),
    ("Estimated", "energy that was bridged, or divided among holders who shared a GPU."),
    ("Provisional", "hours of the period that are not closed: late data may still change them."),
    ("Peak", "the highest mean power of a quarter of an hour by the clock."),
)
_NAMED: Final = 12
"""As many tenants are named in the head of a page."""
_MARKED: Final = "measured in part, provisional, estimated, or below what was promised"
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#16191d;--soft:#555d66;--rule:#cfd5db;--page:#fff;--tint:#f3f5f7;
--blue:#0072b2;--orange:#b34d00;--shade:#d9d3c4;--warn:#fff4d6;--edge:#b07d00}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a5adb6;--rule:#40474f;
--page:#15181b;--tint:#1f2428;--blue:#56b4e9;--orange:#f0a050;--shade:#4a4536;--warn:#3a3010;
--edge:#e0b040}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px;max-width:820px;background:var(--page);color:var(--ink);
font:14px/1.45 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere;print-color-adjust:exact;-webkit-print-color-adjust:exact}
h1{margin:0 0 10px;font-size:25px;line-height:1.2}
h1 small{display:block;font-size:13px;font-weight:400;color:var(--soft)}
h2{margin:30px 0 8px;padding-bottom:4px;border-bottom:2px solid var(--ink);font-size:20px}
h3{margin:20px 0 6px;font-size:15px}
h1,h2,h3,figcaption{break-after:avoid}
dl{display:grid;grid-template-columns:auto 1fr;gap:1px 16px;margin:0}
dt{color:var(--soft)}dd{margin:0}
.seal,.small{font-size:11px;color:var(--soft)}
.seal{font-family:ui-monospace,"DejaVu Sans Mono",monospace}
.notice{margin:10px 0;padding:8px 14px;border:1px solid var(--edge);border-left-width:6px;
background:var(--warn);break-inside:avoid}
.notice ul,.plain{margin:3px 0 0;padding-left:18px}
.tiles{display:grid;grid-template-columns:repeat(4,auto);gap:10px;margin:14px 0;break-inside:avoid}
.tiles div{padding:8px 12px;background:var(--tint);border-top:3px solid var(--blue)}
.tiles b{display:block;font-size:18px;line-height:1.3;white-space:nowrap}
.tiles span{font-size:12px;color:var(--soft)}
.groups{columns:2;column-gap:28px}
table{width:100%;border-collapse:collapse}
caption{padding:8px 0 3px;text-align:left;font-weight:600}
th,td{padding:3px 0;border-top:1px solid var(--rule);vertical-align:top;text-align:left;
font-weight:400}
td{text-align:right;padding-left:10px;white-space:nowrap}
.groups table{break-inside:avoid;margin-bottom:8px}
.of th{padding-left:14px;color:var(--soft)}
.none{color:var(--soft);font-style:italic;white-space:normal;overflow-wrap:normal}
.wide{overflow-x:auto}
.list{font-size:12px}
.list thead{display:table-header-group}
.list thead th{border-top:0;border-bottom:1.5px solid var(--ink);font-weight:600;
vertical-align:bottom;text-align:right;padding-left:10px;overflow-wrap:normal}
.list thead th.name{text-align:left;padding-left:0}
.list tbody th{min-width:8em}
.list td.name{text-align:left;white-space:normal}
.list tr{break-inside:avoid}
.list .total>*{border-top:1.5px solid var(--ink);font-weight:700}
figure{margin:14px 0 0;break-inside:avoid}
figcaption{font-weight:600}
.pair{display:grid;grid-template-columns:430fr 280fr;gap:10px;break-inside:avoid}
.legend{margin:0;font-size:12px;color:var(--soft)}
.legend span{margin-right:18px;white-space:nowrap}
.legend svg{display:inline-block;width:26px;height:10px;margin-right:5px;vertical-align:baseline;stroke-width:2}
svg{display:block;width:100%;height:auto}
svg text{font-size:10px;fill:var(--soft)}
.value{text-anchor:end}.time{text-anchor:middle}
.grid,.mark{stroke:var(--rule);stroke-width:1}
.gpu,.node,.limit{fill:none;stroke:var(--blue);stroke-width:1.2;stroke-linecap:square}
.node{stroke:var(--soft);stroke-width:.7}
.limit{stroke:var(--orange);stroke-dasharray:7 4;stroke-linecap:butt;stroke-width:1.6}
.shade{fill:var(--shade)}.bar{fill:var(--blue)}
footer{margin-top:26px;padding-top:8px;border-top:1px solid var(--rule);font-size:11px;
color:var(--soft);break-inside:avoid}
footer p{margin:0 0 3px}
@media screen and (max-width:640px){body{padding:14px}.groups{columns:1}
.tiles{grid-template-columns:1fr 1fr}.pair{grid-template-columns:1fr}
.plot{overflow-x:auto}.curve svg{min-width:560px}.legend svg{min-width:0}
.list table{min-width:640px}}
@page{margin:14mm 14mm 17mm;@bottom-left{content:"Usage statement";font:8pt sans-serif;color:#555}
@bottom-right{content:counter(page) " / " counter(pages);font:8pt sans-serif;color:#555}}
@media print{body{max-width:none;padding:0;font-size:11px}h1{font-size:21px}
th,td{padding:2px 0}td{padding-left:8px}.list{font-size:10px}.legend{font-size:10px}.tiles b{font-size:15px}
.holder{break-before:page}
.holder h2{margin-top:0}.own{break-before:auto}.wide,.plot{overflow:visible}}
"""


def html(statement: Statement, *, made_at: str, seal: str = "") -> str:
    """The whole page: a tenant's own, or a summary and then a section per tenant.

    `made_at` is printed as it is given; `seal` is the SHA-256 of the sealed statement. Raises
    Refuse for a period that is empty or a time zone that is not known.
    """
    span, own = plots.span_of(statement), is_private(statement)
    holders = list(dict.fromkeys(use.tenant for use in statement.tenants))
    whose = holders[0] if own else statement.site
    title = f"Usage of {'no tenant' if whose is None else clean(whose)}, {_period(span)}"
    body = [
        _head(statement, span, made_at, seal),
        "" if own else _summary(statement, span),
        *(_holder(statement, tenant, span) for tenant in holders),
        _foot(),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(clean(text))


def _name(tenant: str | None) -> str:
    """Set apart from its surroundings, whichever way it is written."""
    return "no tenant" if tenant is None else f"<bdi>{_text(tenant)}</bdi>"


def _value(text: str | None, unit: str = "", missing: str = "no source") -> str:
    """A figure with its unit, or the words for its absence."""
    if text is None:
        return f'<span class="none">{missing}</span>'
    return escape(f"{text} {unit}".rstrip()).replace(" ", "\u00a0")


def _period(span: plots.Span) -> str:
    return " to ".join(f"{span.local(ms):%Y-%m-%d %H:%M}" for ms in (span.start_ms, span.end_ms))


def _list(lines: Iterable[str]) -> str:
    return f'<ul class="plain">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>'


def _head(statement: Statement, span: plots.Span, made_at: str, seal: str) -> str:
    names = [_name(tenant) for tenant in dict.fromkeys(use.tenant for use in statement.tenants)]
    own = is_private(statement)
    facts = {
        "Site": _text(statement.site),
        "Tenant" if own else "Tenants": (
            ", ".join(names) if 0 < len(names) <= _NAMED else f"{len(names)}, listed below"
        ),
        "Period": f"{_period(span)}, the end not included",
        "Time zone": _text(statement.timezone),
        "Made at": _text(made_at),
    }
    if seal:
        facts["Seal (SHA-256)"] = f'<span class="seal">{_text(seal)}</span>'
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    notes = f"<h3>Notes</h3>{_list(statement.notes)}" if statement.notes else ""
    title = names[0] if own else _text(statement.site)
    return f"<header><h1><small>Usage statement</small>{title}</h1><dl>{rows}</dl>{notes}</header>"


def _foot() -> str:
    terms = "".join(f"<p><b>{name}:</b> {meaning}</p>" for name, meaning in _TERMS)
    return f"<footer>{terms}</footer>"


def _holder(statement: Statement, tenant: str | None, span: plots.Span) -> str:
    """A tenant's section: its figures and plots, or its jobs."""
    held = [(kind, use) for kind, use in uses(statement) if use.tenant == tenant]
    jobs = [use for kind, use in held if kind == "workload"]
    own = is_private(statement)
    title = "" if own else f"<h2>{_name(tenant)}</h2>"
    whole = "".join(_whole(use, span) for kind, use in held if kind == "tenant")
    return (
        f'<section class="holder{" own" if own else ""}">{title}{whole}'
        f"{_jobs(jobs) if jobs else ''}</section>"
    )


def _whole(use: Use, span: plots.Span) -> str:
    groups = "".join(
        f"<table><caption>{title}</caption><tbody>{''.join(map(_row, rows))}</tbody></table>"
        for title, rows in figures(use, span.when).items()
    )
    curve, bars = _curve(use, span), _bars(use, span)
    news = _bad_news(notices(use), use.corrections)
    return f'{news}{_tiles(use)}{curve}<div class="groups">{groups}</div>{bars}'


def _bad_news(sentences: Sequence[str], corrections: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    notice = f'<div class="notice"><b>Please note</b><ul>{items}</ul></div>' if items else ""
    again = list(dict.fromkeys(corrections))
    return notice + (f"<h3>Corrections</h3>{_list(again)}" if again else "")


def _row(figure: Figure) -> str:
    part = ' class="of"' if figure.part else ""
    value = _value(figure.text, figure.unit, figure.missing)
    return f'<tr{part}><th scope="row">{_text(figure.label)}</th><td>{value}</td></tr>'


def _tiles(use: Use) -> str:
    tiles = {
        "GPU-hours allocated": _value(amount(use.gpu_hours_allocated), "h"),
        "GPU energy": _value(amount(use.gpu_energy_kwh), "kWh", "not measured"),
        "Peak quarter of an hour": _value(amount(use.peak_15min_kw), "kW", "not measured"),
    }
    if use.cost is None:
        tiles["Coverage"] = _value(at_least(share(use.coverage)), "%", "not known")
    else:
        tiles["Cost"] = _value(money(use.cost, use.currency))
    cells = "".join(
        f"<div><span>{name}</span><b>{value}</b></div>" for name, value in tiles.items()
    )
    return f'<div class="tiles">{cells}</div>'


def _curve(use: Use, span: plots.Span) -> str:
    contracted = known(use.terms.contracted_kw) if use.terms else None
    picture = plots.curve(use.curve, span, contracted) if use.curve else ""
    return _figure("Power by quarter of an hour, kW", picture, _legend(use), "curve")


def _bars(use: Use, span: plots.Span) -> str:
    """GPU-hours by day and by utilisation, side by side."""
    days = plots.by_day(use.curve, span) if use.curve else ""
    histogram = plots.histogram(use.histogram_hours) if use.histogram_hours else ""
    odd = ", ".join(plots.odd_days(span))
    note = f'<p class="legend">Not 24 hours long: {odd}</p>' if odd and days else ""
    by_day = _figure("GPU-hours by day", days, note)
    by_utilization = _figure("GPU-hours by mean utilisation, %", histogram)
    return f'<div class="pair">{by_day}{by_utilization}</div>'


def _figure(title: str, picture: str, below: str = "", kind: str = "") -> str:
    picture = picture or f"<p>{_value(None)}</p>"
    return (
        f'<figure class="{kind}"><figcaption>{title}</figcaption>'
        f'<div class="plot">{picture}</div>{below}</figure>'
    )


def _legend(use: Use) -> str:
    """What the lines and shades are, of those that are there."""
    keys = [
        ("gpu", "GPUs", any(p.gpu_kw is not None for p in use.curve)),
        ("node", "nodes, by meter (thin line)", any(p.node_kw is not None for p in use.curve)),
        ("shade", "less than 99 % measured", any(map(plots.is_partial, use.curve))),
    ]
    swatches = [_swatch(kind, text) for kind, text, shown in keys if shown]
    if use.curve and use.terms:
        swatches.append(
            _swatch("limit", f"contracted {_value(amount(use.terms.contracted_kw), 'kW')}")
        )
    return f'<p class="legend">{"".join(swatches)}</p>' if swatches else ""


def _swatch(kind: str, text: str) -> str:
    shape = f'<line class="{kind}" x1="0" x2="26" y1="5" y2="5"/>'
    if kind == "shade":
        shape = '<rect class="shade" width="26" height="10"/>'
    return f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{shape}</svg>{text}</span>'


def _summary(statement: Statement, span: plots.Span) -> str:
    """The table of tenants, what nobody held and the total; the total's notices and plots."""
    total = statement.total
    names = {"unallocated": "Unallocated", "total": "Total"}
    found = [(kind, use) for kind, use in uses(statement) if kind != "workload"]
    rows = [([names.get(kind) or _name(use.tenant)], use) for kind, use in found]
    by_job = dict.fromkeys(_name(u.tenant) for kind, u in uses(statement) if kind == "workload")
    below = f"<p>By job, in the sections below: {', '.join(by_job)}</p>" if by_job else ""
    news = _bad_news(notices(total), total.corrections) if total else ""
    plotted = _curve(total, span) + _bars(total, span) if total and total.curve else ""
    return (
        f'<section class="summary"><h2>Summary</h2>{news}'
        f"{_listed(['Tenant'], rows, total=total)}{below}{plotted}</section>"
    )


def _jobs(jobs: Sequence[Use]) -> str:
    """A tenant's jobs and what it used outside of them, the largest energy first."""
    ordered = sorted(jobs, key=lambda u: (u.gpu_energy_kwh is None, -(u.gpu_energy_kwh or 0.0)))
    rows = [([_job(u), _value(u.account and clean(u.account), missing="none")], u) for u in ordered]
    marked = sum(bool(notices(use)) for use in jobs)
    said = [f"{marked} of {len(jobs)} rows are {_MARKED}: they are marked †."] if marked else []
    news = _bad_news(said, (again for use in jobs for again in use.corrections))
    return f"{news}<h3>Jobs by energy</h3>{_listed(['Job', 'Account'], rows)}"


def _job(use: Use) -> str:
    return _value(None, missing="no job") if use.workload is None else _name(use.workload)


def _listed(
    names: Sequence[str], rows: Sequence[tuple[Sequence[str], Use]], total: Use | None = None
) -> str:
    """A table with a row per use; the names' cells are HTML. Its last row may be the total."""
    table = [columns(use) for _, use in rows]
    shown = [n for n, column in enumerate(zip(*table, strict=True)) if any(f.text for f in column)]
    heads = [f'<th scope="col" class="name">{name}</th>' for name in names]
    heads += [f'<th scope="col">{escape(columns(Use())[n].label)}</th>' for n in shown]
    lines = []
    for ((first, *others), use), figured in zip(rows, table, strict=True):
        cells = [f'<td class="name">{other}</td>' for other in others]
        cells += [f"<td>{_value(figured[n].text, missing=figured[n].missing)}</td>" for n in shown]
        kind = ' class="total"' if use is total else ""
        mark = " †" if notices(use) else ""
        lines.append(f'<tr{kind}><th scope="row">{first}{mark}</th>{"".join(cells)}</tr>')
    below = [f"{f.label}: {f.missing}" for n, f in enumerate(columns(Use())) if n not in shown]
    if any(notices(use) for _, use in rows):
        below.append(f"† {_MARKED}")
    return (
        f'<div class="wide list"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="small">{escape("; ".join(below))}</p>'
    )
