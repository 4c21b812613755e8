// One recorded sample: what its line says, its text and its sum; what the line lacks is said.

import { element, signed, visible, words } from "./dom.js";
import { paramsOf, sumView } from "./sum.js";
import { reachOf, textView, viewsOf } from "./text.js";

//: Characters of a completion in a list.
const TITLE_LENGTH = 200;

/** Return what stands for a completion in a group. */
export function titleOf({ completion, at }, number) {
  if (completion !== null) return completion.slice(0, TITLE_LENGTH);
  return `sample ${number(at)}, whose text is not in this file`;
}

/** Show the sample's names and its prompt; ``facts`` are further pairs of name and value. */
export function aboutView({ prompt, sample, request, is_redacted: isRedacted }, title, facts) {
  const named = [
    ["id", sample.id],
    ["group", sample.group],
    ["request", request],
    ["finish_reason", sample.finish_reason],
    ...facts,
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  return [
    element("h2", {}, title),
    element(
      "p",
      { class: "facts" },
      ...named.map(([name, value]) =>
        element("span", {}, element("span", { class: "quiet" }, `${name} `), String(value)),
      ),
    ),
    prompt ? promptView(prompt) : missing(isRedacted),
  ];
}

function promptView(messages) {
  const parts = messages.map(([role, text]) =>
    element(
      "div",
      { class: "message-of-prompt" },
      role ? element("span", { class: "quiet" }, `${role}: `) : null,
      visible(text) || element("em", { class: "quiet" }, "empty"),
    ),
  );
  return element("div", { class: "prompt", tabindex: 0, role: "group", "aria-label": "Prompt" }, ...parts);
}

function missing(isRedacted) {
  const why = isRedacted
    ? "This capture is redacted: it has hashes instead of texts."
    : "The texts of this sample are not in the file: alarm view --samples joins the file that " +
      "alarm score read.";
  return element("p", { class: "warning" }, why);
}

/** Return the view that is asked for if there is one, else the first that is placed on the text. */
function viewOf(reward, asked) {
  const all = viewsOf(reward);
  if (asked !== null && all.includes(asked)) return asked;
  if (reward.token_rewards) return "total";
  return all.find((name) => reward.aspects[name]?.segments) ?? "total";
}

/** Show the completion; ``onChoose`` is called with the name of another view. */
export function recordedText({ completion, sample }, reward, asked, all, onChoose) {
  if (completion === null) return null;
  const shown = viewOf(reward, asked);
  const from = shown === "total" ? reward : reward.aspects[shown];
  const placed = {
    text: completion,
    spans: from?.token_rewards ? (sample.token_offsets ?? words(completion)) : [],
    unit: sample.token_offsets ? "token" : "word",
    why: whyUnplaced(from),
  };
  const reach = reachOf(all.map((one) => one.reward), shown);
  return textView(placed, reward, shown, reach, onChoose);
}

/** Say why nothing of a view is on the text. */
function whyUnplaced(from) {
  if (!from) return "not computed";
  if (from.segments || from.token_rewards) return "nothing to judge in this completion";
  return "not placed on words, because the sample had no token_offsets";
}

/** Show the sum, or its parts where the file does not say how they were combined. */
export function recordedSum(reward, constants) {
  if (constants) return sumView(reward, paramsOf(constants, {}));
  const cells = (name, value, kind) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { class: "number" }, value),
      element("td", { class: "quiet" }, kind),
    );
  const aspects = Object.entries(reward.aspects).map(([name, aspect]) =>
    cells(name, signed(aspect?.reward), aspect ? "shaped, before weighting" : "not computed"),
  );
  return [
    element("h2", {}, "Parts of the reward"),
    element(
      "p",
      { class: "warning" },
      "The file has neither rule nor threshold nor weights, so the sum cannot be shown: " +
        "alarm view --recipe NAME takes them from the recipe.",
    ),
    element(
      "table",
      { class: "parts" },
      element(
        "tbody",
        {},
        cells("holistic score", signed(reward.holistic.score), "as the model gave it"),
        cells("z", signed(reward.holistic.normalized), `gate ${reward.admitted ? "open" : "shut"}`),
        ...aspects,
        cells("reward", signed(reward.reward), ""),
      ),
    ),
  ];
}
