// Charts as SVG: axes with few ticks, bars, lines and points.

import { element } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 420;
const HEIGHT = 190;
const LEFT = 46;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 24;

/** Create an SVG element. */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Return a frame with scales from values to places; ``label`` says in words what is drawn. */
export function frame(xs, ys, label, format = {}) {
  const [left, right] = widened(xs);
  const [bottom, top] = widened(ys);
  const x = (value) => LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - bottom) / (top - bottom)) * (HEIGHT - BOTTOM - TOP);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of ticks(bottom, top, 4)) {
    svg.append(
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      shape("text", { class: "tick", x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" },
        (format.y ?? short)(value)),
    );
  }
  let last = null;
  for (const value of ticks(left, right, 5)) {
    const text = (format.x ?? short)(value);
    if (text === last) continue;
    last = text;
    // Long labels, such as times, stay within the frame.
    const isAtEnd = x(value) + 3.5 * text.length > WIDTH;
    const place = { x: isAtEnd ? WIDTH : x(value), y: HEIGHT - 7 };
    const anchor = isAtEnd ? "end" : "middle";
    svg.append(shape("text", { class: "tick", ...place, "text-anchor": anchor }, text));
  }
  return { svg, x, y, floor: y(Math.max(bottom, 0)) };
}

/** Draw a histogram, with what is expected as a line, and a dashed line at ``limit``. */
export function histogram({ edges, counts, expected }, label, limit = null) {
  const most = Math.max(...counts, ...(expected ?? []), 1);
  const drawn = frame([edges[0], edges.at(-1)], [0, most], label);
  const { svg, x, y, floor } = drawn;
  counts.forEach((count, at) => {
    if (!count) return;
    const width = Math.max(1, x(edges[at + 1]) - x(edges[at]) - 1);
    const title = shape("title", {}, `${short(edges[at])} to ${short(edges[at + 1])}: ${count}`);
    const place = { x: x(edges[at]), y: y(count), width, height: floor - y(count) };
    svg.append(shape("rect", { class: "bar-of", ...place }, title));
  });
  if (expected) {
    const points = expected.map((value, at) => [(edges[at] + edges[at + 1]) / 2, value]);
    line(drawn, points, "expected");
  }
  if (limit !== null && limit > edges[0] && limit < edges.at(-1)) {
    const place = { x1: x(limit), x2: x(limit), y1: TOP, y2: HEIGHT - BOTTOM };
    svg.append(shape("line", { class: "limit", ...place }, shape("title", {}, short(limit))));
  }
  return svg;
}

/** Draw a line through points. */
export function line({ svg, x, y }, points, kind) {
  const path = points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  svg.append(shape("polyline", { class: kind, points: path }));
}

/** Put a chart under its title. */
export function figure(title, svg, ...notes) {
  return element(
    "figure",
    {},
    element("figcaption", {}, title),
    svg,
    ...notes.map((note) => element("p", { class: "quiet" }, note)),
  );
}

/** Write a number in as few digits as a tick needs. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 10000) return `${+(value / 1000).toFixed(0)}k`;
  const text = size >= 100 || Number.isInteger(value) ? value.toFixed(0) : String(+value.toFixed(2));
  return text.replace("-", "−");
}

function widened([low, high]) {
  return high - low > 1e-12 ? [low, high] : [low - 0.5, high + 0.5];
}

/** Return about ``most`` round values between two bounds. */
export function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) {
    found.push(at * step || 0);
  }
  return found;
}
