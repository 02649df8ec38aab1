// What a person chooses with: the time range, the refresh, a variable's value.

import { h, popover } from "./dom.js";
import { quickName, resolve } from "./state.js";
import { full } from "./units.js";

const QUICK = ["now-5m", "now-15m", "now-1h", "now-3h", "now-6h", "now-24h", "now-2d", "now-7d", "now-30d", "now-90d"];
const REFRESH = ["off", "5s", "10s", "30s", "1m", "5m"];
const MOST_OPTIONS = 200;

/** The text of a time range. */
export function rangeText(state, range) {
  const [from, to] = [full(range.from), full(range.to)], sameDay = from.slice(0, 10) === to.slice(0, 10);
  return quickName(state.from, state.to) ?? `${from} – ${state.to === "now" ? "now" : sameDay ? to.slice(11) : to}`;
}

/** The time range's button; `choose(from, to)` gets texts as they stand in the address. */
export function timePicker(button, current, choose) {
  popover(button, (close) => {
    const { state, range } = current();
    const pick = (from, to) => { close(); choose(from, to); };
    const from = h("input", { type: "text", id: "from", value: /^\d+$/.test(state.from) ? full(range.from) : state.from, autocomplete: "off", spellcheck: "false" });
    const to = h("input", { type: "text", id: "to", value: /^\d+$/.test(state.to) ? full(range.to) : state.to, autocomplete: "off", spellcheck: "false" });
    const wrong = h("p", { class: "wrong", role: "alert" });
    const apply = (event) => {
      event.preventDefault();
      const [a, b] = [from.value.trim(), to.value.trim()], now = Date.now();
      const [aMs, bMs] = [resolve(a, now), resolve(b, now)];
      if (!(aMs >= 0) || !(bMs >= 0)) wrong.textContent = "write a time as 2026-11-21 14:00:00, or as now-6h";
      else if (aMs >= bMs) wrong.textContent = "the first time must be before the second";
      else pick(a.startsWith("now") ? a : String(aMs), b.startsWith("now") ? b : String(bMs));
    };
    return h("div", { class: "times" },
      h("div", { class: "quick" }, QUICK.map((one) => h("button", { type: "button", class: one === state.from && state.to === "now" ? "chosen" : "", onclick: () => pick(one, "now") }, quickName(one, "now")))),
      h("form", { onsubmit: apply }, h("label", { for: "from" }, "From"), from, h("label", { for: "to" }, "To"), to, wrong, h("button", { type: "submit", class: "primary" }, "Apply"),
        h("p", { class: "dim" }, `Times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}. Drag over a chart to zoom in.`)));
  });
}

/** The refresh's button. */
export function refreshPicker(button, current, choose) {
  popover(button, (close) => h("div", { class: "list" }, REFRESH.map((one) => h("button", { type: "button", class: one === current() ? "chosen" : "", onclick: () => { close(); choose(one); } }, one))));
}

/** A variable as a button that opens a list to type into; `choose(value)`. */
export function variable(one, choose) {
  const textOf = (value) => one.options.find(([v]) => v === value)?.[1] ?? value;
  const button = h("button", { type: "button", "aria-label": `${one.label}: ${textOf(one.value) || "none"}` }, h("span", { class: "dim" }, one.label), ` ${textOf(one.value) || "none yet"}`, h("i", { class: "caret" }));
  if (!one.options.length) button.disabled = true;
  popover(button, (close) => {
    const list = h("ul", { role: "listbox", id: `options-${one.name}`, "aria-label": one.label }), note = h("p", { class: "dim" });
    const search = h("input", { type: "search", placeholder: `Search ${one.options.length.toLocaleString("en-US")}`, role: "combobox", "aria-expanded": "true", "aria-controls": list.id, "aria-label": `Search ${one.label}`, autocomplete: "off" });
    let found = [], at = 0;
    const take = (value) => { close(); choose(value); };
    const mark = (to) => {
      at = Math.max(0, Math.min(list.children.length - 1, to));
      [...list.children].forEach((item, i) => item.classList.toggle("at", i === at));
      list.children[at]?.scrollIntoView({ block: "nearest" });
      if (list.children[at]) search.setAttribute("aria-activedescendant", list.children[at].id);
    };
    const fill = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = one.options.filter(([, text]) => words.every((word) => text.toLowerCase().includes(word)));
      list.replaceChildren(...found.slice(0, MOST_OPTIONS).map(([value, text], i) => h("li", { role: "option", id: `${list.id}-${i}`, "aria-selected": String(value === one.value), onclick: () => take(value) }, text || value)));
      note.textContent = !found.length ? "nothing like that" : found.length > MOST_OPTIONS ? `${MOST_OPTIONS} of ${found.length} shown: type to find others` : "";
      mark(Math.max(0, found.slice(0, MOST_OPTIONS).findIndex(([value]) => value === one.value)));
    };
    search.addEventListener("input", fill);
    search.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (step) { event.preventDefault(); mark(at + step); }
      else if (event.key === "Enter") {
        // Or the button, which is focused next, would be pressed by the same key.
        event.preventDefault();
        if (found[at]) take(found[at][0]);
      }
    });
    // The box is shown after this returns; the chosen option is brought into view then.
    queueMicrotask(fill);
    return h("div", { class: "search" }, search, list, note);
  });
  return h("div", { class: "anchor" }, button);
}
