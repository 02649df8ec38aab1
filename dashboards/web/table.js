// Tables: sorted by any column, numbers to the right, links that keep the time.

import { h } from "./dom.js";
import { field } from "./frame.js";
import { shownValue } from "./plain.js";

const MOST_ROWS = 500;
const collate = new Intl.Collator("en", { numeric: true });

export function table(body, panel, context) {
  const note = h("p", { class: "note" });
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": panel.title });
  body.append(scroll, note);
  let answer = null, by = -1, down = false;

  function draw() {
    const columns = answer.names.map((name, i) => ({ name, i, ...field(panel, name) })).filter((c) => !c.hidden);
    const rows = answer.columns[0].map((_, row) => row);
    if (by >= 0 && by < answer.names.length) rows.sort((a, b) => (down ? -1 : 1) * compare(answer.columns[by][a], answer.columns[by][b]));
    const head = h("tr", {}, columns.map((c) => {
      const sorted = c.i === by ? (down ? "descending" : "ascending") : "none";
      return h("th", { scope: "col", "aria-sort": sorted, class: answer.kinds[c.i] }, h("button", { type: "button", onclick: () => sort(c.i) }, c.name.replaceAll("_", " ")));
    }));
    const lines = rows.slice(0, MOST_ROWS).map((row) => h("tr", {}, columns.map((c) => h("td", { class: answer.kinds[c.i] }, cell(c, row)))));
    const top = scroll.scrollTop;
    scroll.replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, lines)));
    scroll.scrollTop = top;
    note.textContent = rows.length > MOST_ROWS ? `${MOST_ROWS} of ${rows.length.toLocaleString("en-US")} rows shown: the CSV has all of them` : "";
  }

  function cell(column, row) {
    const value = answer.columns[column.i][row], shown = shownValue(panel, answer, column.i, value);
    if (value === null) return h("span", { class: "dim" }, "–");
    const link = column.links[0];
    return link ? h("a", { href: filled(link.url, row), title: link.title }, shown) : shown;
  }

  /** A link's address with this row's fields and the page's range in it. */
  function filled(url, row) {
    return url
      .replace(/\$\{__data\.fields(?:\.(\w+)|\["([^"]+)"\])\}/g, (_, plain, quoted) => encodeURIComponent(answer.columns[answer.names.indexOf(plain ?? quoted)]?.[row] ?? ""))
      .replace("${__url_time_range}", context.timeQuery());
  }

  function sort(column) {
    [by, down] = by === column ? [by, !down] : [column, answer.kinds[column] === "number"];
    draw();
    scroll.querySelectorAll("th[aria-sort=ascending] button, th[aria-sort=descending] button")[0]?.focus();
  }

  return {
    update(newAnswer) { answer = newAnswer; draw(); },
    redraw() { if (answer) draw(); },
    reset: () => false,
    destroy() {},
  };
}

/** What is not known stands behind everything. */
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : collate.compare(a, b);
}
