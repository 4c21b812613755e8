// A completion with its tokens, words or segments colored by value.

import { codePoints, element, signed, visible } from "./dom.js";

/** Return the names of the views of a reward: the total, then each aspect. */
export const viewsOf = (reward) => ["total", ...Object.keys(reward.aspects)];

/** Return the pieces of a view: spans with their values, and null where nothing was judged. */
export function piecesOf(sample, reward, view) {
  if (view === "total") return tokenPieces(sample, reward.token_rewards);
  const aspect = reward.aspects[view];
  if (!aspect || isNothing(aspect)) return [];
  if (!aspect.segments) return tokenPieces(sample, aspect.token_rewards);
  return aspect.segments.map(({ start, end, label, score }) => ({
    start,
    end,
    value: score,
    isFound: isFound({ label, score }),
    isSegment: true,
    note: `${label ?? "segment"}, ${scoreNote(label, score)}`,
  }));
}

/** Say whether a segment is a finding without a score, such as an error of grammar. */
export const isFound = ({ label, score }) => score === null && label !== null;

function scoreNote(label, score) {
  if (score !== null) return `score ${signed(score)}`;
  return label === null ? "score none: not read" : "found";
}

const isNothing = (aspect) => aspect.values?.raw.length === 0;

function tokenPieces({ spans }, values) {
  return spans.map(([start, end], at) => ({
    start,
    end,
    value: values?.[at] ?? null,
    isSegment: false,
    note: values ? `reward ${signed(values[at])}` : "nothing to judge",
  }));
}

/** Return the largest absolute value of a view over the rewards: the ends of its color scale. */
export function reachOf(rewards, view) {
  let reach = 0;
  for (const reward of rewards) {
    for (const value of valuesOf(reward, view)) reach = Math.max(reach, Math.abs(value ?? 0));
  }
  return reach;
}

function valuesOf(reward, view) {
  if (view === "total") return reward.token_rewards ?? [];
  const aspect = reward.aspects[view];
  return aspect?.segments?.map(({ score }) => score) ?? aspect?.token_rewards ?? [];
}

/** Show a completion under a view; ``onChoose`` is called with the name of another view. */
export function textView(sample, reward, view, reach, onChoose) {
  const pieces = piecesOf(sample, reward, view);
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const idle = idleNote(pieces, sample, view);
  readout.textContent = idle;
  const body = element("div", {
    class: "completion",
    role: "group",
    "aria-label": `Completion, colored by ${view}; arrow keys go through it`,
  });
  const notes = drawPieces(body, sample.text, pieces, reach);
  const tell = ({ target }) => notes.has(target) && (readout.textContent = notes.get(target));
  const forget = () => (readout.textContent = notes.get(document.activeElement) ?? idle);
  body.addEventListener("mouseover", tell);
  body.addEventListener("mouseout", forget);
  body.addEventListener("focusin", tell);
  body.addEventListener("focusout", () => (readout.textContent = idle));
  body.addEventListener("keydown", (event) => moveFocus(event, [...notes.keys()]));
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

/** Write a text with its pieces marked; return the note of each mark. */
function drawPieces(body, text, pieces, reach) {
  const points = codePoints(text);
  const slice = (start, end) => visible(points.slice(start, end).join(""));
  const notes = new Map();
  let at = 0;
  for (const piece of apart(pieces)) {
    body.append(slice(at, piece.start));
    const isEnd = piece.start === points.length;
    const special = isEnd ? "⟨end⟩" : "⟨special⟩";
    const shown = piece.end > piece.start ? slice(piece.start, piece.end) : special;
    const mark = element("span", { class: classOf(piece), tabindex: notes.size ? -1 : 0 }, shown);
    mark.style.setProperty("--strength", piece.isFound ? "70%" : strength(piece.value, reach));
    notes.set(mark, `“${shortened(shown)}”: ${piece.note}`);
    body.append(mark);
    at = piece.end;
  }
  body.append(slice(at, points.length));
  if (!text) body.append(element("em", { class: "quiet" }, "an empty completion"));
  return notes;
}

/**
 * Return pieces in order that do not overlap. Where several do, such as tokens of one character or
 * nested errors, each part of the text has the notes of all that cover it.
 */
function apart(pieces) {
  const sorted = [...pieces].sort((a, b) => a.start - b.start || a.end - b.end);
  const found = [];
  for (let first = 0; first < sorted.length; ) {
    let last = first + 1;
    let { start, end } = sorted[first];
    const isEmpty = start === end;
    for (; last < sorted.length; last += 1) {
      const next = sorted[last];
      if (isEmpty ? next.start > start || next.end > end : next.start >= end) break;
      end = Math.max(end, next.end);
    }
    const some = sorted.slice(first, last);
    found.push(...(some.length > 1 ? partsOf(some) : some));
    first = last;
  }
  return found;
}

function partsOf(pieces) {
  const bounds = [...new Set(pieces.flatMap(({ start, end }) => [start, end]))].sort((a, b) => a - b);
  if (bounds.length === 1) return [together(bounds[0], bounds[0], pieces)];
  return bounds.slice(1).map((end, at) => {
    const start = bounds[at];
    return together(start, end, pieces.filter((one) => one.start <= start && end <= one.end));
  });
}

/** Join pieces: the rewards of tokens add up, and of segments the worst gives the color. */
function together(start, end, pieces) {
  const [{ isSegment }] = pieces;
  const values = pieces.map(({ value }) => value).filter((value) => value !== null);
  const joined = isSegment ? Math.min(...values) : values.reduce((sum, one) => sum + one, 0);
  return {
    start,
    end,
    value: values.length ? joined : null,
    isFound: pieces.some((one) => one.isFound),
    isSegment,
    note: pieces.map(({ note }) => note).join("; "),
  };
}

function idleNote(pieces, { unit, why }, view) {
  if (!pieces.length) return `${view}: ${why ?? "nothing to judge in this completion"}`;
  const isOfSegments = pieces.some((piece) => piece.isSegment);
  const what = isOfSegments ? "the model's score" : "the reward placed on it";
  const one = isOfSegments ? "segment" : unit;
  return `Point at a ${one}, or go through them with the arrow keys, for ${what}.`;
}

function classOf({ value, isFound, isSegment }) {
  const judged = value < 0 ? "negative" : value > 0 ? "positive" : "";
  const sign = isFound ? "negative" : value === null ? "unjudged" : judged;
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

function shortened(text) {
  const points = codePoints(text);
  return points.length > 80 ? `${points.slice(0, 79).join("")}…` : text;
}
