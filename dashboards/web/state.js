// What is shown, as the page's address says it.

const UNITS_MS = { s: 1e3, m: 6e4, h: 36e5, d: 864e5, w: 6048e5 };
const RELATIVE = /^now(?:-(\d{1,6})([smhdw]))?$/;
const LAST_MS = 4294967295e3;

/** "now-1h", epoch milliseconds or ISO 8601 as milliseconds; NaN for anything else. */
export function resolve(text, nowMs) {
  const found = RELATIVE.exec(text);
  if (found) return nowMs - (found[1] ? Number(found[1]) * UNITS_MS[found[2]] : 0);
  const ms = /^\d+$/.test(text) ? Number(text) : Date.parse(text);
  return ms >= 0 && ms <= LAST_MS ? ms : NaN;
}

/** {uid, from, to, refresh, theme, vars}: texts as in the address, empty where it is silent. */
export function read(location) {
  const asked = new URLSearchParams(location.search), vars = {};
  for (const [name, value] of asked) if (name.startsWith("var-")) vars[name.slice(4)] = value;
  const uid = location.pathname.startsWith("/d/") ? decodeURIComponent(location.pathname.slice(3).split("/")[0]) : "";
  const text = (name) => asked.get(name) ?? "";
  return { uid, from: text("from"), to: text("to"), refresh: text("refresh"), theme: text("theme"), vars };
}

/** The address of a state. */
export function address(state) {
  const out = new URLSearchParams({ from: state.from, to: state.to });
  for (const [name, value] of Object.entries(state.vars)) out.set(`var-${name}`, value);
  out.set("refresh", state.refresh);
  if (state.theme) out.set("theme", state.theme);
  return `/d/${encodeURIComponent(state.uid)}?${out}`;
}

/** The range of a state in milliseconds, or the default's if it makes no sense. */
export function range(state, fallback, nowMs = Date.now()) {
  const from = resolve(state.from, nowMs), to = resolve(state.to, nowMs);
  if (from < to) return { from: Math.floor(from), to: Math.floor(to), valid: true };
  return { from: resolve(fallback.from, nowMs), to: resolve(fallback.to, nowMs), valid: false };
}

export const isLive = (state) => state.to === "now";

/** "10s" as milliseconds, 0 for off. */
export function refreshMs(text) {
  const found = /^(\d{1,5})([smh])$/.exec(text);
  return found ? Math.max(1000, Number(found[1]) * UNITS_MS[found[2]]) : 0;
}

const NAMES = { s: "second", m: "minute", h: "hour", d: "day", w: "week" };

/** "Last 1 hour" for now-1h, else null. */
export function quickName(from, to) {
  const found = RELATIVE.exec(from);
  if (!found?.[1] || to !== "now") return null;
  return `Last ${found[1]} ${NAMES[found[2]]}${found[1] === "1" ? "" : "s"}`;
}
