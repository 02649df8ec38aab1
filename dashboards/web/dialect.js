// The panels and options that this console draws are listed in dialect.json; all else is refused.

/** The first thing of a panel that the dialect does not know, as text; "" if it knows all. */
export function unknownIn(panel, dialect) {
  const own = dialect.panels[panel.type];
  return own ? unknown(panel, { ...dialect.panel, ...own }, panel.type) : `a panel of type ${panel.type}`;
}

/** `"*"` allows anything, a list its members, an object its keys; a list of values is checked one by one. */
function unknown(value, allowed, path) {
  if (allowed === "*") return "";
  if (Array.isArray(value)) return first(value, (one) => unknown(one, allowed, path));
  if (Array.isArray(allowed)) return allowed.includes(value) ? "" : `${path} = ${JSON.stringify(value)}`;
  if (typeof value !== "object" || value === null) return `${path} = ${JSON.stringify(value)}`;
  return first(Object.entries(value), ([key, one]) => (Object.hasOwn(allowed, key) ? unknown(one, allowed[key], `${path}.${key}`) : `${path}.${key}`));
}

function first(all, check) {
  for (const one of all) {
    const found = check(one);
    if (found) return found;
  }
  return "";
}
