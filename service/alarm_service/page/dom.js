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

//: Control characters without tab, line feed and carriage return; marks that override the direction.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g;

/** Write out the characters that cannot be seen or that reorder the text after them. */
export const visible = (text) =>
  text.replace(HIDDEN, (one) => `⟨U+${one.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Return the code points of a text: the server's offsets count these. */
export const codePoints = (text) => Array.from(text);

/** Return [start, end) of each word, in code points. */
export function words(text) {
  const spans = Array.from(text.matchAll(/\S+/gu), ({ index, 0: word }) => [
    index,
    index + word.length,
  ]);
  return /[\ud800-\udfff]/.test(text) ? spans.map(inCodePoints(text)) : spans;
}

/** Return a function from spans of a text in UTF-16 units, in order, to spans in code points. */
function inCodePoints(text) {
  let units = 0;
  let points = 0;
  const at = (unit) => {
    for (; units < unit; points++) units += text.codePointAt(units) > 0xffff ? 2 : 1;
    return points;
  };
  return ([start, end]) => [at(start), at(end)];
}
