// The page: its address is its state, and everything on it follows from that.

import * as api from "./api.js";
import { forgetColours, isDark, onSystemTheme } from "./colours.js";
import { closePopover, h } from "./dom.js";
import { panelOf } from "./panels.js";
import { rangeText, refreshPicker, timePicker, variable } from "./pickers.js";
import { address, isLive, range, read, refreshMs } from "./state.js";
import { age, moment } from "./units.js";

const at = (id) => document.getElementById(id);
const FRESH_MS = 30_000;
const VARIABLES_EVERY_MS = 60_000;
const THEMES = { "": "dark", dark: "light", light: "" };
const THEME_SIGNS = { "": "◐", dark: "●", light: "○" };

let dashboards = [], dialect = null, tree = null, state = null, shown = null;
let panels = [], events = [], variables = [], variablesAt = 0, timer = 0, round = 0;
const inView = new Set();

const context = {
  zoom: (from, to) => go({ from: String(from), to: String(to) }),
  annotations: () => events,
  theme: () => isDark(),
  isLive: () => isLive(state),
  missing: (sql) => variables.find((one) => !one.value && sql.includes(`{${one.name}:`))?.label ?? "",
  timeQuery: () => new URLSearchParams({ from: state.from, to: state.to }).toString(),
};

/** Change the state, with a step in the history that Back undoes. */
function go(change) {
  history.pushState(null, "", address({ ...state, ...change }));
  follow();
}

/** Show what the address says. */
async function follow() {
  const asked = read(location), mine = ++round;
  const uid = asked.uid || dashboards[0].uid;
  try {
    if (tree?.uid !== uid) await openPage(uid);
    if (mine !== round) return;
  } catch (error) {
    tree = null;
    clear();
    notice(error.message, true);
    return;
  }
  const { time, refresh } = tree;
  state = { ...asked, uid, from: asked.from || time.from, to: asked.to || time.to, refresh: asked.refresh || refresh };
  themed(state.theme);
  shown = range(state, time);
  notice(shown.valid ? "" : "the address has no valid time range: the page's own is shown", true);
  if (!shown.valid) [state.from, state.to] = [time.from, time.to];
  await choices(mine, true);
  if (mine !== round) return;
  chrome();
  load();
  schedule();
}

async function openPage(uid) {
  const found = await api.dashboard(uid);
  clear();
  tree = raised(found);
  document.title = `${tree.title} – Megawatch`;
  forgetColours();
  panels = tree.panels.map((panel) => panelOf(panel, uid, context, dialect));
  at("grid").replaceChildren(...panels.map((panel) => panel.element));
  panels.forEach((panel) => watcher.observe(panel.element));
}

/** The line at the top needs one row of the grid, not those that Grafana's text panel needs. */
function raised(found) {
  const [head, ...rest] = found.panels, lift = head.type === "text" ? head.gridPos.h - 1 : 0;
  head.gridPos.h -= lift;
  for (const { gridPos } of rest) gridPos.y -= lift;
  return found;
}

function clear() {
  panels.forEach((panel) => { watcher.unobserve(panel.element); panel.destroy(); });
  panels = [];
  events = [];
  variables = [];
  inView.clear();
  at("grid").replaceChildren();
  at("vars").replaceChildren();
}

/** Options of the variables; the server says which value each has. */
async function choices(mine, always) {
  if (!tree.templating.list.some((one) => one.type === "query")) return;
  if (!always && Date.now() - variablesAt < VARIABLES_EVERY_MS && variables.every((v) => v.options.length)) return;
  try {
    const found = await api.variables(state.uid, shown, state.vars);
    if (mine !== round) return;
    variables = found;
    variablesAt = Date.now();
  } catch (error) {
    notice(error.message, true);
    return;
  }
  for (const one of variables) {
    const wanted = state.vars[one.name];
    if (wanted && wanted !== one.value) notice(one.value ? `there is no ${one.label.toLowerCase()} “${wanted}” here: another one is shown` : `there is no ${one.label.toLowerCase()} “${wanted}” here`);
  }
  state.vars = Object.fromEntries(variables.map((one) => [one.name, one.value]));
  // Where a search box is open, its list stays as it is.
  if (!at("vars").querySelector(".popover")) {
    const focused = [...at("vars").children].findIndex((one) => one.contains(document.activeElement));
    at("vars").replaceChildren(...variables.map((one) => variable(one, (value) => go({ vars: { ...state.vars, [one.name]: value } }))));
    at("vars").children[focused]?.firstChild.focus();
  }
  const empty = variables.find((one) => !one.options.length);
  if (empty) notice(`no ${empty.label.toLowerCase()} yet: the page fills by itself when the first samples come`);
}

/** The header, and the address, say the whole state. */
function chrome() {
  history.replaceState(null, "", address(state));
  at("time").textContent = rangeText(state, shown);
  at("refresh").textContent = refreshMs(state.refresh) ? state.refresh : "off";
  const later = at("later");
  later.disabled = isLive(state);
  const query = `?${context.timeQuery()}${Object.entries(state.vars).map(([n, v]) => `&var-${n}=${encodeURIComponent(v)}`).join("")}&refresh=${state.refresh}${state.theme ? `&theme=${state.theme}` : ""}`;
  at("pages").replaceChildren(...dashboards.map((one) => h("a", { href: `/d/${one.uid}${query}`, title: one.description, "aria-current": one.uid === state.uid ? "page" : null }, one.title)));
}

