// Answers as what panels draw: series over a common time axis, with gaps where there is nothing.

/** Settings of a column: the panel's defaults, then what the overrides say. */
export function field(panel, column) {
  const { defaults, overrides } = panel.fieldConfig;
  const out = { unit: defaults.unit, decimals: defaults.decimals, links: [], hidden: false };
  for (const one of overrides) {
    if (one.matcher.options !== column) continue;
    for (const { id, value } of one.properties) out[id === "custom.hidden" ? "hidden" : id] = value;
  }
  return out;
}

/** Columns by their kind. */
function split(answer) {
  const of = (kind) => answer.names.map((name, i) => ({ name, values: answer.columns[i], kind: answer.kinds[i] })).filter((c) => c.kind === kind);
  return { times: of("time"), texts: of("text"), numbers: of("number") };
}

/** {label, times (ms), series [{name, values}]}: long form by its text column, or values side by side. */
export function series(answer) {
  const { times, texts, numbers } = split(answer);
  if (!times.length || !numbers.length) return { label: "", times: [], series: [] };
  const moments = times[0].values, axis = withGaps([...new Set(moments)].sort((a, b) => a - b), answer.interval_s * 1000);
  const at = new Map(axis.map((t, i) => [t, i]));
  const found = new Map();
  const named = (name) => {
    if (!found.has(name)) found.set(name, new Array(axis.length).fill(undefined));
    return found.get(name);
  };
  for (const column of numbers) {
    column.values.forEach((value, row) => {
      const label = texts.map((t) => t.values[row] ?? "").join(" ");
      const name = !texts.length ? column.name : numbers.length > 1 ? `${column.name} ${label}` : label;
      named(name)[at.get(moments[row])] = value;
    });
  }
  const all = [...found].map(([name, values]) => ({ name, values: broken(axis, values, answer.interval_s * 1000) }));
  all.sort((a, b) => collate.compare(a.name, b.name));
  return { label: texts[0]?.name ?? "", times: axis, series: all.filter((s) => s.values.some(isKnown)) };
}

/** Neither null (known to be a gap) nor undefined (a moment of other series only). */
export const isKnown = (value) => value !== null && value !== undefined;

/** Nulls into the holes of one series: other series may have moments there, this one's are too far apart. */
function broken(axis, values, stepMs) {
  const own = axis.filter((_, i) => values[i] !== undefined), hole = 2.5 * Math.max(usualStep(own), stepMs);
  let last = -1;
  values.forEach((value, i) => {
    if (value === undefined) return;
    if (last >= 0 && axis[i] - axis[last] > hole) values[last + 1] = null;
    last = i;
  });
  return values;
}

const collate = new Intl.Collator("en", { numeric: true });

/** A moment without values into every hole of the axis, so that no line is drawn across it. */
function withGaps(times, stepMs) {
  const step = Math.max(usualStep(times), stepMs);
  return times.flatMap((t, i) => (i && t - times[i - 1] > 2.5 * step ? [times[i - 1] + step, t] : [t]));
}

/** The distance of most points of a sorted axis, 0 where there are none to compare. */
export function usualStep(times) {
  const apart = times.slice(1).map((t, i) => t - times[i]).sort((a, b) => a - b);
  return apart[apart.length >> 1] ?? 0;
}

const peak = (one) => one.values.reduce((most, v) => (isKnown(v) && v > most ? v : most), -Infinity);

/** At most `most` series, those with the highest values; the rest are summed if they stack. */
export function largest(all, most, sumRest) {
  if (all.length <= most) return { shown: all, note: "" };
  const ranked = [...all].sort((a, b) => peak(b) - peak(a));
  const kept = new Set(ranked.slice(0, sumRest ? most - 1 : most));
  const shown = all.filter((one) => kept.has(one));
  if (!sumRest) return { shown, note: `${most} of ${all.length} shown: those with the highest values` };
  const rest = all.filter((one) => !kept.has(one));
  const values = rest[0].values.map((_, i) => rest.reduce((sum, one) => (isKnown(one.values[i]) ? (sum ?? 0) + one.values[i] : sum), null));
  shown.push({ name: `${rest.length} others`, values });
  return { shown, note: `${kept.size} of ${all.length} shown, the rest is summed` };
}

/** Cumulative values from the first series up; a moment where nothing is known stays a gap. */
export function stacked(all) {
  if (!all.length) return [];
  const sums = all[0].values.map((_, i) => (all.some((one) => isKnown(one.values[i])) ? 0 : null));
  return all.map((one) => {
    one.values.forEach((v, i) => { if (sums[i] !== null) sums[i] += v ?? 0; });
    return [...sums];
  });
}

/** True if there is nothing to draw: no rows, or nothing but nulls where values should be. */
export function isEmpty(answer) {
  if (!answer.columns.length || !answer.columns[0].length) return true;
  const { numbers, texts } = split(answer);
  return numbers.length > 0 && !texts.length && numbers.every((c) => c.values.every((v) => v === null));
}
