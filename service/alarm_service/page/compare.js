// The same request rewarded by another loaded recipe: differences of rewards and of ranks.

import { call } from "./api.js";
import { byId, counted, element, plain, signed } from "./dom.js";
import { requestOf } from "./request.js";
import { samplesOf, textOf } from "./samples.js";

/** Offer the other recipes, if there are any; ``readForm`` returns what is to be scored. */
export function startCompare(recipes, readForm, askForKey) {
  byId("compare").hidden = recipes.length < 2;
  if (recipes.length < 2) return;
  const choice = element("select", { id: "compare-with" });
  const body = element("div", { id: "compare-body", "aria-live": "polite" });
  const offer = () => {
    const names = recipes.map((one) => one.name).filter((name) => name !== byId("recipe").value);
    choice.replaceChildren(...names.map((name) => element("option", {}, name)));
    body.replaceChildren();
  };
  const compare = async () => {
    try {
      body.replaceChildren(...(await compared(readForm(), choice.value, askForKey)));
    } catch (error) {
      body.replaceChildren(element("p", { class: "bad" }, error.message));
    }
  };
  byId("recipe").addEventListener("change", offer);
  byId("compare").replaceChildren(
    element("h2", {}, "Compare with another recipe"),
    element(
      "div",
      { class: "buttons" },
      element("label", { for: "compare-with" }, "Recipe"),
      choice,
      element("button", { type: "button", onclick: compare }, "Compare"),
    ),
    body,
  );
  offer();
}

async function compared(form, other, askForKey) {
  // The other recipe keeps its own constants: overrides may name aspects that it does not have.
  const samples = samplesOf(form);
  const forms = [form, { ...form, recipe: other, overrides: "" }];
  const [here, there] = await Promise.all(
    forms.map((one) => call("hierarchical_reward", requestOf(one, samples), askForKey)),
  );
  return comparisonView(samples.map((one) => textOf(one.completion)), here, there);
}

/** Show two answers to the same request beside each other. */
export function comparisonView(completions, here, there) {
  const pairs = completions.map((completion, at) => ({
    completion,
    before: here.rewards[at].reward,
    after: there.rewards[at].reward,
  }));
  const known = pairs.filter(({ before, after }) => before !== null && after !== null);
  const ranks = {
    before: ranksOf(pairs.map((one) => one.before)),
    after: ranksOf(pairs.map((one) => one.after)),
  };
  const titles = ["#", "Completion", here.recipe, there.recipe, "Difference", "Rank", "Rank there"];
  const table = element(
    "table",
    { class: "compared" },
    element(
      "thead",
      {},
      element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title))),
    ),
    element("tbody", {}, ...pairs.map((pair, at) => pairRow(pair, at, ranks))),
  );
  return [
    element("div", { class: "scrolling" }, table),
    element("p", { class: "quiet" }, summary(known)),
  ];
}

function pairRow({ completion, before, after }, at, ranks) {
  const isKnown = before !== null && after !== null;
  const isMoved = isKnown && ranks.before[at] !== ranks.after[at];
  const cell = (text) => element("td", { class: "number" }, text);
  return element(
    "tr",
    { class: isMoved ? "moved" : null },
    cell(String(at + 1)),
    element("td", { class: "clipped" }, completion || "(empty)"),
    cell(signed(before)),
    cell(signed(after)),
    cell(isKnown ? signed(after - before) : "none"),
    cell(ranks.before[at] ?? "none"),
    cell(ranks.after[at] ?? "none"),
  );
}

/** Return each reward's rank, 1 for the largest; equal rewards share one. */
export function ranksOf(rewards) {
  const known = rewards.filter((reward) => reward !== null);
  return rewards.map((reward) =>
    reward === null ? null : 1 + known.filter((other) => other > reward).length,
  );
}

function summary(known) {
  if (!known.length) return "No completion has a reward by both recipes.";
  const sum = known.reduce((total, one) => total + Math.abs(one.after - one.before), 0);
  let numPairs = 0;
  let numReversed = 0;
  known.forEach((one, at) => {
    for (const other of known.slice(at + 1)) {
      numPairs += 1;
      if ((one.before - other.before) * (one.after - other.after) < 0) numReversed += 1;
    }
  });
  return (
    `Mean absolute difference ${plain(sum / known.length)}; ${numReversed} of ` +
    `${counted(numPairs, "pair")} ordered the other way. The other recipe is used without the ` +
    "overrides of this request."
  );
}