/** Ask for everything that is in view; the rest is asked for when it comes into view. */
function load() {
  annotate();
  freshness();
  for (const panel of panels) {
    panel.due = true;
    if (inView.has(panel.element)) bring(panel);
  }
}

function bring(panel) {
  panel.due = false;
  panel.load(shown, state.vars);
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const panel = panels.find((one) => one.element === target);
    inView[isIntersecting ? "add" : "delete"](target);
    if (isIntersecting && panel?.due && state) bring(panel);
  }
}, { rootMargin: "200px" });

async function annotate() {
  if (!tree.annotations.list.length || tree.annotations.list.some((one) => context.missing(one.target.rawSql))) return;
  const mine = round;
  try {
    const found = await api.annotations(state.uid, shown, state.vars);
    if (mine !== round) return;
    events = found.flatMap(({ color, events: all }) => all.map(([time, timeEnd, text]) => ({ color, time, timeEnd, text: String(text ?? "") })));
    const left = found.reduce((sum, one) => sum + one.left_out, 0);
    if (left) notice(`${left} older annotations are not drawn`);
    panels.forEach((panel) => panel.redraw());
  } catch (error) {
    notice(`annotations: ${error.message}`, true);
  }
}

async function freshness() {
  const fresh = at("fresh");
  try {
    const { newest_ms: newest } = await api.status();
    const old = Date.now() - newest;
    const kind = newest === null ? "none" : old < FRESH_MS ? "live" : "old";
    fresh.dataset.kind = kind;
    fresh.textContent = { none: "no samples yet", live: `live, ${age(old)} behind`, old: `no samples since ${moment(newest ?? 0)}` }[kind];
    fresh.title = newest === null ? "" : `the newest second in the store is ${moment(newest)}`;
  } catch (error) {
    fresh.dataset.kind = "lost";
    fresh.textContent = error.message;
  }
}

function notice(sentence, isWrong = false) {
  at("notice").textContent = sentence;
  at("notice").className = `notice${sentence ? " seen" : ""}${isWrong ? " wrong" : ""}`;
}

/** The next refresh; a hidden tab asks for nothing and catches up when it is seen again. */
function schedule() {
  clearTimeout(timer);
  const every = refreshMs(state?.refresh ?? "");
  if (every && isLive(state) && !document.hidden) timer = setTimeout(again, every);
}

async function again() {
  const mine = round;
  const before = JSON.stringify(state.vars);
  shown = range(state, tree.time);
  await choices(mine, false);
  if (mine !== round) return;
  if (before !== JSON.stringify(state.vars)) { notice(""); chrome(); }
  load();
  schedule();
}

function themed(theme) {
  const valid = Object.hasOwn(THEMES, theme) ? theme : "";
  if (valid) document.documentElement.dataset.theme = valid;
  else delete document.documentElement.dataset.theme;
  at("theme").textContent = THEME_SIGNS[valid];
  at("theme").title = { "": "Theme: as the system's", dark: "Theme: dark", light: "Theme: light" }[valid];
  panels.forEach((panel) => panel.redraw());
}

/** So far back from now, in the largest unit that says it exactly: now-1h. */
function back(ms) {
  const s = Math.round(ms / 1000);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "m"]].find(([one]) => s % one === 0) ?? [1, "s"];
  return `now-${s / size}${unit}`;
}

/** Move the range by halves of itself; at the present it becomes live again. */
function shift(halves) {
  const half = (shown.to - shown.from) / 2, to = shown.to + halves * half, now = Date.now();
  if (halves > 0 && isLive(state)) return;
  if (to >= now) go({ from: back(shown.to - shown.from), to: "now" });
  else go({ from: String(Math.round(shown.from + halves * half)), to: String(Math.round(to)) });
}

function wider() {
  const size = shown.to - shown.from;
  if (isLive(state)) go({ from: back(2 * size) });
  else go({ from: String(Math.max(0, Math.round(shown.from - size / 2))), to: String(Math.min(Date.now(), Math.round(shown.to + size / 2))) });
}

const KEYS = { ArrowLeft: () => shift(-1), ArrowRight: () => shift(1), "-": wider, r: () => again() };

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (!closePopover()) panels.forEach((panel) => panel.reset());
    return;
  }
  const busy = event.target.closest("input, select, textarea, .popover, .scroll") || event.ctrlKey || event.metaKey || event.altKey;
  if (!busy && state && KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || link.origin !== location.origin || link.hasAttribute("download") || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  if (link.pathname !== "/" && !link.pathname.startsWith("/d/") || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  scrollTo(0, 0);
  follow();
});

async function start() {
  themed(read(location).theme);
  onSystemTheme(() => panels.forEach((panel) => panel.redraw()));
  timePicker(at("time"), () => ({ state, range: shown }), (from, to) => go({ from, to }));
  refreshPicker(at("refresh"), () => (refreshMs(state.refresh) ? state.refresh : "off"), (refresh) => go({ refresh }));
  at("earlier").addEventListener("click", () => shift(-1));
  at("later").addEventListener("click", () => shift(1));
  at("wider").addEventListener("click", wider);
  at("reload").addEventListener("click", () => again());
  at("theme").addEventListener("click", () => go({ theme: THEMES[state.theme] ?? "" }));
  addEventListener("popstate", follow);
  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else if (state && isLive(state) && refreshMs(state.refresh)) again(); });
  try {
    [dashboards, dialect] = await Promise.all([api.dashboards(), api.dialect()]);
  } catch (error) {
    notice(error.message, true);
    return;
  }
  await follow();
}

start();
