// Grafana's unit ids, as a table; an id that is not in it is written behind the number as it is.

const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];
const IEC = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

const si = (unit, times = 1) => ({ times, steps: PREFIXES.map((p, i) => [1000 ** i, ` ${p}${unit}`]) });
const iec = (unit) => ({ times: 1, steps: IEC.map((p, i) => [1024 ** i, ` ${p}${unit}`]) });
const plain = (suffix, times = 1) => ({ times, steps: [[1, suffix]] });
const seconds = (times) => ({
  times,
  steps: [[1e-9, " ns"], [1e-6, " µs"], [1e-3, " ms"], [1, " s"], [60, " min"], [3600, " h"], [86400, " d"]],
});
const count = (suffix) => ({ times: 1, steps: PREFIXES.map((p, i) => [1000 ** i, i ? ` ${p}${suffix}` : suffix]) });

export const UNITS = {
  none: plain(""), string: plain(""), short: { times: 1, steps: [[1, ""], [1e3, " K"], [1e6, " Mil"], [1e9, " Bil"], [1e12, " Tri"]] },
  percent: plain(" %"), percentunit: plain(" %", 100), ppm: plain(" ppm"),
  watt: si("W"), kwatt: si("W", 1e3), megwatt: si("W", 1e6), mwatt: si("W", 1e-3), voltamp: si("VA"),
  watth: si("Wh"), kwatth: si("Wh", 1e3), joule: si("J"), volt: si("V"), amp: si("A"),
  celsius: plain(" °C"), fahrenheit: plain(" °F"), kelvin: plain(" K"),
  hertz: si("Hz"), rothz: si("Hz"), rotmhz: si("Hz", 1e6), rotrpm: plain(" rpm"), mhz: si("Hz", 1e6),
  bits: iec("b"), decbits: si("b"), bytes: iec("B"), decbytes: si("B"), kbytes: { ...iec("B"), times: 1024 },
  mbytes: { ...iec("B"), times: 1024 ** 2 }, gbytes: { ...iec("B"), times: 1024 ** 3 }, deckbytes: si("B", 1e3),
  decmbytes: si("B", 1e6), decgbytes: si("B", 1e9), Bps: si("B/s"), binBps: iec("B/s"), bps: si("b/s"), binbps: iec("b/s"),
  KBs: si("B/s", 1e3), MBs: si("B/s", 1e6), KiBs: { ...iec("B/s"), times: 1024 }, MiBs: { ...iec("B/s"), times: 1024 ** 2 },
  ns: seconds(1e-9), "µs": seconds(1e-6), ms: seconds(1e-3), s: seconds(1), m: seconds(60), h: seconds(3600), d: seconds(86400),
  reqps: count(" req/s"), rps: count(" reads/s"), wps: count(" writes/s"), ops: count(" ops/s"), iops: count(" io/s"),
  cps: count("/s"), cpm: count("/min"), rowsps: count(" rows/s"), eps: count(" events/s"), mps: count(" msg/s"), recps: count(" rec/s"), pps: count(" p/s"),
  currencyUSD: { ...plain(""), before: "$" }, currencyEUR: { ...plain(""), before: "€" }, currencyGBP: { ...plain(""), before: "£" },
};

/** How a unit is written: own entry, `suffix:x`, `prefix:x`, or the id itself behind the number. */
function known(unit) {
  if (Object.hasOwn(UNITS, unit)) return UNITS[unit];
  if (unit.startsWith("suffix:")) return plain(` ${unit.slice(7)}`);
  if (unit.startsWith("prefix:")) return { ...plain(""), before: unit.slice(7) };
  return plain(unit ? ` ${unit}` : "");
}

function step(how, size) {
  let found = how.steps.find(([factor]) => factor === 1) ?? how.steps[0];
  if (size === 0) return found;
  if (size < 1) found = how.steps[0];
  for (const one of how.steps) if (size >= one[0] * 0.9995) found = one;
  return found;
}

/** As many digits after the point as three or four significant ones need. */
function digits(size, isScaled) {
  if (size >= 1000 || size === 0) return 0;
  if (size >= (isScaled ? 100 : 10)) return 1;
  return size >= 0.9995 ? 2 : Math.min(9, 2 - Math.floor(Math.log10(size)));
}

const rounded = (number, most, least = 0) =>
  number.toLocaleString("en-US", { maximumFractionDigits: most, minimumFractionDigits: least }).replace(/^-(?=[0.]+$)/, "");

/** A value with its unit: `format(42414, "watt")` is "42.41 kW". */
export function format(value, unit, decimals) {
  if (DATES[unit]) return DATES[unit](value);
  const how = known(unit), scaled = value * how.times;
  const [factor, suffix] = step(how, Math.abs(scaled));
  const shown = scaled / factor;
  // Counts stay whole; all else keeps its zeros, so that columns align and nothing jumps.
  const own = factor === 1 && Number.isInteger(shown) ? 0 : digits(Math.abs(shown), how.steps.length > 1);
  const whole = rounded(shown, decimals ?? own, decimals ?? own);
  return `${how.before ?? ""}${whole}${suffix}`;
}

/** Labels of an axis, all with the same scale and as many digits as tell them apart. */
export function ticks(values, unit) {
  const how = known(unit);
  const largest = Math.max(0, ...values.map((v) => Math.abs(v * how.times)));
  const [factor, suffix] = step(how, largest);
  const apart = values.length > 1 ? Math.abs((values[1] - values[0]) * how.times) / factor : 1;
  // Steps of 2000 MiB are 1.953125 GiB: within a twentieth of a step, short beats exact.
  const isRough = (at) => Math.abs(at - Math.round(at)) > 0.05 * at;
  let most = 0;
  while (most < 9 && isRough(apart * 10 ** most)) most++;
  return values.map((v) => `${how.before ?? ""}${rounded((v * how.times) / factor, most, most)}${suffix}`);
}

const two = (n) => String(n).padStart(2, "0");

/** 14:03:22 today, else 2026-11-21 14:03:22, in the browser's zone. */
export function moment(ms, now = Date.now()) {
  const t = new Date(ms), clock = `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
  return t.toDateString() === new Date(now).toDateString() ? clock : `${day(t)} ${clock}`;
}

/** 2026-11-21 14:03:22, in the browser's zone. */
export function full(ms) {
  const t = new Date(ms);
  return `${day(t)} ${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

const day = (t) => `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;

/** 5 s, 3 min, 2 h, 4 d. */
export function age(ms) {
  const s = Math.max(0, ms / 1000);
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (s >= 1.5 * size) return `${Math.round(s / size)} ${name}`;
  return `${Math.round(s)} s`;
}

const DATES = {
  dateTimeAsIso: (ms) => full(ms),
  dateTimeAsSystem: (ms) => full(ms),
  dateTimeFromNow: (ms) => `${age(Date.now() - ms)} ago`,
};
