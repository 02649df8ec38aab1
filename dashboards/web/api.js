// The console's own answers; what goes wrong becomes an Error whose message a person can read.

async function get(path, query, signal) {
  const asked = query ? `?${new URLSearchParams(query)}` : "";
  let answer;
  try {
    answer = await fetch(path + asked, { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the console does not answer: is it still running?");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `the console answered ${answer.status}`);
  return body;
}

const named = (vars) => Object.fromEntries(Object.entries(vars).map(([n, v]) => [`var-${n}`, v]));
const of = (uid) => encodeURIComponent(uid);
const asked = (range, vars, more = {}) => ({ from: range.from, to: range.to, ...more, ...named(vars) });

export const dashboards = () => get("/api/dashboards");
export const dashboard = (uid) => get(`/api/dashboards/${of(uid)}`);
export const status = () => get("/api/status");
export const dialect = () => get("/static/dialect.json");
export const variables = (uid, range, vars, signal) => get(`/api/variables/${of(uid)}`, asked(range, vars), signal);
export const annotations = (uid, range, vars, signal) => get(`/api/annotations/${of(uid)}`, asked(range, vars), signal);
export const query = (uid, panel, range, points, vars, signal) => get(`/api/query/${of(uid)}`, asked(range, vars, { panel, points }), signal);

/** Where a panel's CSV is. */
export const csvAddress = (uid, panel, range, points, vars) => `/api/csv/${of(uid)}?${new URLSearchParams(asked(range, vars, { panel, points }))}`;
