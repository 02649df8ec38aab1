// Colours that every kind of eye tells apart, and what the canvases need of the theme.

// Okabe and Ito's eight. On white their yellow cannot be seen, on black their black: both are replaced.
const OKABE_ITO = {
  light: ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#a89a00", "#5b5b5b"],
  dark: ["#2b8fd0", "#e69f00", "#009e73", "#e0692a", "#7cc8f4", "#cc79a7", "#f0e442", "#a8a8a8"],
};
// The ninth series has the first's hue again, darker and dashed, the seventeenth lighter and dotted.
const CYCLES = [{ mix: 0, dash: [] }, { mix: -0.38, dash: [6, 4] }, { mix: 0.42, dash: [2, 3] }];
export const DISTINCT = 24;

// Cividis by Nuñez, Anderton and Renslow, at ten points.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"].map(rgb);

const system = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
export const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";

/** Call when the system's theme changes. */
export const onSystemTheme = (run) => system.addEventListener("change", run);

/** What canvases draw with. */
export const ink = () =>
  isDark()
    ? { text: "#a7b0bd", grid: "#262c35", edge: "#3a424e", back: "#161a20" }
    : { text: "#5c6672", grid: "#e9ecf0", edge: "#cfd5dc", back: "#ffffff" };

const places = new Map();

/** Colour and dash of a series. The same name under the same label has the same place on a page. */
export function seriesColour(label, name) {
  if (!places.has(label)) places.set(label, new Map());
  const known = places.get(label);
  if (!known.has(name)) known.set(name, known.size);
  const place = known.get(name) % DISTINCT, cycle = CYCLES[Math.floor(place / 8)];
  const base = OKABE_ITO[isDark() ? "dark" : "light"][place % 8];
  return { stroke: mixed(base, cycle.mix), dash: cycle.dash };
}

/** Forget the places: another dashboard is shown. */
export const forgetColours = () => places.clear();

function mixed(hex, share) {
  const to = share < 0 ? 0 : 255;
  const parts = rgb(hex).map((c) => Math.round(c + (to - c) * Math.abs(share)));
  return `#${parts.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Cividis at a share of 0 to 1. */
export function cividis(share) {
  const at = Math.min(1, Math.max(0, share)) * (CIVIDIS.length - 1), low = Math.min(CIVIDIS.length - 2, Math.floor(at));
  const parts = CIVIDIS[low].map((c, i) => Math.round(c + (CIVIDIS[low + 1][i] - c) * (at - low)));
  return `rgb(${parts.join(",")})`;
}

/** The colour of a value by thresholds: that of the last step it reaches. */
export function thresholdColour(steps, value) {
  let found = steps[0]?.color;
  for (const step of steps) if (step.value !== null && value >= step.value) found = step.color;
  return found;
}
