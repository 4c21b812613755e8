// Elements, numbers and words that the other modules share.

/** Create an element with attributes and children; strings become text, never markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, String(value));
    }
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Write a number with its sign; a failure is never a number. */
export function signed(value) {
  if (value === null || value === undefined) return "none";
  const text = plain(Math.abs(value));
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

/** Write a number with few digits; what sums of floats leave of 0 is written as 0. */
export function plain(value) {
  const size = Math.abs(value);
  const isOdd = size >= 1e5 || (size > 1e-9 && size < 1e-3);
  const text = isOdd ? size.toExponential(2) : size.toFixed(size >= 100 ? 1 : 3);
  return (value < 0 && Number(text) !== 0 ? "−" : "") + text;
}

export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Say why a reward has no value of an aspect; records of a shut gate do not tell. */
export const absentText = ({ is_recorded: isRecorded, admitted }) =>
  isRecorded && !admitted ? "not computed, or nothing to judge" : "nothing to judge";

/** Return the code points of a text: the server's offsets count these. */
export const codePoints = (text) => Array.from(text);

/** Return [start, end) of each word, in code points. */
export function words(text) {
  const spans = [];
  let start = -1;
  const points = codePoints(text);
  points.forEach((point, at) => {
    const isSpace = /\s/u.test(point);
    if (!isSpace && start < 0) start = at;
    if (isSpace && start >= 0) {
      spans.push([start, at]);
      start = -1;
    }
  });
  if (start >= 0) spans.push([start, points.length]);
  return spans;
}
