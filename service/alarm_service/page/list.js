// A list of any length, of which only the rows in sight are in the document.

import { byId, element } from "./dom.js";

const ROW_HEIGHT = 30;

//: Rows drawn above and below those in sight.
const MARGIN = 12;

/**
 * Make a list in an element. ``cellsOf`` gives the cells of an item, ``onChoose`` is called with an
 * item that is clicked or reached by the keyboard.
 */
export function virtualList(box, cellsOf, onChoose) {
  const space = element("div", { class: "space", role: "presentation" });
  let items = [];
  let chosen = null;
  let rows = new Map(); // Those in the document, by their place in the list.
  let isDue = false;
  box.replaceChildren(space);
  box.addEventListener("scroll", drawSoon, { passive: true });
  box.addEventListener("keydown", move);
  new ResizeObserver(drawSoon).observe(box);

  function drawSoon() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      draw();
    });
  }

  function draw() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - MARGIN);
    const inSight = Math.ceil(box.clientHeight / ROW_HEIGHT) + 2 * MARGIN;
    const end = Math.min(items.length, first + inSight);
    for (const [at, row] of rows) {
      if (at >= first && at < end) continue;
      row.remove();
      rows.delete(at);
    }
    const added = [];
    for (let at = first; at < end; at += 1) {
      if (rows.has(at)) continue;
      rows.set(at, rowOf(at));
      added.push(rows.get(at));
    }
    space.append(...added);
    if (byId(`item-${chosen}`)) box.setAttribute("aria-activedescendant", `item-${chosen}`);
    else box.removeAttribute("aria-activedescendant");
  }

  function rowOf(at) {
    const item = items[at];
    const row = element(
      "div",
      {
        id: `item-${item}`,
        class: `row${item === chosen ? " chosen" : ""}`,
        role: "option",
        "aria-selected": String(item === chosen),
        "aria-posinset": at + 1,
        "aria-setsize": items.length,
        onclick: () => choose(item),
      },
      ...cellsOf(item),
    );
    row.style.top = `${at * ROW_HEIGHT}px`;
    return row;
  }

  function mark(item) {
    for (const row of rows.values()) {
      const isChosen = row.id === `item-${item}`;
      row.classList.toggle("chosen", isChosen);
      row.setAttribute("aria-selected", String(isChosen));
    }
    chosen = item;
    draw();
  }

  function choose(item) {
    mark(item);
    onChoose(item);
  }

  function move(event) {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW_HEIGHT) - 1);
    const now = items.indexOf(chosen);
    const last = items.length - 1;
    const wanted = {
      ArrowDown: now + 1,
      ArrowUp: now - 1,
      PageDown: now + page,
      PageUp: now - page,
      Home: 0,
      End: last,
    }[event.key];
    if (wanted === undefined || last < 0) return;
    event.preventDefault();
    const next = Math.min(last, Math.max(0, wanted));
    bringIntoSight(next);
    choose(items[next]);
  }

  function bringIntoSight(at) {
    const top = at * ROW_HEIGHT;
    if (top < box.scrollTop) box.scrollTop = top;
    const least = top + ROW_HEIGHT - box.clientHeight;
    if (least > box.scrollTop) box.scrollTop = least;
  }

  return {
    /** Show other items, from the first. */
    show(others) {
      items = others;
      space.style.height = `${items.length * ROW_HEIGHT}px`;
      box.scrollTop = 0;
      rows = new Map();
      space.replaceChildren();
      draw();
    },
    /** Mark an item as chosen, and scroll to it if it is in the list. */
    mark(item) {
      const at = items.indexOf(item);
      if (at >= 0) bringIntoSight(at);
      mark(item);
    },
  };
}
