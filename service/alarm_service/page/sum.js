// How one reward came about: the parts that the server returned, and whether they add up to it.

import { counted, element, plain, signed } from "./dom.js";
import { isFound } from "./text.js";

//: What counts under the rules that add weighted parts; the other rules are no sums.
export const SUMS = {
  hierarchical: (reward) => ({ holistic: true, aspects: reward.admitted }),
  weighted_sum: () => ({ holistic: true, aspects: true }),
  holistic_only: () => ({ holistic: true, aspects: false }),
  aspect_only: () => ({ holistic: false, aspects: true }),
};

//: The rules that use the threshold.
export const GATED = new Set(["hierarchical", "soft_gate", "cascade", "gear"]);

//: Sums of floats in another order differ by less.
const TOLERANCE = 1e-6;

/** Merge a recipe's constants with the overrides of a request. */
export function paramsOf(recipe, overrides) {
  return {
    rule: overrides.rule ?? recipe.rule,
    threshold: overrides.threshold ?? recipe.threshold,
    holisticWeight: overrides.holistic_weight ?? recipe.holistic_weight,
    weights: { ...recipe.weights, ...overrides.weights },
    shapes: Object.fromEntries(
      Object.entries(recipe.shapings ?? {}).map(([name, shaping]) => [
        name,
        { shaping: overrides.shaping ?? shaping, scale: 1 },
      ]),
    ),
  };
}

/** Return the parts of a reward: weight, value, product, and whether it counts. */
export function partsOf(reward, params) {
  const counts = SUMS[params.rule]?.(reward) ?? { holistic: false, aspects: false };
  const parts = [
    {
      name: "holistic",
      value: reward.holistic.normalized,
      weight: params.holisticWeight,
      counts: counts.holistic,
    },
  ];
  for (const [name, aspect] of Object.entries(reward.aspects)) {
    const weight = params.weights[name] ?? 0;
    parts.push({ name, aspect, value: aspect?.reward ?? null, weight, counts: counts.aspects });
  }
  let start = 0;
  for (const part of parts) {
    part.product = part.value === null ? null : part.weight * part.value;
    part.counts = part.counts && part.product !== null;
    part.start = start;
    if (part.counts) start += part.product;
  }
  const rest = reward.reward - start;
  return { parts, start, rest: Math.abs(rest) > TOLERANCE ? rest : 0 };
}

/**
 * Show the holistic score, the gate, the parts and the reward; ``rival`` is another reward that it is
 * compared with, and its name.
 */
export function sumView(reward, params, rival = null) {
  const { parts, start, rest } = partsOf(reward, params);
  const steps = parts.filter((part) => part.product !== null);
  const ends = steps.map((part) => part.start + part.product);
  const scale = scaleOf([0, reward.reward, start, ...steps.map((part) => part.start), ...ends]);
  const rows = parts.map((part) => partRow(part, params, scale));
  if (rest || !(params.rule in SUMS)) rows.push(restRow(rest, start, params, scale));
  rows.push(
    row({
      title: "reward",
      detail: `rule ${params.rule}`,
      bar: bar(0, reward.reward, scale, "counted"),
      number: signed(reward.reward),
      kind: "total",
    }),
  );
  return [
    element("h2", {}, "How the reward came about"),
    gate(reward, params),
    rival && difference(reward, params, rival),
    element("div", { class: "waterfall", role: "table", "aria-label": "Sum" }, ...rows),
  ].filter((one) => one !== null);
}

/** Say by which parts a reward differs from another one. */
function difference(reward, params, { reward: other, name }) {
  const [mine, others] = [reward, other].map((one) => partsOf(one, params));
  const product = (part) => (part?.counts ? part.product : 0);
  const changes = mine.parts.map((part, at) => [part.name, product(part) - product(others.parts[at])]);
  changes.push(["rule", mine.rest - others.rest]);
  const told = changes
    .filter(([, change]) => Math.abs(change) > TOLERANCE)
    .map(([part, change]) => `${part} ${signed(change)}`);
  const total = reward.reward - other.reward;
  if (!told.length) return element("p", { class: "difference" }, `As much as ${name}.`);
  const gates = reward.admitted !== other.admitted && params.rule in SUMS && GATED.has(params.rule);
  return element(
    "p",
    { class: "difference" },
    `${plain(Math.abs(total))} ${total < 0 ? "less" : "more"} than ${name}` +
      (gates ? `, whose gate is ${other.admitted ? "open" : "shut"}` : "") +
      `: ${told.join(", ")}.`,
  );
}

