// Elements from data: no markup is ever parsed, so no text can become an element.

/** An element with attributes (`on...` are listeners) and children (strings become text). */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

let open = null;

/** A box under a button, closed by Escape, by a click elsewhere, or by the button itself. */
export function popover(button, fill) {
  button.setAttribute("aria-haspopup", "dialog");
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const mine = open?.button === button;
    closePopover();
    if (mine) return;
    const box = h("div", { class: "popover", role: "dialog", "aria-label": button.getAttribute("aria-label") ?? button.textContent });
    box.append(...[fill(closePopover)].flat());
    button.after(box);
    button.setAttribute("aria-expanded", "true");
    // Kept inside the window: the box grows to the left where the button stands at the right.
    if (box.getBoundingClientRect().right > innerWidth - 8) box.classList.add("leftward");
    open = { button, box };
    box.querySelector("input, button, [tabindex]")?.focus();
  });
}

/** Close whatever is open; true if something was. */
export function closePopover() {
  if (!open) return false;
  const { button, box } = open;
  open = null;
  const inside = box.contains(document.activeElement);
  box.remove();
  button.setAttribute("aria-expanded", "false");
  if (inside) button.focus();
  return true;
}

document.addEventListener("pointerdown", (event) => {
  if (open && !open.box.contains(event.target) && !open.button.contains(event.target)) closePopover();
});
