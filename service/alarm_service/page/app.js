// The page: form, request, and the views of its answer.

import { call, Refused, usesKey } from "./api.js";
import { startCompare } from "./compare.js";
import { byId, element } from "./dom.js";
import { errorText, groupView } from "./group.js";
import { EXAMPLE, fromFragment, overridesOf, requestOf, Unusable } from "./request.js";
import { startRecent } from "./recent.js";
import { changedOverrides, recombined, sliders } from "./recombine.js";
import { share } from "./share.js";
import { paramsOf, sumView } from "./sum.js";
import { reachOf, textView, viewsOf } from "./text.js";

const MAX_COMPLETIONS = 8;

const page = { recipes: [], served: null, scored: null, chosen: 0, view: "total", numRequests: 0 };

async function start() {
  connect();
  fill(fromFragment(location.hash) ?? EXAMPLE);
  await shown(async () => {
    const catalog = await call("models", null, askForKey);
    page.recipes = catalog.recipes;
    listRecipes(fromFragment(location.hash)?.recipe);
    startCompare(page.recipes, readForm, askForKey);
    startRecent(() => byId("recipe").value, askForKey);
  });
  if (page.recipes.length) await score();
}

function connect() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    score();
  });
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) score();
  });
  byId("add").addEventListener("click", () => {
    addCompletion("").focus();
  });
  for (const button of document.querySelectorAll("[data-share]")) {
    button.addEventListener("click", () =>
      shown(() => share(button.dataset.share, readForm(), usesKey())),
    );
  }
  addEventListener("hashchange", () => {
    const form = fromFragment(location.hash);
    if (!form) return;
    fill(form);
    if (form.recipe) byId("recipe").value = form.recipe;
    score();
  });
}

function fill(form) {
  byId("prompt").value = form.prompt;
  byId("overrides").value = form.overrides;
  byId("completions").replaceChildren();
  form.completions.forEach(addCompletion);
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

function listRecipes(wanted) {
  const names = page.recipes.map((recipe) => recipe.name);
  byId("recipe").replaceChildren(...names.map((name) => element("option", {}, name)));
  if (names.includes(wanted)) byId("recipe").value = wanted;
  const first = page.recipes[0];
  const what = first.description ? `: ${first.description}` : "";
  byId("more").hidden = usesKey(); // A link sends no key.
  byId("served").textContent = `${first.name}${what}, on ${first.device}`;
}

function readForm() {
  const areas = byId("completions").querySelectorAll("textarea");
  return {
    prompt: byId("prompt").value,
    completions: Array.from(areas, (area) => area.value),
    recipe: byId("recipe").value || null,
    overrides: byId("overrides").value,
  };
}

async function score() {
  const number = (page.numRequests += 1);
  await shown(async () => {
    const form = readForm();
    const body = requestOf(form);
    byId("results").setAttribute("aria-busy", "true");
    const answer = await call("hierarchical_reward", body, askForKey);
    if (number !== page.numRequests) return;
    const recipe = page.recipes.find((one) => one.name === answer.recipe);
    const params = paramsOf(recipe, overridesOf(form.overrides));
    page.scored = { completions: form.completions, rewards: answer.rewards, params };
    page.served = page.scored;
    page.chosen = best(answer.rewards);
    draw();
    drawConstants();
  });
  byId("results").removeAttribute("aria-busy");
}

function best(rewards) {
  const known = rewards.map((one) => one.reward ?? -Infinity);
  return known.indexOf(Math.max(...known));
}

function draw() {
  const { completions, rewards, params } = page.scored;
  const reward = rewards[page.chosen];
  byId("results").classList.remove("stale");
  const choose = (at) => {
    page.chosen = at;
    draw();
    byId("group").querySelector("[aria-pressed=true]").focus();
  };
  show("group", groupView(completions, rewards, page.chosen, choose));
  if (reward.error) {
    show("text", [element("p", { class: "bad" }, errorText(reward.error))]);
    show("sum", null);
    return;
  }
  drawText();
  show("sum", sumView(reward, params));
}

function drawConstants() {
  const { rewards, params } = page.served;
  const change = (changed) => {
    page.scored = changed
      ? {
          ...page.served,
          rewards: rewards.map((one) => recombined(one, params, changed)),
          params: changed,
        }
      : page.served;
    draw();
    if (!changed) drawConstants();
  };
  const keep = (changed) => {
    const kept = overridesOf(byId("overrides").value);
    const added = changedOverrides(params, changed);
    const weights = { ...kept.weights, ...added.weights };
    const all = { ...kept, ...added, ...(Object.keys(weights).length ? { weights } : {}) };
    byId("overrides").value = JSON.stringify(all);
    score();
  };
  show("constants", sliders(rewards, params, change, keep));
}

function drawText() {
  const { completions, rewards } = page.scored;
  const reward = rewards[page.chosen];
  if (!viewsOf(reward).includes(page.view)) page.view = "total";
  const reach = reachOf(completions, rewards, page.view);
  const choose = (view) => {
    page.view = view;
    drawText();
    byId("text").querySelector("input:checked").focus();
  };
  show("text", textView(completions[page.chosen], reward, page.view, reach, choose));
}

function show(id, children) {
  byId(id).hidden = children === null;
  byId(id).replaceChildren(...(children ?? []));
}

/** Run a step; say in words why it could not be done. */
async function shown(step) {
  try {
    await step();
    byId("message").hidden = true;
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Unusable)) throw error;
    byId("message").textContent = error.message;
    byId("message").hidden = false;
    byId("message").scrollIntoView({ block: "nearest" });
    byId("results").classList.add("stale");
  }
}

/** Ask for the key until one is given; only memory keeps it. */
function askForKey(wasRefused) {
  const dialog = byId("ask-key");
  byId("key-refused").hidden = !wasRefused;
  byId("key").value = "";
  dialog.showModal();
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(byId("key").value.trim()), { once: true });
  });
}

start();
