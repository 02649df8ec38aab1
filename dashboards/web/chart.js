// What time series and heat maps have in common: axes, zoom by drag, synchronised cursor, tooltip.

import uPlot from "./vendor/uplot-1.6.32/uPlot.js";
import { ink } from "./colours.js";
import { h } from "./dom.js";
import { full } from "./units.js";

const FONT = '11px system-ui, -apple-system, "Segoe UI", sans-serif';
const MIN_ZOOM_MS = 5000;

/** uPlot's options for a chart over `range` whose y axis and drawing are the caller's. */
export function options(element, range, context, mine) {
  const look = ink();
  // A drag is told to every synchronised chart; the one in which it began zooms.
  let began = false;
  element.onpointerdown = () => { began = true; };
  const axis = { stroke: look.text, font: FONT, grid: { stroke: look.grid, width: 1 }, ticks: { stroke: look.grid, width: 1, size: 4 } };
  return {
    width: Math.max(60, element.clientWidth), height: Math.max(40, element.clientHeight),
    ms: 1, padding: [10, 12, 0, 0], legend: { show: false },
    scales: { x: { time: true, range: () => [range().from, range().to] }, y: mine.scale },
    axes: [{ ...axis, space: 70, size: 26, gap: 2, values: clock }, { ...axis, size: (plot, labels) => Math.max(36, 12 + 6.4 * Math.max(0, ...(labels ?? []).map((l) => l.length))), ...mine.axis }],
    series: mine.series, bands: mine.bands,
    cursor: {
      sync: { key: "megawatch", scales: ["x", null], setSeries: false },
      drag: { x: true, y: false, setScale: false }, y: false, points: mine.points ?? { size: 6 },
    },
    hooks: {
      ...mine.hooks,
      setSelect: [(plot) => {
        const { left, width } = plot.select;
        if (!began || width < 6) return;
        began = false;
        const from = plot.posToVal(left, "x"), to = plot.posToVal(left + width, "x");
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        if (to - from >= MIN_ZOOM_MS) context.zoom(Math.round(from), Math.round(to));
      }],
    },
  };
}

const two = (n) => String(n).padStart(2, "0");

/** Times as hours and minutes, seconds where they tell ticks apart, and the date at midnight. */
function clock(plot, splits) {
  const apart = splits.length > 1 ? splits[1] - splits[0] : 0;
  return splits.map((ms) => {
    const t = new Date(ms), date = `${two(t.getMonth() + 1)}-${two(t.getDate())}`;
    if (apart >= 864e5 || (t.getHours() === 0 && t.getMinutes() === 0 && t.getSeconds() === 0)) return date;
    return `${two(t.getHours())}:${two(t.getMinutes())}${apart < 6e4 ? `:${two(t.getSeconds())}` : ""}`;
  });
}

/** Keep a chart as large as its element. */
export function sized(element, plot) {
  const watch = new ResizeObserver(() => {
    const width = element.clientWidth, height = element.clientHeight;
    if (plot() && width > 60 && height > 40) plot().setSize({ width, height });
  });
  watch.observe(element);
  return () => watch.disconnect();
}

/** A tooltip over a chart; `lines(plot)` gives its elements, or null for none. */
export function tooltip(element, lines) {
  const box = h("div", { class: "tip", "aria-hidden": "true" });
  element.append(box);
  let over = false;
  element.addEventListener("pointerenter", () => { over = true; });
  element.addEventListener("pointerleave", () => { over = false; box.classList.remove("seen"); });
  return (plot) => {
    const { left, top } = plot.cursor;
    const found = over && left >= 0 ? lines(plot) : null;
    box.classList.toggle("seen", Boolean(found));
    if (!found) return;
    box.replaceChildren(h("div", { class: "tip-time" }, full(plot.posToVal(left, "x"))), ...found);
    const x = left + plot.over.offsetLeft, wide = box.offsetWidth;
    const place = x + 14 + wide > element.clientWidth ? Math.max(0, x - 14 - wide) : x + 14;
    box.style.transform = `translate(${Math.round(place)}px, ${Math.round(Math.max(0, Math.min(top, element.clientHeight - box.offsetHeight)))}px)`;
  };
}

/** A row of a tooltip. */
export const tipRow = (colour, name, value, strong) => {
  const mark = h("i", { class: "mark" });
  if (colour) mark.style.background = colour;
  return h("div", { class: strong ? "tip-row strong" : "tip-row" }, mark, h("span", {}, name), h("b", {}, value));
};

/** Annotations as vertical lines with their texts, bands where they last. */
export function drawAnnotations(plot, events) {
  const { ctx, bbox } = plot, ratio = devicePixelRatio;
  let free = -Infinity;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.font = FONT.replace("11px", `${11 * ratio}px`);
  for (const event of events) {
    const x = plot.valToPos(event.time, "x", true);
    ctx.strokeStyle = ctx.fillStyle = event.color;
    if (event.timeEnd && event.timeEnd > event.time) {
      ctx.globalAlpha = 0.1;
      ctx.fillRect(x, bbox.top, plot.valToPos(event.timeEnd, "x", true) - x, bbox.height);
      ctx.globalAlpha = 1;
    }
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    line(ctx, x, bbox.top, x, bbox.top + bbox.height, ratio, [4, 3]);
    const text = event.text.length > 28 ? `${event.text.slice(0, 27)}…` : event.text;
    // To the right of its line, or to the left at the right edge; left out where another one stands.
    const wide = ctx.measureText(text).width + 8 * ratio, fits = x + wide < bbox.left + bbox.width;
    if (fits ? x < free : x - wide < free) continue;
    ctx.textBaseline = "top";
    ctx.textAlign = fits ? "left" : "right";
    ctx.fillText(text, x + (fits ? 4 : -4) * ratio, bbox.top + 2 * ratio);
    free = fits ? x + wide : x;
  }
  ctx.restore();
}

/** A dashed line on a canvas. */
export function line(ctx, x0, y0, x1, y1, ratio, dash) {
  ctx.beginPath();
  ctx.setLineDash(dash.map((d) => d * ratio));
  ctx.lineWidth = ratio;
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
  ctx.setLineDash([]);
}

/** The annotations within a few pixels of the cursor, for the tooltip. */
export const annotationsNear = (plot, events) =>
  events.filter((e) => Math.abs(plot.valToPos(e.time, "x") - plot.cursor.left) < 6).slice(0, 5).map((e) => tipRow(e.color, e.text, ""));
