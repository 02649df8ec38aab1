// A panel's frame: title, description, CSV, and what it says when it has nothing to draw.

import * as api from "./api.js";
import { unknownIn } from "./dialect.js";
import { h, popover } from "./dom.js";
import { isEmpty, usualStep } from "./frame.js";
import { heatmap } from "./heatmap.js";
import { bargauge, gauge, stat, text } from "./plain.js";
import { table } from "./table.js";
import { timeseries } from "./timeseries.js";
import { age, moment } from "./units.js";

const KINDS = { timeseries, heatmap, stat, gauge, bargauge, table, text };
const STALE_STEPS = 3, STALE_MS = 60_000;

/** A panel in the grid: {element, load(range, vars), redraw(), reset(), destroy()}. */
export function panelOf(panel, uid, context, dialect) {
  const body = h("div", { class: "body" }), message = h("p", { class: "message" }), stale = h("span", { class: "stale" });
  const csv = h("a", { class: "tool", download: true, "aria-label": `CSV of ${panel.title}` }, "CSV");
  const element = h("section", { class: `panel ${panel.type}`, "aria-label": panel.title || null }, head(), body, message);
  place();
  const unknown = unknownIn(panel, dialect);
  const drawn = unknown || !KINDS[panel.type] ? null : KINDS[panel.type](body, panel, context);
  if (!drawn) say(`this console cannot draw ${unknown}`, "error");
  let asking = null;

  function head() {
    if (panel.type === "text") return null;
    const about = h("button", { type: "button", class: "tool about", "aria-label": `About ${panel.title}` }, "i");
    popover(about, () => h("p", {}, panel.description));
    return h("header", {}, h("h3", { title: panel.title }, panel.title), stale, h("span", { class: "tools" }, csv, panel.description ? h("span", { class: "anchor" }, about) : null));
  }

  function place() {
    const { x, y, w, h: high } = panel.gridPos;
    for (const [name, value] of Object.entries({ x: x + 1, y: y + 1, w, h: high })) element.style.setProperty(`--${name}`, value);
  }

  function say(sentence, kind = "") {
    message.textContent = sentence;
    message.className = `message ${kind}`;
    element.classList.toggle("blank", Boolean(sentence));
    if (kind === "error") message.setAttribute("role", "alert");
    else message.removeAttribute("role");
  }

  async function load(range, vars) {
    if (!panel.targets || !drawn) return;
    asking?.abort();
    const missing = context.missing(panel.targets[0].rawSql);
    if (missing) return say(`no ${missing.toLowerCase()} yet`);
    asking = new AbortController();
    const mine = asking, points = Math.max(50, Math.round(body.clientWidth || 600));
    csv.href = api.csvAddress(uid, panel.id, range, points, vars);
    element.classList.add("loading");
    try {
      const answer = await api.query(uid, panel.id, range, points, vars, mine.signal);
      if (mine.signal.aborted) return;
      stale.textContent = "";
      if (isEmpty(answer)) return say(panel.fieldConfig.defaults.noValue);
      say("");
      drawn.update(answer, range);
      freshness(answer, range);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, "error");
    } finally {
      if (mine === asking) element.classList.remove("loading");
    }
  }

  /** Says since when nothing new has come, where the newest moments were asked for. */
  function freshness(answer, range) {
    const at = ["timeseries", "heatmap"].includes(panel.type) ? answer.kinds.indexOf("time") : -1;
    if (!context.isLive() || at < 0) return;
    const times = [...new Set(answer.columns[at])].sort((a, b) => a - b), stepMs = Math.max(answer.interval_s * 1000, usualStep(times));
    const behind = range.to - (times.at(-1) + stepMs);
    if (behind < Math.max(STALE_MS, STALE_STEPS * stepMs)) return;
    stale.textContent = `nothing since ${moment(times.at(-1))}`;
    stale.title = `the newest point is ${age(behind)} old`;
  }

  return {
    element, load,
    redraw: () => drawn?.redraw(),
    reset: () => drawn?.reset() ?? false,
    destroy() { asking?.abort(); drawn?.destroy(); },
  };
}