function gate({ holistic, admitted }, params) {
  const distance = holistic.normalized - params.threshold;
  const reach = Math.max(3, Math.abs(holistic.normalized), Math.abs(params.threshold)) * 1.1;
  const place = (value) => `${(50 + (50 * value) / reach).toFixed(3)}%`;
  const line = element("div", { class: "gate-line", "aria-hidden": "true" });
  const isNearZero = Math.abs(params.threshold) < 0.12 * reach;
  const marks = [
    ["zero", 0, isNearZero ? "" : "0"],
    ["threshold", params.threshold, "threshold"],
    ["z", holistic.normalized, "z"],
  ];
  for (const [name, value, title] of marks) {
    const mark = element("span", { class: `mark ${name}` }, element("span", {}, title));
    mark.style.left = place(value);
    line.append(mark);
  }
  const open = element("span", { class: "open-range" });
  open.style.left = place(params.threshold);
  line.append(open);
  const number = (name, value) =>
    element("span", {}, element("span", { class: "quiet" }, `${name} `), value);
  const state = admitted ? "open" : "shut";
  return element(
    "div",
    { class: "gate" },
    element(
      "p",
      { class: "numbers" },
      number("holistic score", plain(holistic.score)),
      number("z", signed(holistic.normalized)),
      number("threshold", signed(params.threshold)),
      number("distance", signed(distance)),
      element("strong", { class: `state ${state}` }, `gate ${state}`),
      GATED.has(params.rule)
        ? null
        : element("span", { class: "quiet" }, `but ${params.rule} does not use it`),
    ),
    line,
  );
}

function partRow(part, params, scale) {
  if (part.product === null || part.aspect?.values?.raw.length === 0) {
    const detail = part.product === null ? "not computed" : "nothing to judge in it, which adds 0";
    return row({ title: part.name, detail, bar: track(scale), number: "none", kind: "none" });
  }
  const product = `${plain(part.weight)} × ${signed(part.value)}`;
  const detail = part.aspect ? `weight × shaped = ${product}` : `weight × z = ${product}`;
  const shape = params.shapes[part.name];
  return row({
    title: part.name,
    detail: part.counts || !(params.rule in SUMS) ? detail : `${detail}; not counted`,
    before: part.aspect ? segmentsOf(part.aspect, shape) : null,
    bar: bar(part.start, part.product, scale, part.counts ? "counted" : "uncounted"),
    number: part.counts ? signed(part.product) : `(${signed(part.product)})`,
    kind: part.counts ? "part" : "none",
  });
}

function segmentsOf(aspect, shape) {
  const facts = [judgedOf(aspect), shapedOf(aspect, shape)].filter((one) => one !== null);
  return facts.length ? facts.join("; ") : null;
}

//: Different values before shaping that are named.
const MOST_VALUES = 3;

/** Say which values were shaped: those of labels, or of scores as the recipe scales them. */
function shapedOf({ values }, shape) {
  if (!values) return null;
  const raw = values.raw.map((value) => value * (shape?.scale ?? 1));
  const numbers = new Map();
  for (const value of raw) {
    const text = signed(value);
    numbers.set(text, (numbers.get(text) ?? 0) + 1);
  }
  const sum = raw.reduce((total, one) => total + one, 0);
  const told = [...numbers].map(([text, number]) => (number > 1 ? `${number} × ${text}` : text));
  const many = `${raw.length} values, mean ${signed(sum / raw.length)}`;
  const before = numbers.size > MOST_VALUES ? many : told.join(", ");
  return `before shaping${shape ? ` (${shape.shaping})` : ""}: ${before}`;
}

function judgedOf(aspect) {
  if (!aspect.segments) return null;
  const read = aspect.segments.filter((segment) => segment.score !== null || isFound(segment));
  if (!read.length) return aspect.values?.raw.length ? "nothing found" : "no segment to judge";
  const labels = new Map();
  for (const { label } of read) labels.set(label, (labels.get(label) ?? 0) + 1);
  const found = [...labels].map(([label, number]) => `${number} ${label ?? "graded"}`).join(", ");
  const segments = counted(read.length, "segment");
  const scores = read.map(({ score }) => score).filter((score) => score !== null);
  if (!scores.length) return `${segments} (${found})`;
  const mean = scores.reduce((sum, one) => sum + one, 0) / scores.length;
  return `${segments} (${found}), mean score ${signed(mean)}`;
}

function restRow(rest, start, params, scale) {
  return row({
    title: "rule",
    detail: SUMS[params.rule]
      ? "what the recipe adds after the sum, such as a length penalty"
      : `${params.rule} is no weighted sum of the parts above`,
    bar: bar(start, rest, scale, "counted"),
    number: signed(rest),
    kind: "part",
  });
}

function row({ title, before = null, detail, bar: drawn, number, kind }) {
  return element(
    "div",
    { class: `step ${kind}`, role: "row" },
    element(
      "div",
      { role: "cell" },
      element("strong", {}, title),
      before && element("div", { class: "quiet" }, before),
      element("div", { class: "quiet" }, detail),
    ),
    element("div", { role: "cell", "aria-hidden": "true" }, drawn),
    element("div", { class: "number", role: "cell" }, number),
  );
}

function scaleOf(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const width = high - low || 1;
  return (value) => (100 * (value - low)) / width;
}

function track(scale) {
  const drawn = element("div", { class: "track" });
  const zero = element("span", { class: "zero-line" });
  zero.style.left = `${scale(0)}%`;
  drawn.append(zero);
  return drawn;
}

function bar(start, change, scale, kind) {
  const drawn = track(scale);
  const from = scale(Math.min(start, start + change));
  const to = scale(Math.max(start, start + change));
  const filled = element("span", { class: `bar ${kind} ${change < 0 ? "negative" : "positive"}` });
  filled.style.left = `${from}%`;
  filled.style.width = `${to - from}%`;
  drawn.append(filled);
  return drawn;
}
