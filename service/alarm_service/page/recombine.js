// Rewards under other constants, from the components that the server returned.

import { element, signed } from "./dom.js";
import { reshaped, SHAPINGS } from "./shaping.js";
import { partsOf, SUMS } from "./sum.js";

/** Return whether every reward is a weighted sum, with the holistic score on one token. */
export const canRecombine = (rewards, params) =>
  params.rule in SUMS &&
  rewards.every(
    (one) => one.error || (!one.holistic.segments && partsOf(one, params).rest === 0),
  );

/** Combine a reward's components under other constants; nothing is scored again. */
export function recombined(reward, params, changed) {
  if (reward.error) return reward;
  const admitted = reward.holistic.normalized >= changed.threshold;
  const now = { ...reward, admitted, aspects: aspectsOf(reward, params, changed) };
  return {
    ...now,
    reward: partsOf({ ...now, reward: 0 }, changed).start,
    token_rewards: tokenRewards(reward, params, now, changed),
  };
}

/** Return the aspects, shaped again where shaping or scale was changed. */
function aspectsOf(reward, params, changed) {
  const aspects = { ...reward.aspects };
  for (const [name, { shaping, scale }] of Object.entries(changed.shapes)) {
    const isSame = scale === 1 && shaping === params.shapes[name].shaping;
    if (!isSame) aspects[name] = reshaped(aspects[name], shaping, scale);
  }
  return aspects;
}

/** Place the changed parts on the tokens: z where the server placed it, else on the last one. */
function tokenRewards(reward, params, now, changed) {
  if (!reward.token_rewards) return null;
  const [before, ...aspects] = partsOf(reward, params).parts;
  const [after, ...changedAspects] = partsOf({ ...now, reward: 0 }, changed).parts;
  const placed = Float64Array.from(reward.token_rewards);
  for (const part of aspects) addTo(placed, part, -1);
  const isKnown = before.counts && before.product !== 0;
  const factor = after.counts && isKnown ? after.product / before.product : 0;
  for (let at = 0; at < placed.length; at++) placed[at] *= factor;
  if (after.counts && !isKnown) placed[placed.length - 1] += after.product;
  for (const part of changedAspects) addTo(placed, part, 1);
  return Array.from(placed);
}

/** Add what an aspect that counts places on each token, times a factor. */
function addTo(rewards, { counts, weight, aspect }, factor) {
  const placed = counts ? aspect.token_rewards : null;
  if (!placed) return;
  for (let at = 0; at < rewards.length; at++) rewards[at] += factor * weight * placed[at];
}

/** Write what was changed as the overrides of a request. */
export function changedOverrides(params, changed) {
  const weights = Object.entries(changed.weights).filter(
    ([name, weight]) => weight !== params.weights[name],
  );
  return {
    ...(changed.rule === params.rule ? {} : { rule: changed.rule }),
    ...(changed.threshold === params.threshold ? {} : { threshold: changed.threshold }),
    ...(changed.holisticWeight === params.holisticWeight
      ? {}
      : { holistic_weight: changed.holisticWeight }),
    ...(weights.length ? { weights: Object.fromEntries(weights) } : {}),
    ...shapingOverride(params, changed),
  };
}

/** Return the shaping as an override, which holds for all aspects; scales are keys of recipes. */
function shapingOverride(params, changed) {
  const shapes = Object.entries(changed.shapes);
  const isChanged = shapes.some(([name, { shaping }]) => shaping !== params.shapes[name].shaping);
  const [first, ...others] = new Set(shapes.map(([, { shaping }]) => shaping));
  return isChanged && !others.length ? { shaping: first } : {};
}

/** Return whether the overrides of a request can say what was changed. */
const isOverride = (params, changed) => {
  const shapes = Object.entries(changed.shapes);
  const isOne = new Set(shapes.map(([, { shaping }]) => shaping)).size <= 1;
  return (
    shapes.every(([, { scale }]) => scale === 1) &&
    (isOne || shapes.every(([name, { shaping }]) => shaping === params.shapes[name].shaping))
  );
};

const KEEP = "Use as overrides";

