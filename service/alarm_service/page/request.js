// What is scored: from the form to a request, and to the address's fragment and back.

import { words } from "./dom.js";
import { overridesOf, samplesOf, textOf } from "./samples.js";

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

/** Return the policy's tokens of samples: their own, those found by a tokenizer, else words. */
export function spansOf(samples, found = []) {
  return samples.map((sample, at) => {
    if (sample.token_offsets) return { spans: sample.token_offsets, unit: "token" };
    if (found[at]) return { spans: found[at], unit: "token" };
    return { spans: words(textOf(sample.completion)), unit: "word" };
  });
}

/** Build the body of /hierarchical_reward; words stand in for tokens that are not known. */
export function requestOf(form, samples = samplesOf(form), placed = spansOf(samples)) {
  return {
    ...(form.recipe ? { recipe: form.recipe } : {}),
    samples: samples.map((sample, at) => {
      const { spans } = placed[at];
      // Without tokens there would be none to place the reward on, and it would be 0.
      const { token_offsets: _, ...rest } = sample;
      return spans.length ? { ...rest, token_offsets: spans } : rest;
    }),
    overrides: overridesOf(form.overrides),
    aspects: "all",
    aspect_values: true,
  };
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
      form.completions.every((completion) => typeof completion === "string") &&
      [form.tools, form.lines, form.tokens].every((one) => !one || typeof one === "string");
    return isForm ? form : null;
  } catch {
    return null;
  }
}
