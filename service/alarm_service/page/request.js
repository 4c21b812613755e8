// What is scored: from the form to a request, and to the address's fragment and back.

import { words } from "./dom.js";

/** A field of the form that cannot be sent as it is. */
export class Unusable extends Error {}

/** Group rules need a name: all completions are of one prompt. */
const GROUP = "page";

export const EXAMPLE = {
  prompt:
    "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel written by " +
    "English author Jane Austen. It was first published in December 1815.",
  completions: [
    "Emma is a novel written by English author Jane Austen. It was first published in December " +
      "1815.",
    "Emma was written by Jane Austen. It came out in 1815.",
    "It was Charlotte Brontë, who wrote Emma in 1847.",
    "Charles Dickens composed it for the Paris opera during his third voyage.",
  ],
  recipe: null,
  overrides: "",
};

/** Build the body of /hierarchical_reward; words stand in for the policy's tokens. */
export function requestOf({ prompt, completions, recipe, overrides }) {
  return {
    ...(recipe ? { recipe } : {}),
    samples: samplesOf(prompt, completions).map((sample) => {
      const offsets = words(sample.completion);
      // Without tokens there would be none to place the reward on, and it would be 0.
      return offsets.length ? { ...sample, token_offsets: offsets } : sample;
    }),
    overrides: overridesOf(overrides),
    aspects: "all",
  };
}

/** Build the samples alone, without what only this page needs. */
export function samplesOf(prompt, completions) {
  const content = promptOf(prompt);
  return completions.map((completion) => ({ prompt: content, completion, group: GROUP }));
}

export function overridesOf(text) {
  if (!text.trim()) return {};
  const value = parsed(text);
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Unusable("Overrides must be a JSON object, such as {\"threshold\": 0}.");
  }
  return value;
}

function promptOf(text) {
  const value = text.trimStart().startsWith("[") ? parsed(text) : null;
  const isChat = Array.isArray(value) && value.length > 0 && value.every((one) => one?.role);
  return isChat ? value : text;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Write a form into a fragment, which browsers send to no server. */
export function toFragment(form) {
  const bytes = new TextEncoder().encode(JSON.stringify(form));
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Read a form from a fragment; null if it has none. */
export function fromFragment(fragment) {
  try {
    const text = atob(fragment.replace(/^#/, "").replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const form = JSON.parse(new TextDecoder().decode(bytes));
    const isForm =
      typeof form.prompt === "string" &&
      typeof form.overrides === "string" &&
      Array.isArray(form.completions) &&
      form.completions.length >= 1 &&
      form.completions.length <= 8 &&
      form.completions.every((one) => typeof one === "string");
    return isForm ? form : null;
  } catch {
    return null;
  }
}
