// The completions of one prompt beside each other, with the advantage that GRPO computes.

import { counted, element, plain, signed, visible } from "./dom.js";

//: TRL's constant, which keeps the division finite.
const EPSILON = 1e-4;

/** Return mean, deviation (n − 1) and advantages of the rewards; null stands for a failure. */
export function advantagesOf(rewards) {
  const known = rewards.filter((reward) => reward !== null);
  const mean = known.reduce((sum, one) => sum + one, 0) / known.length;
  const squares = known.reduce((sum, one) => sum + (one - mean) ** 2, 0);
  const deviation = known.length > 1 ? Math.sqrt(squares / (known.length - 1)) : null;
  const advantages = rewards.map((reward) =>
    reward === null || deviation === null ? null : (reward - mean) / (deviation + EPSILON),
  );
  return { mean, deviation, advantages };
}

/**
 * Show the group, sorted by reward; ``onChoose`` is called with the index of a completion. The list
 * is scrolled to ``scrolled`` pixels, or to the chosen completion.
 */
export function groupView(completions, rewards, chosen, onChoose, scrolled = null) {
  const { mean, deviation, advantages } = advantagesOf(rewards.map((one) => one.reward));
  const order = completions.map((_, at) => at);
  order.sort((a, b) => (rewards[b].reward ?? -Infinity) - (rewards[a].reward ?? -Infinity));
  const reach = rewards.reduce((most, one) => Math.max(most, Math.abs(one.reward ?? 0)), 0) || 1;
  const head = ["#", "Completion", "Reward", "", "Gate", "z", "Advantage"].map((title) =>
    title ? element("th", { scope: "col" }, title) : element("td"),
  );
  const row = (at) =>
    groupRow(at, completions[at], rewards[at], advantages[at], at === chosen, reach, onChoose);
  const numFailed = rewards.filter((one) => one.error).length;
  const known = rewards.map((one) => one.reward).filter((one) => one !== null && one !== undefined);
  // As `alarm audit`'s: equal texts in different batches differ in the last bits.
  const isFlat = deviation !== null && Math.max(...known) - Math.min(...known) <= 1e-4;
  return [
    element("h2", {}, "Group"),
    scrollingTable(
      element("thead", {}, element("tr", {}, ...head)), order, row, chosen, onChoose, scrolled,
    ),
    element(
      "p",
      { class: "quiet" },
      deviation === null
        ? "An advantage needs two completions with a reward."
        : `mean ${signed(mean)}, deviation ${plain(deviation)} (n − 1); advantage = (reward − mean) ` +
            "/ (deviation + 0.0001)",
    ),
    isFlat
      ? element(
          "p",
          { class: "warning" },
          "The rewards are equal, or differ by 0.0001 at most: GRPO learns nothing from this group.",
        )
      : null,
    numFailed
      ? element(
          "p",
          { class: "warning" },
          `${counted(numFailed, "completion")} without a reward: left out of mean and deviation.`,
        )
      : null,
  ].filter((one) => one !== null);
}

//: Rows that are in the document at once; a row's height, as in page.css.
const NUM_ROWS = 40;
const ROW_PX = 32;

/** Make a table that holds only the rows around those that are seen. */
function scrollingTable(head, order, row, chosen, onChoose, scrolled) {
  const known = new Map();
  const made = (at) => known.get(at) ?? known.set(at, row(at)).get(at);
  const body = element("tbody");
  const box = element("div", { class: "scrolling" }, element("table", {}, head, body));
  const draw = (first) => {
    const rows = order.slice(first, first + NUM_ROWS).map(made);
    const after = order.length - first - rows.length;
    body.replaceChildren(...space(first), ...rows, ...space(after));
    body.dataset.first = first;
  };
  const place = order.indexOf(chosen);
  const firstAt = (at) => Math.max(0, Math.min(at - NUM_ROWS / 4, order.length - NUM_ROWS));
  draw(firstAt(scrolled === null ? place : Math.floor(scrolled / ROW_PX)));
  box.addEventListener("scroll", () => {
    const first = firstAt(Math.floor(box.scrollTop / ROW_PX));
    if (Math.abs(first - body.dataset.first) >= NUM_ROWS / 5) draw(first);
  });
  // Rows outside the document cannot be reached with Tab.
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, End: order.length, Home: -order.length }[event.key];
    if (!step) return;
    event.preventDefault();
    onChoose(order[Math.max(0, Math.min(order.length - 1, place + step))]);
  });
  if (order.length > NUM_ROWS) {
    requestAnimationFrame(() => {
      if (scrolled !== null) {
        box.scrollTop = scrolled;
        return;
      }
      const chosenPx = place * ROW_PX;
      const isSeen = chosenPx >= box.scrollTop && chosenPx < box.scrollTop + box.clientHeight - ROW_PX;
      if (!isSeen) box.scrollTop = chosenPx - box.clientHeight / 2;
    });
  }
  return box;
}

function space(numRows) {
  if (numRows <= 0) return [];
  const filler = element("td", { colspan: 7, class: "space" });
  filler.style.height = `${numRows * ROW_PX}px`;
  return [element("tr", { "aria-hidden": "true" }, filler)];
}

function shortened(text) {
  const points = Array.from(text.slice(0, 602));
  return points.length > 300 ? `${points.slice(0, 299).join("")}…` : text;
}

function groupRow(at, completion, reward, advantage, isChosen, reach, onChoose) {
  const name = element(
    "button",
    { type: "button", class: "open", "aria-pressed": String(isChosen), onclick: () => onChoose(at) },
    completion.trim() ? visible(shortened(completion)) : completion ? "(white space)" : "(empty)",
  );
  const cell = (text, kind = "number") => element("td", { class: kind }, text);
  const chosen = { class: isChosen ? "chosen" : null };
  if (reward.error) {
    const why = element("td", { colspan: 5, class: "bad" }, errorText(reward.error));
    return element("tr", chosen, cell(at + 1), element("td", {}, name), why);
  }
  return element(
    "tr",
    chosen,
    cell(at + 1),
    element("td", {}, name),
    cell(signed(reward.reward)),
    element("td", { class: "small-bar" }, smallBar(reward.reward, reach)),
    cell(reward.admitted ? "open" : "shut", reward.admitted ? "state open" : "state shut"),
    cell(signed(reward.holistic.normalized)),
    cell(advantage === null ? "none" : signed(advantage)),
  );
}

function smallBar(value, reach) {
  const filled = element("span", { class: `bar counted ${value < 0 ? "negative" : "positive"}` });
  const size = (50 * Math.abs(value)) / reach;
  filled.style.left = `${value < 0 ? 50 - size : 50}%`;
  filled.style.width = `${size}%`;
  const zero = element("span", { class: "zero-line" });
  zero.style.left = "50%";
  return element("div", { class: "track", "aria-hidden": "true" }, zero, filled);
}

const WORDS = {
  too_long: "too long for a model",
  non_finite: "a model gave no finite number",
  invalid_sample: "not usable",
  model_failed: "a model failed",
  unsupported_content: "has content that a model cannot read",
  group_incomplete: "the rest of its group did not come",
  group_conflict: "contradicts its group",
  overlong: "over the policy's token limit",
};

/** Say in words why a sample has no reward. */
export function errorText({ code, message }) {
  const hint = message.includes("`fields`") ? '; choose "JSON lines" for samples with fields' : "";
  return `No reward: ${WORDS[code] ?? code} (${message}${hint})`;
}
