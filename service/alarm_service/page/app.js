// The page: from the form to a request, and the views of its answer.

import { call, Refused, usesKey } from "./api.js";
import { startCompare } from "./compare.js";
import { byId, element } from "./dom.js";
import { connectForm, fillForm, listChoices, readForm } from "./form.js";
import { errorText, groupView } from "./group.js";
import { readView, scrollToCompletions } from "./read.js";
import { startRecent } from "./recent.js";
import { changedOverrides, recombined, sliders } from "./recombine.js";
import { EXAMPLE, fromFragment, requestOf, spansOf } from "./request.js";
import { overridesOf, samplesOf, textOf, Unusable } from "./samples.js";
import { share } from "./share.js";
import { paramsOf, sumView } from "./sum.js";
import { reachOf, textView, viewsOf } from "./text.js";

const page = {
  recipes: [],
  served: null,
  scored: null,
  chosen: 0,
  view: "total",
  readBy: null,
  numRequests: 0,
};

async function start() {
  connect();
  const wanted = fromFragment(location.hash);
  fillForm(wanted ?? EXAMPLE);
  await shown(async () => {
    const catalog = await call("models", null, askForKey);
    page.recipes = catalog.recipes;
    listChoices(catalog, wanted);
    describe(page.recipes[0]);
    startCompare(page.recipes, readForm, askForKey);
    startRecent(() => byId("recipe").value, askForKey);
  });
  if (page.recipes.length) await score();
}

function connect() {
  connectForm(score);
  for (const button of document.querySelectorAll("[data-share]")) {
    button.addEventListener("click", () =>
      shown(async () => {
        const form = readForm();
        await share(button.dataset.share, form, (await placedRequest(form)).body, usesKey());
      }),
    );
  }
  addEventListener("hashchange", () => {
    const form = fromFragment(location.hash);
    if (!form) return;
    fillForm(form);
    if (form.recipe) byId("recipe").value = form.recipe;
    byId("tokens").value = form.tokens ?? "";
    score();
  });
}

function describe({ name, description, device }) {
  const what = description ? `: ${description}` : "";
  byId("more").hidden = usesKey(); // A link sends no key.
  byId("served").textContent = `${name}${what}, on ${device}`;
}

async function score() {
  const number = (page.numRequests += 1);
  await shown(async () => {
    const form = readForm();
    byId("results").setAttribute("aria-busy", "true");
    const { samples, placed, body } = await placedRequest(form);
    const answer = await call("hierarchical_reward", body, askForKey);
    if (number !== page.numRequests) return;
    const recipe = page.recipes.find((one) => one.name === answer.recipe);
    page.scored = {
      recipe,
      requested: body.samples,
      samples: samples.map((one, at) => ({ text: textOf(one.completion), ...placed[at] })),
      rewards: answer.rewards,
      params: paramsOf(recipe, overridesOf(form.overrides)),
      renderings: new Map(),
    };
    page.served = page.scored;
    describe(page.scored.recipe);
    page.chosen = best(answer.rewards);
    draw();
    drawRead();
    drawConstants();
  });
  byId("results").removeAttribute("aria-busy");
}

/** Build the request of a form, with the tokens that it names. */
async function placedRequest(form) {
  const samples = samplesOf(form);
  const placed = spansOf(samples, await tokensOf(form, samples));
  return { samples, placed, body: requestOf(form, samples, placed) };
}

/** Ask for the tokens of a model's tokenizer, where the form names one. */
async function tokensOf({ tokens }, samples) {
  if (!tokens) return [];
  const body = { model: tokens, samples };
  const answer = await call("token_offsets", body, askForKey);
  return answer.completions.map((one) => one.token_offsets);
}

function best(rewards) {
  const known = rewards.map((one) => one.reward ?? -Infinity);
  return known.indexOf(Math.max(...known));
}

/** Draw the answer; with ``keepsScroll`` the list of the group stays where it was scrolled to. */
function draw(keepsScroll = false) {
  const { samples, rewards, params } = page.scored;
  const reward = rewards[page.chosen];
  byId("results").classList.remove("stale");
  const choose = (at) => {
    page.chosen = at;
    draw();
    drawRead();
    byId("group").querySelector("[aria-pressed=true]").focus();
  };
  const texts = samples.map(({ text }) => text);
  const scrolled = byId("group").querySelector(".scrolling")?.scrollTop;
  show("group", groupView(texts, rewards, page.chosen, choose, keepsScroll ? scrolled : null));
  if (reward.error) {
    show("text", [element("p", { class: "bad" }, errorText(reward.error))]);
    show("sum", null);
  } else {
    drawText();
    show("sum", sumView(reward, params, rivalOf(rewards, page.chosen)));
  }
}

/** Return the best other completion, which the chosen one is compared with. */
function rivalOf(rewards, chosen) {
  const others = rewards.map((one, at) => (at === chosen ? { ...one, reward: null } : one));
  const at = best(others);
  return others[at].reward === null ? null : { reward: others[at], name: `completion ${at + 1}` };
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
    draw(true);
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
  const { samples, rewards } = page.scored;
  const reward = rewards[page.chosen];
  if (!viewsOf(reward).includes(page.view)) page.view = "total";
  const choose = (view) => {
    page.view = view;
    drawText();
    byId("text").querySelector("input:checked").focus();
  };
  const reach = reachOf(rewards, page.view);
  show("text", textView(samples[page.chosen], reward, page.view, reach, choose));
}

//: Completions that are only passed on the way to another are not asked for.
const PAUSE_MS = 150;

/** Show what the models read of the chosen completion; ask for it once. */
async function drawRead() {
  const { renderings, requested, recipe, samples } = page.scored;
  const { chosen } = page;
  const isOver = () => renderings !== page.scored.renderings || chosen !== page.chosen;
  if (!renderings.has(chosen)) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    if (isOver()) return;
    const body = { recipe: recipe.name, samples: [requested[chosen]] };
    renderings.set(chosen, call("render", body, askForKey));
  }
  try {
    const [{ models }] = (await renderings.get(chosen)).renderings;
    if (isOver()) return;
    const choose = (model) => {
      page.readBy = model;
      drawRead().then(() => byId("read").querySelector("input:checked").focus());
    };
    show("read", readView(models, samples[chosen].text, page.readBy, choose));
    scrollToCompletions(byId("read"));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    renderings.delete(chosen);
    if (!isOver()) show("read", [element("p", { class: "bad" }, error.message)]);
  }
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
