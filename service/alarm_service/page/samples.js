// Samples: from the texts of the form or from pasted JSON lines, and the text that spans count in.

/** A field of the form that cannot be sent as it is. */
export class Unusable extends Error {}

/** Group rules need a name: all completions are of one prompt. */
const GROUP = "page";

export const MAX_LINES = 500;

/** Build the samples of a form, as the server takes them. */
export function samplesOf(form) {
  if (typeof form.lines === "string") return samplesOfLines(form.lines);
  const prompt = contentOf(form.prompt, "The prompt");
  const tools = toolsOf(form.tools ?? "");
  return form.completions.map((completion, at) => ({
    prompt,
    completion: contentOf(completion, `Completion ${at + 1}`),
    ...(tools.length ? { tools } : {}),
    group: GROUP,
  }));
}

/** Read JSON lines: samples as `alarm score` takes them, or lines of a capture, of one prompt. */
export function samplesOfLines(text) {
  const lines = text.split("\n").map((line, at) => ({ line: line.trim(), where: `Line ${at + 1}` }));
  const found = lines.filter(({ line }) => line).map(sampleOfLine);
  if (!found.length) throw new Unusable("There are no lines: paste one sample a line.");
  if (found.length > MAX_LINES) {
    throw new Unusable(`There are ${found.length} lines; this page takes ${MAX_LINES} at most.`);
  }
  const prompt = JSON.stringify(found[0].sample.prompt);
  const other = found.find(({ sample }) => JSON.stringify(sample.prompt) !== prompt);
  if (other) {
    throw new Unusable(
      `${other.where} has another prompt than ${found[0].where.toLowerCase()}: this page shows ` +
        "the completions of one prompt beside each other, so paste the lines of one group.",
    );
  }
  return found.map(({ sample }) => sample);
}

function sampleOfLine({ line, where }) {
  const value = json(line, where);
  if (!isObject(value)) throw new Unusable(`${where} is no JSON object with prompt and completion.`);
  if (value.redacted) throw new Unusable(`${where} was captured with hashes instead of its texts.`);
  const sample = isObject(value.sample) ? value.sample : value;
  for (const name of ["prompt", "completion"]) {
    if (typeof sample[name] !== "string" && !Array.isArray(sample[name])) {
      throw new Unusable(`${where} has no "${name}": give it as a text or as a list of messages.`);
    }
    if (Array.isArray(sample[name])) requireMessages(sample[name], `${where}: "${name}"`);
  }
  // The rest of a group that the line names will not come.
  const { group: _group, group_size: _size, ...kept } = sample;
  return { where, sample: { ...kept, group: GROUP } };
}

/** Read a text, or the chat messages that it has as a JSON array. */
function contentOf(text, where) {
  // Other JSON is a text: policies write it.
  if (!/^\s*\[\s*\{/.test(text) || !text.includes('"role"')) return text;
  const value = json(text, `${where} begins like chat messages, but it`);
  requireMessages(value, where);
  return value;
}

function requireMessages(messages, where) {
  messages.forEach((message, at) => {
    const which = `${where}, message ${at + 1} of ${messages.length}`;
    if (!isObject(message)) throw new Unusable(`${which} is no JSON object.`);
    if (typeof message.role !== "string") {
      throw new Unusable(`${which} has no "role", such as "user" or "assistant".`);
    }
  });
}

function toolsOf(text) {
  if (!text.trim()) return [];
  const tools = json(text, "Tools");
  if (!Array.isArray(tools) || !tools.every(isObject)) {
    throw new Unusable('Tools must be a JSON array of objects, as OpenAI\'s API takes them.');
  }
  return tools;
}

export function overridesOf(text) {
  if (!text.trim()) return {};
  const value = json(text, "Overrides");
  if (!isObject(value)) {
    throw new Unusable('Overrides must be a JSON object, such as {"threshold": 0}.');
  }
  return value;
}

function json(text, where) {
  // JSON.parse reads 1e999 as Infinity, which JSON.stringify would send as null.
  const tooLarge = [];
  const check = (key, value) => {
    if (value === Infinity || value === -Infinity) tooLarge.push(key);
    return value;
  };
  let value;
  try {
    value = JSON.parse(text, check);
  } catch (error) {
    throw new Unusable(`${where} is not valid JSON: ${error.message}.`);
  }
  if (tooLarge.length) {
    throw new Unusable(`${where} has a number that is too large to be sent ("${tooLarge[0]}").`);
  }
  return value;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Return the text of a completion, whose code points the server's spans count. */
export function textOf(content) {
  return typeof content === "string" ? content : content.map(messageText).join("\n\n");
}

const TEXT_PARTS = new Set(["text", "input_text", "output_text", "refusal"]);

function messageText(message) {
  const content = Array.isArray(message.content)
    ? message.content
        .filter((part) => TEXT_PARTS.has(part.type))
        .map((part) => part.text || part.refusal || "")
        .join("")
    : message.content;
  const reasoning = message.reasoning_content || message.reasoning;
  return [reasoning, content || message.refusal].filter(Boolean).join("\n\n");
}
