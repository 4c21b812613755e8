// The form: its fields, the completions in it, and what they hold.

import { byId, element } from "./dom.js";

const MAX_COMPLETIONS = 8;

/** Return what the form holds; ``lines`` are null unless JSON lines are to be scored. */
export function readForm() {
  const areas = byId("completions").querySelectorAll("textarea");
  return {
    prompt: byId("prompt").value,
    completions: Array.from(areas, (area) => area.value),
    tools: byId("tools").value,
    lines: byId("from-lines").checked ? byId("lines").value : null,
    tokens: byId("tokens").value,
    recipe: byId("recipe").value || null,
    overrides: byId("overrides").value,
  };
}

export function fillForm(form) {
  byId("prompt").value = form.prompt;
  byId("tools").value = form.tools ?? "";
  byId("more-input").open = Boolean(form.tools);
  byId("overrides").value = form.overrides;
  byId("completions").replaceChildren();
  form.completions.forEach(addCompletion);
  byId("lines").value = form.lines ?? "";
  chooseInput(Boolean(form.lines));
}

/** Let the form score, and let pasted JSON lines go to their own field. */
export function connectForm(onScore) {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    onScore();
  });
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onScore();
  });
  byId("add").addEventListener("click", () => addCompletion("").focus());
  for (const name of ["from-form", "from-lines"]) {
    byId(name).addEventListener("change", () => chooseInput(byId("from-lines").checked));
  }
  byId("prompt").addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (!/^\s*\{.*"(completion|sample)"\s*:/.test(text.split("\n")[0])) return;
    event.preventDefault();
    byId("lines").value = text;
    chooseInput(true);
    byId("lines").focus();
  });
}

/** Offer recipes, and the tokenizers of the models that have one. */
export function listChoices({ recipes, models }, wanted) {
  const option = (name) => element("option", { value: name }, name);
  const names = recipes.map((recipe) => recipe.name);
  byId("recipe").replaceChildren(...names.map(option));
  if (names.includes(wanted?.recipe)) byId("recipe").value = wanted.recipe;
  const known = models.filter((one) => one.limits.max_tokens !== null && one.kind !== "remote");
  const tokenizers = known.map(({ name }) =>
    element("option", { value: name }, `tokens of ${name}'s tokenizer`),
  );
  byId("tokens").replaceChildren(element("option", { value: "" }, "words between spaces"), ...tokenizers);
  if (known.some(({ name }) => name === wanted?.tokens)) byId("tokens").value = wanted.tokens;
}

function chooseInput(isOfLines) {
  byId("from-lines").checked = isOfLines;
  byId("from-form").checked = !isOfLines;
  byId("input-form").hidden = isOfLines;
  byId("input-lines").hidden = !isOfLines;
}

function addCompletion(text) {
  const area = element("textarea", { rows: 2, spellcheck: "false" });
  area.value = text;
  const remove = element("button", { type: "button", title: "Remove this completion" }, "×");
  const line = element("div", { class: "completion-line" }, area, remove);
  remove.addEventListener("click", () => {
    line.remove();
    numberCompletions();
  });
  byId("completions").append(line);
  numberCompletions();
  return area;
}

function numberCompletions() {
  const lines = [...byId("completions").children];
  lines.forEach((line, at) => {
    line.querySelector("textarea").setAttribute("aria-label", `Completion ${at + 1}`);
    line.querySelector("button").setAttribute("aria-label", `Remove completion ${at + 1}`);
    line.querySelector("button").disabled = lines.length === 1;
  });
  byId("add").disabled = lines.length >= MAX_COMPLETIONS;
}
