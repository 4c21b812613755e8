// Charts of the report of `alarm replay`: two histograms, points, bars and shares of a whole.

import { shape, ticks } from "./charts.js";
import { element, plain } from "./dom.js";

const WIDTH = 600;
const BARS_WIDTH = 400;
const HEIGHT = 240;
const LEFT = 48;
const BOTTOM = 32;
const TOP = 10;
const RIGHT = 12;

const NUM_BINS = 40;
const MAX_TICKS = 6;

function canvas(title, height, width, ...children) {
  const attributes = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title };
  return shape("svg", attributes, ...children);
}

const label = (x, y, text, anchor = "middle", kind = "") =>
  shape("text", { x, y, "text-anchor": anchor, class: kind }, text);

function scale(low, high, from, to) {
  const width = high - low || 1;
  return (value) => from + ((value - low) / width) * (to - from);
}

/** Return the ends of an axis, a little beyond all values. */
function endsOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(low <= high)) return [0, 1];
  const margin = (high - low) * 0.03 || Math.max(Math.abs(high), 1) * 0.03;
  return [low - margin, high + margin];
}

/** Write the numbers of an axis with as many digits as tell them apart. */
function tickLabels(all) {
  const step = all.length > 1 ? all[1] - all[0] : 1;
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  return all.map((value) => value.toFixed(digits).replace("-", "−"));
}

function axis(low, high, across) {
  const all = ticks(low, high, MAX_TICKS);
  const labels = tickLabels(all);
  return all.flatMap((value, at) => [
    shape("line", {
      x1: across(value),
      x2: across(value),
      y1: TOP,
      y2: HEIGHT - BOTTOM,
      class: "axis",
    }),
    label(across(value), HEIGHT - BOTTOM + 16, labels[at]),
  ]);
}

/** Count values in equal bins between two ends. */
export function binned(values, low, high, numBins = NUM_BINS) {
  const counts = new Array(numBins).fill(0);
  for (const value of values) {
    const at = Math.floor((numBins * (value - low)) / (high - low || 1));
    counts[Math.min(numBins - 1, Math.max(0, at))] += 1;
  }
  return counts;
}

/** Draw how values were distributed before and are now. */
export function histograms(title, before, now) {
  const [low, high] = endsOf([...before, ...now]);
  const across = scale(low, high, LEFT, WIDTH - RIGHT);
  const [old, current] = [before, now].map((values) => binned(values, low, high));
  const most = Math.max(1, ...old, ...current);
  const up = scale(0, most, HEIGHT - BOTTOM, TOP);
  const steps = (counts) => {
    const size = (high - low) / NUM_BINS;
    const line = counts.map(
      (count, at) => `L${across(low + at * size)} ${up(count)}H${across(low + (at + 1) * size)}`,
    );
    return `M${across(low)} ${up(0)}${line.join("")}L${across(high)} ${up(0)}`;
  };
  return canvas(
    title,
    HEIGHT,
    WIDTH,
    ...axis(low, high, across),
    label(LEFT - 6, up(most) + 10, String(most), "end"),
    label(LEFT - 6, up(0), "0", "end"),
    shape("path", { d: steps(current), class: "now" }),
    shape("path", { d: steps(old), class: "before" }),
  );
}

/** Draw a point per sample: its value before to the right, now upward; ``kindOf`` is a class. */
export function points(title, pairs, kindOf) {
  const [left, right] = endsOf(pairs.map(([before]) => before));
  const [low, high] = endsOf(pairs.map(([, now]) => now));
  const across = scale(left, right, LEFT, WIDTH - RIGHT);
  const up = scale(low, high, HEIGHT - BOTTOM, TOP);
  const sides = ticks(low, high, MAX_TICKS);
  const [from, to] = [Math.max(left, low), Math.min(right, high)];
  const equal = { x1: across(from), y1: up(from), x2: across(to), y2: up(to), class: "equal" };
  const labels = tickLabels(sides);
  const marks = pairs.map((pair) =>
    shape("circle", { cx: across(pair[0]), cy: up(pair[1]), r: 2.2, class: kindOf(pair) }),
  );
  return canvas(
    title,
    HEIGHT,
    WIDTH,
    ...axis(left, right, across),
    ...sides.map((value, at) => label(LEFT - 6, up(value) + 4, labels[at], "end")),
    ...(from < to ? [shape("line", equal)] : []),
    ...marks,
  );
}

/** Draw bars from 0, each with its name and number. */
export function bars(title, rows) {
  const most = Math.max(...rows.map(([, value]) => value), 0) || 1;
  const height = TOP + 30 * rows.length;
  const along = scale(0, most, 130, BARS_WIDTH - 60);
  const shapes = rows.flatMap(([name, value], at) => [
    label(122, TOP + 30 * at + 17, name, "end", "value"),
    shape("rect", {
      x: 130,
      y: TOP + 30 * at + 3,
      width: along(value) - 130,
      height: 20,
      class: "gained",
    }),
    label(along(value) + 6, TOP + 30 * at + 17, plain(value), "start", "value"),
  ]);
  return canvas(title, height, BARS_WIDTH, ...shapes);
}

/** Draw shares of a whole: ``parts`` are name, number and class. */
export function shares(title, parts) {
  const total = parts.reduce((sum, [, number]) => sum + number, 0) || 1;
  let at = 0;
  const shapes = parts.map(([name, number, kind]) => {
    const width = ((WIDTH - 2) * number) / total;
    const bar = shape("rect", { x: 1 + at, y: 2, width, height: 26, class: kind });
    bar.append(shape("title", {}, `${name}: ${number}`));
    at += width;
    return bar;
  });
  return canvas(title, 30, WIDTH, ...shapes);
}

/** Explain classes: pairs of a class and its words. */
export function keys(all) {
  const mark = (kind) =>
    shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, shape("rect", {
      x: 1,
      y: 1,
      width: 8,
      height: 8,
      class: kind,
    }));
  return element(
    "p",
    { class: "keys quiet" },
    ...all.map(([kind, text]) => element("span", {}, mark(kind), text)),
  );
}
