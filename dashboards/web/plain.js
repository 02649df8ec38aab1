// Panels of plain elements: stat, gauge, bars, text.

import { thresholdColour } from "./colours.js";
import { h } from "./dom.js";
import { field } from "./frame.js";
import { format, full, moment } from "./units.js";

/** A value of a column as text; nothing known is said in the panel's own words. */
export function shownValue(panel, answer, column, value) {
  const { defaults } = panel.fieldConfig;
  if (value === null || value === undefined) return defaults.noValue ?? "–";
  const kind = answer.kinds[column], { unit, decimals } = field(panel, answer.names[column]);
  if (kind === "time") return full(value);
  return kind === "number" ? format(Number(value), unit ?? "", decimals) : String(value);
}

function coloured(element, panel, value) {
  const { thresholds } = panel.fieldConfig.defaults;
  if (typeof value === "number") element.style.setProperty("--value", thresholdColour(thresholds.steps, value));
  return element;
}

const passive = { redraw() {}, reset: () => false, destroy() {} };

export function stat(body, panel) {
  return {
    ...passive,
    update(answer) {
      const many = answer.names.length > 1;
      body.replaceChildren(h("dl", { class: many ? "stats many" : "stats" }, answer.names.map((name, i) => {
        const value = answer.columns[i].at(-1), shown = answer.kinds[i] === "time" && value !== null ? moment(value) : shownValue(panel, answer, i, value);
        const kind = value === null ? "value none" : String(shown).length > 14 ? "value long" : "value";
        return h("div", {}, h("dt", {}, many || name !== panel.title ? name.replaceAll("_", " ") : ""), coloured(h("dd", { class: kind }, shown), panel, value));
      })));
    },
  };
}

const SVG = "http://www.w3.org/2000/svg";

function arc(from, to, kind) {
  const point = (share) => { const a = Math.PI * (1 - share); return `${50 + 40 * Math.cos(a)} ${50 - 40 * Math.sin(a)}`; };
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", `M ${point(from)} A 40 40 0 0 1 ${point(to)}`);
  path.setAttribute("class", kind);
  return path;
}

export function gauge(body, panel) {
  const { min = 0, max = 100 } = panel.fieldConfig.defaults;
  return {
    ...passive,
    update(answer) {
      body.replaceChildren(h("div", { class: "gauges" }, answer.names.map((name, i) => {
        const value = answer.columns[i].at(-1), shown = shownValue(panel, answer, i, value);
        const share = Math.min(1, Math.max(0, ((value ?? min) - min) / (max - min)));
        const drawn = document.createElementNS(SVG, "svg");
        drawn.setAttribute("viewBox", "0 0 100 58");
        drawn.setAttribute("role", "img");
        drawn.setAttribute("aria-label", `${name}: ${shown}`);
        drawn.append(arc(0, 1, "track"));
        if (value !== null && share > 0) drawn.append(arc(0, share, "filled"));
        return coloured(h("figure", {}, drawn, h("b", { class: value === null ? "none" : "" }, shown), h("figcaption", {}, name.replaceAll("_", " "))), panel, value);
      })));
    },
  };
}

export function bargauge(body, panel) {
  const { defaults } = panel.fieldConfig;
  return {
    ...passive,
    update(answer) {
      const text = answer.kinds.indexOf("text"), number = answer.kinds.indexOf("number");
      const values = answer.columns[number] ?? [];
      const low = defaults.min ?? Math.min(0, ...values.filter((v) => v !== null)), high = defaults.max ?? Math.max(...values.filter((v) => v !== null));
      body.replaceChildren(h("ul", { class: "bars" }, values.slice(0, 100).map((value, row) => {
        const bar = h("i", {}), share = high > low ? Math.min(1, Math.max(0, ((value ?? low) - low) / (high - low))) : 0;
        bar.style.width = `${(100 * share).toFixed(2)}%`;
        return coloured(h("li", {}, h("span", { title: answer.columns[text]?.[row] ?? "" }, answer.columns[text]?.[row] ?? ""), h("span", { class: "bar" }, bar), h("b", {}, shownValue(panel, answer, number, value))), panel, value);
      })), values.length > 100 ? h("p", { class: "note" }, `100 of ${values.length} shown`) : "");
    },
  };
}

/** The few signs of Markdown that our texts use: headings, lists, bold, code, links. */
export function text(body, panel) {
  const blocks = panel.options.content.trim().split(/\n{2,}/);
  body.append(...blocks.map((block) => {
    const heading = /^(#{1,3}) (.*)$/.exec(block);
    if (heading) return h("h2", {}, inline(heading[2]));
    const lines = block.split("\n");
    if (lines.every((line) => line.startsWith("- "))) return h("ul", {}, lines.map((line) => h("li", {}, inline(line.slice(2)))));
    return h("p", {}, inline(lines.join(" ")));
  }));
  return { ...passive, update() {} };
}

function inline(line) {
  return line.split(/(\*\*[^*]+\*\*|`[^`]+`|\[[^\]]+\]\([^)\s]+\))/).map((part) => {
    if (part.startsWith("**")) return h("strong", {}, part.slice(2, -2));
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    const link = /^\[([^\]]+)\]\(((?:https?:\/\/|\/)[^)\s]+)\)$/.exec(part);
    return link ? h("a", { href: link[2] }, link[1]) : part;
  });
}
