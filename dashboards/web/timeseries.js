// Time series: lines or stacked areas, thresholds, annotations, a legend that isolates.

import uPlot from "./vendor/uplot-1.6.32/uPlot.js";
import { annotationsNear, drawAnnotations, line, options, sized, tipRow, tooltip } from "./chart.js";
import { DISTINCT, seriesColour } from "./colours.js";
import { h } from "./dom.js";
import { field, isKnown, largest, series, stacked } from "./frame.js";
import { format, ticks } from "./units.js";

const TIP_ROWS = 12;

export function timeseries(body, panel, context) {
  const defaults = panel.fieldConfig.defaults, custom = defaults.custom ?? {};
  const isStacked = custom.stacking?.mode === "normal";
  const chart = h("div", { class: "chart" }), legend = h("div", { class: "legend", role: "group", "aria-label": "Series: press to show one alone" });
  const note = h("p", { class: "note" });
  body.append(chart, legend, note);
  let plot = null, built = "", shown = [], label = "", range = null, answer = null;
  const alone = new Set();
  const unit = (name) => field(panel, name);
  const text = (one, value) => (!isKnown(value) ? "–" : format(value, unit(one.name).unit, defaults.decimals));
  const visible = () => shown.filter((one) => !alone.size || alone.has(one.name));
  const tip = tooltip(chart, tipLines);
  const stop = sized(chart, () => plot);

  function draw() {
    const frame = series(answer), cut = largest(frame.series, DISTINCT, isStacked);
    ({ shown } = cut);
    // Values side by side are the panel's own; values by a label look the same in every panel.
    label = frame.label || `panel ${panel.id}`;
    for (const name of alone) if (!shown.some((one) => one.name === name)) alone.delete(name);
    note.textContent = cut.note;
    const lines = visible();
    const data = [frame.times, ...(isStacked ? stacked(lines) : lines.map((one) => one.values))];
    const key = JSON.stringify([lines.map((one) => one.name), context.theme()]);
    if (plot && key === built) {
      plot.setData(data, false);
      plot.setScale("x", { min: range.from, max: range.to });
    } else {
      plot?.destroy();
      plot = new uPlot(options(chart, () => range, context, mine(lines)), data, chart);
      built = key;
      drawLegend();
    }
    values();
  }

  function mine(lines) {
    return {
      series: [{}, ...lines.map((one) => {
        const { stroke, dash } = seriesColour(label, one.name);
        return {
          stroke, width: isStacked ? 1 : 1.5, dash: isStacked ? [] : dash, spanGaps: false,
          fill: custom.fillOpacity ? stroke + Math.round(custom.fillOpacity * 2.55).toString(16).padStart(2, "0") : undefined,
          points: { show: true, size: 4, fill: stroke, filter: lonely },
        };
      })],
      bands: isStacked ? lines.slice(1).map((_, i) => ({ series: [i + 2, i + 1] })) : [],
      scale: { range: (_, low, high) => limits(low, high) },
      axis: { values: (_, at) => ticks(at, defaults.unit) },
      hooks: {
        draw: [(p) => { drawThresholds(p); drawAnnotations(p, context.annotations()); }],
        setCursor: [(p) => { tip(p); values(p.cursor.left >= 0 ? p.cursor.idx : null); }],
      },
    };
  }

  function limits(low, high) {
    if (low === null || high === null) [low, high] = [defaults.min ?? 0, defaults.max ?? 1];
    const [a, b] = uPlot.rangeNum(Math.min(low, defaults.min ?? low), Math.max(high, defaults.max ?? high), 0.08, true);
    return [defaults.min ?? a, defaults.max ?? b];
  }

  function drawThresholds(p) {
    if (custom.thresholdsStyle?.mode !== "line") return;
    const { ctx, bbox } = p;
    for (const { value, color } of defaults.thresholds.steps) {
      if (value === null || value < p.scales.y.min || value > p.scales.y.max) continue;
      const y = p.valToPos(value, "y", true);
      ctx.strokeStyle = color;
      line(ctx, bbox.left, y, bbox.left + bbox.width, y, devicePixelRatio, [8, 4]);
    }
  }

  function tipLines(p) {
    const at = p.cursor.idx, lines = visible();
    if (at === null || at === undefined) return null;
    const rows = lines.map((one) => ({ one, value: one.values[at] })).filter((r) => isKnown(r.value));
    rows.sort((a, b) => b.value - a.value);
    const out = rows.slice(0, TIP_ROWS).map(({ one, value }) => tipRow(seriesColour(label, one.name).stroke, one.name, text(one, value)));
    if (rows.length > TIP_ROWS) out.push(tipRow("", `and ${rows.length - TIP_ROWS} more`, ""));
    if (isStacked && rows.length > 1) out.push(tipRow("", "total", format(rows.reduce((s, r) => s + r.value, 0), defaults.unit, defaults.decimals), true));
    if (!rows.length) out.push(tipRow("", "nothing known here", ""));
    return [...out, ...annotationsNear(p, context.annotations())];
  }

  function drawLegend() {
    const seen = alone.size > 0;
    legend.replaceChildren(...shown.map((one) => {
      const mark = h("i", { class: "mark" });
      mark.style.background = seriesColour(label, one.name).stroke;
      const pressed = alone.has(one.name);
      return h("button", {
        type: "button", class: seen && !pressed ? "entry off" : "entry", "aria-pressed": String(pressed), title: one.name,
        onclick: (event) => isolate(one.name, event.ctrlKey || event.metaKey || event.shiftKey),
      }, mark, h("span", {}, one.name), h("b", {}));
    }));
  }

  function isolate(name, add) {
    const only = alone.size === 1 && alone.has(name);
    if (add && alone.has(name)) alone.delete(name);
    else {
      if (!add) alone.clear();
      if (!only || add) alone.add(name);
    }
    draw();
    [...legend.children].find((entry) => entry.title === name)?.focus();
  }

  /** Values under the cursor, or the newest ones. */
  function values(at = null) {
    [...legend.children].forEach((entry, i) => {
      const one = shown[i];
      if (one) entry.lastChild.textContent = text(one, at === null ? one.values.findLast(isKnown) : one.values[at]);
    });
  }

  return {
    update(newAnswer, newRange) { answer = newAnswer; range = newRange; draw(); },
    redraw() { if (answer) draw(); },
    reset() { if (!alone.size) return false; alone.clear(); if (answer) draw(); return true; },
    destroy() { stop(); plot?.destroy(); },
  };
}

/** Points that stand alone between gaps, which no line would show. */
function lonely(plot, at, show, gaps) {
  const values = plot.data[at], out = [];
  const [first, last] = plot.series[0].idxs;
  const joined = (from, step) => {
    let i = from + step;
    while (i >= 0 && i < values.length && values[i] === undefined) i += step;
    return isKnown(values[i]);
  };
  for (let i = first; i <= last; i++) if (isKnown(values[i]) && !joined(i, -1) && !joined(i, 1)) out.push(i);
  return out;
}
