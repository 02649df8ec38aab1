// Heat maps: a row of cells for each label, in Cividis; a cell of which nothing is known stays empty.

import uPlot from "./vendor/uplot-1.6.32/uPlot.js";
import { annotationsNear, drawAnnotations, options, sized, tipRow, tooltip } from "./chart.js";
import { cividis } from "./colours.js";
import { h } from "./dom.js";
import { isKnown, largest, series, usualStep } from "./frame.js";
import { format } from "./units.js";

const MOST_ROWS = 128;

export function heatmap(body, panel, context) {
  const { defaults } = panel.fieldConfig, scale = panel.options.color;
  const chart = h("div", { class: "chart" }), key = h("div", { class: "key" }), note = h("p", { class: "note" });
  body.append(chart, key, note);
  let plot = null, answer = null, range = null, rows = [], times = [], built = "", low = 0, high = 1, stepMs = 1000;
  const text = (value) => format(value, defaults.unit, defaults.decimals);
  const stop = sized(chart, () => plot);
  const tip = tooltip(chart, tipLines);

  function draw() {
    const frame = series(answer), cut = largest(frame.series, MOST_ROWS, false);
    rows = cut.shown;
    ({ times } = frame);
    note.textContent = cut.note;
    const known = rows.flatMap((row) => row.values.filter(isKnown));
    const extreme = (pick, start) => known.reduce((a, b) => pick(a, b), start);
    low = scale.min ?? extreme(Math.min, Infinity);
    high = scale.max ?? extreme(Math.max, -Infinity);
    // As wide as the distance of most points, since slow metrics come every few steps only.
    stepMs = Math.max(answer.interval_s * 1000, usualStep(times));
    const name = JSON.stringify([rows.map((row) => row.name), context.theme()]);
    if (plot && name === built) {
      plot.setData([times, times.map(() => null)], false);
      plot.setScale("x", { min: range.from, max: range.to });
    } else {
      plot?.destroy();
      plot = new uPlot(options(chart, () => range, context, mine()), [times, times.map(() => null)], chart);
      built = name;
    }
    drawKey();
  }

  function mine() {
    return {
      series: [{}, { points: { show: false } }], points: { show: false },
      scale: { range: () => [0, Math.max(1, rows.length)] },
      axis: {
        grid: { show: false },
        splits: (p) => labelled(p.bbox.height / devicePixelRatio).map((i) => rows.length - i - 0.5),
        values: (_, at) => at.map((y) => rows[Math.round(rows.length - y - 0.5)]?.name ?? ""),
      },
      hooks: {
        draw: [(p) => { cells(p); drawAnnotations(p, context.annotations()); }],
        setCursor: [tip],
      },
    };
  }

  /** Rows whose name has room. */
  function labelled(heightPx) {
    const every = Math.max(1, Math.ceil(rows.length / Math.max(1, Math.floor(heightPx / 15))));
    return rows.map((_, i) => i).filter((i) => i % every === 0);
  }

  function cells(p) {
    const { ctx, bbox } = p, tall = bbox.height / Math.max(1, rows.length), gap = tall > 6 * devicePixelRatio ? devicePixelRatio : 0;
    const wide = Math.max(1, p.valToPos(range.from + stepMs, "x", true) - p.valToPos(range.from, "x", true));
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    rows.forEach((row, i) => {
      row.values.forEach((value, j) => {
        if (!isKnown(value)) return;
        ctx.fillStyle = cividis(high > low ? (value - low) / (high - low) : 0.5);
        ctx.fillRect(p.valToPos(times[j], "x", true), bbox.top + i * tall, wide + 0.5, tall - gap);
      });
    });
    ctx.restore();
  }

  function tipLines(p) {
    const row = rows[Math.min(rows.length - 1, Math.floor((p.cursor.top / p.over.clientHeight) * rows.length))];
    const at = p.posToVal(p.cursor.left, "x"), j = times.findLastIndex((t) => t <= at);
    if (!row || p.cursor.top < 0) return null;
    const value = j >= 0 && at - times[j] <= stepMs ? row.values[j] : null;
    const shown = !isKnown(value) ? tipRow("", row.name, "no data") : tipRow(cividis((value - low) / (high - low || 1)), row.name, text(value));
    return [shown, ...annotationsNear(p, context.annotations())];
  }

  function drawKey() {
    const ramp = h("i", { class: "ramp" });
    const stops = Array.from({ length: 11 }, (_, i) => cividis(i / 10));
    ramp.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    key.replaceChildren(text(low), ramp, text(high), h("span", { class: "dim" }, "empty: no data"));
  }

  return {
    update(newAnswer, newRange) { answer = newAnswer; range = newRange; draw(); },
    redraw() { if (answer) draw(); },
    reset: () => false,
    destroy() { stop(); plot?.destroy(); },
  };
}