/** Return whether an aspect's numbers before shaping are known wherever it was computed. */
const canReshape = (rewards, name) => {
  const found = rewards.map((one) => one.aspects[name]).filter(Boolean);
  return found.length > 0 && found.every((aspect) => aspect.values);
};

function shapeLines(name, shape) {
  const select = element(
    "select",
    {},
    ...Object.keys(SHAPINGS).map((one) => element("option", { selected: one === shape.shaping }, one)),
  );
  select.addEventListener("input", () => (shape.shaping = select.value));
  return [
    element("label", {}, element("span", {}, `shaping of ${name}`), select),
    slider(`scale of ${name}`, shape.scale, 0, 5, (value) => (shape.scale = value)),
  ];
}

/** Call a function once in the next frame, however often it is asked for before. */
function inNextFrame(call) {
  let isAsked = false;
  return () => {
    if (!isAsked) requestAnimationFrame(() => (isAsked = false) || call());
    isAsked = true;
  };
}

/** Show a slider for each constant; ``onChange`` gets the changed constants, ``onKeep`` too. */
export function sliders(rewards, params, onChange, onKeep) {
  const heading = element("h2", {}, "Other constants");
  if (!canRecombine(rewards, params)) {
    const why =
      "These rewards are no weighted sums, so only the server can combine them again: use overrides.";
    return [heading, element("p", { class: "quiet" }, why)];
  }
  const changed = {
    ...params,
    weights: { ...params.weights },
    shapes: Object.fromEntries(
      Object.entries(params.shapes).map(([name, shape]) => [name, { ...shape }]),
    ),
  };
  const keep = element("button", { type: "button", onclick: () => onKeep(changed) }, KEEP);
  const tell = inNextFrame(() => {
    keep.disabled = !isOverride(params, changed);
    keep.title = keep.disabled ? "Scales, and different shapings, are keys of a recipe" : "";
    onChange(changed);
  });
  const rule = element(
    "select",
    { "aria-label": "Rule" },
    ...Object.keys(SUMS).map((name) => element("option", { selected: name === params.rule }, name)),
  );
  rule.addEventListener("change", () => {
    changed.rule = rule.value;
    tell();
  });
  const scores = rewards.filter((one) => !one.error).map((one) => one.holistic.normalized);
  const reach = Math.ceil(Math.max(3, ...[...scores, params.threshold].map(Math.abs)));
  const lines = [
    slider("threshold", params.threshold, -reach, reach, (value) => (changed.threshold = value)),
    weightSlider("weight of holistic", params.holisticWeight, (value) => {
      changed.holisticWeight = value;
    }),
    ...Object.entries(params.weights).flatMap(([name, weight]) => [
      weightSlider(`weight of ${name}`, weight, (value) => (changed.weights[name] = value)),
      ...(canReshape(rewards, name) ? shapeLines(name, changed.shapes[name]) : []),
    ]),
  ];
  const inputs = element("div", { class: "sliders" }, ...lines);
  inputs.addEventListener("input", tell);
  return [
    heading,
    element(
      "p",
      { class: "quiet" },
      "Rewards are combined again at once, from the components above; nothing is scored.",
    ),
    element("label", { class: "rule" }, element("span", {}, "rule"), rule),
    inputs,
    element(
      "div",
      { class: "buttons" },
      keep,
      element("button", { type: "button", onclick: () => onChange(null) }, "Reset"),
    ),
  ];
}

function weightSlider(name, weight, onInput) {
  const most = Math.max(2, 2 * Math.abs(weight));
  return slider(name, weight, weight < 0 ? -most : 0, most, onInput);
}

function slider(name, value, min, max, onInput) {
  const input = element("input", { type: "range", min, max, step: "any", value });
  const output = element("output", {}, signed(value));
  input.addEventListener("input", () => {
    const rounded = Math.round(input.valueAsNumber * 100) / 100;
    onInput(rounded);
    output.textContent = signed(rounded);
  });
  input.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 0.05, ArrowUp: 0.05, ArrowLeft: -0.05, ArrowDown: -0.05 }[event.key];
    if (!step) return;
    event.preventDefault();
    input.valueAsNumber += step;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  return element("label", {}, element("span", {}, name), input, output);
}
