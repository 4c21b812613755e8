// A completion with its words or segments colored by value.

import { absentText, codePoints, element, signed, words } from "./dom.js";

/** Return the names of the views of a reward: the total, then each aspect. */
export const viewsOf = (reward) => ["total", ...Object.keys(reward.aspects)];

/** Return the pieces of a view: spans with their values, and null where nothing was judged. */
export function piecesOf(completion, reward, view) {
  const offsets = reward.token_offsets; // The policy's tokens, where they are recorded.
  if (view === "total") return wordPieces(completion, reward.token_rewards, offsets);
  const aspect = reward.aspects[view];
  if (!aspect) return [];
  if (!aspect.segments) return wordPieces(completion, aspect.token_rewards, offsets);
  return aspect.segments.map(({ start, end, label, score }) => ({
    start,
    end,
    value: score,
    isSegment: true,
    note: `${label ?? "segment"}, score ${score === null ? "none: not read" : signed(score)}`,
  }));
}

function wordPieces(completion, values, offsets) {
  if (!values) return [];
  return (offsets ?? words(completion)).map(([start, end], at) => ({
    start,
    end,
    value: values?.[at] ?? null,
    isSegment: false,
    note: `reward ${signed(values?.[at])}`,
  }));
}

/** Return the largest absolute value of a view over the samples: the ends of its color scale. */
export function reachOf(completions, rewards, view) {
  const values = rewards.flatMap((reward, at) =>
    reward.error ? [] : piecesOf(completions[at], reward, view).map((piece) => piece.value ?? 0),
  );
  return Math.max(0, ...values.map(Math.abs));
}

/** Show a completion under a view; ``onChoose`` is called with the name of another view. */
export function textView(completion, reward, view, reach, onChoose) {
  const pieces = piecesOf(completion, reward, view);
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const idle = idleNote(pieces, reward, view);
  readout.textContent = idle;
  const marks = [];
  const body = element("div", {
    class: "completion",
    role: "group",
    "aria-label": `Completion, colored by ${view}; arrow keys go through it`,
  });
  const points = codePoints(completion);
  const slice = (start, end) => points.slice(start, end).join("");
  let at = 0;
  for (const piece of pieces) {
    if (piece.start < at) continue;
    body.append(slice(at, piece.start));
    const text = slice(piece.start, piece.end);
    const mark = element("span", { class: classOf(piece), tabindex: marks.length ? -1 : 0 }, text);
    mark.setAttribute("aria-label", `${text}: ${piece.note}`);
    mark.style.setProperty("--strength", strength(piece.value, reach));
    const tell = () => (readout.textContent = `“${shortened(text)}”: ${piece.note}`);
    const forget = () => (readout.textContent = idle);
    mark.addEventListener("mouseenter", tell);
    mark.addEventListener("mouseleave", forget);
    mark.addEventListener("focus", tell);
    mark.addEventListener("blur", forget);
    body.append(mark);
    marks.push(mark);
    at = piece.end;
  }
  body.append(slice(at, points.length));
  if (!completion) body.append(element("em", { class: "quiet" }, "an empty completion"));
  body.addEventListener("keydown", (event) => moveFocus(event, marks));
  return [
    element(
      "div",
      { class: "bar-of-views" },
      element("h2", {}, "Completion"),
      viewChoice(reward, view, onChoose),
      legend(reach, pieces.some((piece) => piece.isSegment)),
    ),
    body,
    readout,
    ...remarks(reward),
  ];
}

function idleNote(pieces, reward, view) {
  const from = view === "total" ? reward : reward.aspects[view];
  if (from && !from.segments && !from.token_rewards) {
    return `${view}: not placed on words, because the sample had no token_offsets`;
  }
  if (!pieces.length) return `${view}: ${absentText(reward)} in this completion`;
  const unit = pieces.some((piece) => piece.isSegment) ? "segment" : "word";
  const what = unit === "segment" ? "the model's score" : "the reward placed on it";
  return `Point at a ${unit}, or go through them with the arrow keys, for ${what}.`;
}

function classOf({ value, isSegment }) {
  const sign = value === null ? "unjudged" : value < 0 ? "negative" : value > 0 ? "positive" : "";
  return ["piece", sign, isSegment ? "segment" : ""].filter(Boolean).join(" ");
}

function strength(value, reach) {
  if (!value || !reach) return "0%";
  return `${(15 + 55 * Math.min(1, Math.abs(value) / reach)).toFixed(1)}%`;
}

function moveFocus(event, marks) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const now = marks.indexOf(document.activeElement);
  if (!step || now < 0) return;
  event.preventDefault();
  const next = marks[Math.min(marks.length - 1, Math.max(0, now + step))];
  marks[now].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function viewChoice(reward, view, onChoose) {
  const choices = viewsOf(reward).map((name) => {
    const input = element("input", {
      type: "radio",
      name: "view",
      value: name,
      checked: name === view,
      onchange: () => onChoose(name),
    });
    return element("label", { class: "choice" }, input, element("span", {}, name));
  });
  return element("fieldset", { class: "views" }, element("legend", {}, "Color by"), ...choices);
}

function legend(reach, hasSegments) {
  const end = (sign) => (reach ? signed(sign * reach) : "");
  return element(
    "div",
    { class: "legend quiet", "aria-hidden": "true" },
    element("span", {}, end(-1)),
    element("span", { class: "ramp" }),
    element("span", {}, end(1)),
    element("span", { class: "piece unjudged" }, hasSegments ? "not read" : "nothing to judge"),
  );
}

function remarks(reward) {
  const found = [];
  if (reward.truncated) found.push("A model did not read all of this sample: it was truncated.");
  if (reward.omitted.length) found.push(`Left out: ${reward.omitted.join(", ")}.`);
  return found.map((text) => element("p", { class: "warning" }, text));
}

const shortened = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);
