// What each model read of a completion: its text, with what was truncated or left out.

import { codePoints, counted, element, visible } from "./dom.js";
import { errorText } from "./group.js";

//: What stays in sight above a completion.
const MARGIN_PX = 60;

/** Show the renderings of one sample's models; ``chosen`` names the model that is shown. */
export function readView(renderings, text, chosen, onChoose) {
  const one = renderings.find(({ model }) => model === chosen) ?? renderings[0];
  return [
    element(
      "div",
      { class: "bar-of-views" },
      element("h2", {}, "What the models read"),
      modelChoice(renderings, one.model, onChoose),
    ),
    ...(one.error ? [element("p", { class: "bad" }, errorText(one.error))] : found(one, text)),
  ];
}

/** Scroll each text to its completion, which may be far below a long prompt. */
export function scrollToCompletions(section) {
  for (const box of section.querySelectorAll(".read-text")) {
    const mark = box.querySelector("mark");
    if (!mark) continue;
    const below = mark.getBoundingClientRect().bottom - box.getBoundingClientRect().bottom;
    if (below > 0) box.scrollTop = mark.getBoundingClientRect().top - box.getBoundingClientRect().top - MARGIN_PX;
  }
}

function modelChoice(renderings, chosen, onChoose) {
  const choices = renderings.map(({ model }) => {
    const input = element("input", {
      type: "radio",
      name: "read-by",
      value: model,
      checked: model === chosen,
      onchange: () => onChoose(model),
    });
    return element("label", { class: "choice" }, input, element("span", {}, model));
  });
  return element("fieldset", { class: "views" }, element("legend", {}, "Model"), ...choices);
}

function found(rendering, text) {
  const parts = [element("p", { class: "numbers quiet" }, summary(rendering))];
  if (!rendering.texts.length) parts.push(element("p", {}, withoutText(rendering)));
  rendering.texts.forEach((one) => {
    const shown = element("div", { class: "read-text", tabindex: 0, role: "group" }, ...runs(one));
    shown.setAttribute("aria-label", `Text that ${rendering.model} read`);
    parts.push(shown);
  });
  if (rendering.left_out.length) parts.push(...leftOut(rendering, text));
  return parts;
}

function summary({ kind, texts, num_tokens: numRead, omitted }) {
  const facts = [`kind ${kind}`];
  if (texts.length) {
    facts.push(`${counted(numRead, "token")} read`);
    const [{ completion, dropped }] = texts;
    const size = ([start, end]) => end - start;
    if (completion) facts.push(`the completion has ${size(completion)}`);
    const numDropped = dropped.reduce((sum, span) => sum + size(span), 0);
    facts.push(numDropped ? `${numDropped} truncated` : "nothing truncated");
  }
  if (omitted.length) facts.push(`left out: ${omitted.join(", ")}`);
  return facts.join(" · ");
}

function withoutText({ kind }) {
  return kind === "remote"
    ? "Another server renders and tokenizes this model's text."
    : "This check reads the completion as it is, or found nothing in it to judge.";
}

/** Divide a text at the ends of the completion and of what was dropped. */
function runs({ tokens, completion, dropped }) {
  const [first, last] = completion ?? [0, 0];
  const ends = [...new Set([0, tokens.length, first, last, ...dropped.flat()])].sort((a, b) => a - b);
  return ends.slice(1).map((end, at) => {
    const start = ends[at];
    const inside = (span) => span[0] <= start && end <= span[1];
    const name = completion && inside(completion) ? "mark" : "span";
    const run = element(name, {}, visible(tokens.slice(start, end).join("")));
    run.title = `${counted(end - start, "token")}${name === "mark" ? " of the completion" : ""}`;
    if (!dropped.some(inside)) return run;
    run.title += ", truncated";
    return element("del", {}, run);
  });
}

function leftOut({ model, left_out: spans }, text) {
  const points = codePoints(text);
  const parts = [];
  let at = 0;
  for (const [start, end] of spans) {
    parts.push(visible(points.slice(at, start).join("")));
    parts.push(element("del", {}, visible(points.slice(start, end).join(""))));
    at = end;
  }
  parts.push(visible(points.slice(at).join("")));
  return [
    element("p", { class: "quiet" }, `The completion as it was sent; ${model} was not shown what is struck through:`),
    element("div", { class: "read-text" }, ...parts),
  ];
}
