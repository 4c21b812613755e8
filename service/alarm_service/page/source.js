// Where the samples come from: data blocks of this page, or the server of `alarm view`.

import { byId } from "./dom.js";

//: Samples that are searched before the page may do something else.
const SEARCHED_AT_ONCE = 200;

/** The server of the page does not answer as it should. */
export class Unavailable extends Error {}

/** Return the source: ``overview()``, ``samples(numbers)`` and ``search(text)``. */
export const sourceOf = () => (byId("overview") ? embedded() : served());

function embedded() {
  const lines = byId("samples").textContent.split("\n");
  const texts = [];
  return {
    overview: async () => JSON.parse(byId("overview").textContent),
    samples: async (numbers) => numbers.map((at) => JSON.parse(lines[at])),
    search: async (text) => {
      const wanted = text.toLowerCase();
      const found = [];
      for (let at = 0; at < lines.length; at += 1) {
        texts[at] ??= searchedOf(JSON.parse(lines[at]));
        if (texts[at].includes(wanted)) found.push(at);
        if (at % SEARCHED_AT_ONCE === 0) await new Promise((resolve) => setTimeout(resolve));
      }
      return found;
    },
  };
}

function searchedOf({ prompt, completion }) {
  const texts = [...(prompt ?? []).map(([, text]) => text), completion ?? ""];
  return texts.join("\n").toLowerCase();
}

function served() {
  const get = async (path) => {
    let response;
    try {
      response = await fetch(path);
    } catch {
      throw new Unavailable("alarm view does not answer: it may have been stopped.");
    }
    if (!response.ok) throw new Unavailable(`alarm view answered ${response.status}.`);
    return response.json();
  };
  return {
    overview: () => get("overview"),
    samples: (numbers) => get(`samples?at=${numbers.join(",")}`),
    search: (text) => get(`search?text=${encodeURIComponent(text)}`),
  };
}
