// `alarm view`: a list of recorded samples beside the views of the one that is chosen.

import { byId, counted, element, plain, signed, visible } from "./dom.js";
import { errorText, groupView } from "./group.js";
import { virtualList } from "./list.js";
import { aboutView, recordedSum, recordedText, titleOf } from "./recorded.js";
import { ascending, deviationsOf, filtered, keyOf, membersOf, passesOf } from "./rows.js";
import { sourceOf, Unavailable } from "./source.js";

//: Members of a group that are shown beside each other.
const MAX_MEMBERS = 200;

const SEARCH_DELAY_MS = 200;

const COLUMNS = [
  ["order", "#"],
  ["time", "Time"],
  ["reward", "Reward"],
  ["z", "z"],
  ["length", "Chars"],
  ["deviation", "Deviation"],
  [null, "Completion"],
];

const view = {
  source: sourceOf(),
  overview: null,
  deviations: null,
  hasTimes: false,
  orders: new Map(),
  list: null,
  sort: { key: "order", isDescending: false },
  filters: {},
  found: null,
  view: null, // That of the text, once one is chosen.
  numChosen: 0,
  numSearches: 0,
};

/** Return the columns of the list; older captures and `alarm score` have no times. */
const shownColumns = () => COLUMNS.filter(([key]) => key !== "time" || view.hasTimes);

const number = (at) => (view.overview.numbers ? view.overview.numbers[at] : at) + 1;

async function start() {
  await shown(async () => {
    view.overview = await view.source.overview();
    const { columns } = view.overview;
    view.deviations = deviationsOf(columns);
    view.hasTimes = columns.time.some((time) => time !== null);
    byId("browse").classList.toggle("timed", view.hasTimes);
    describe();
    drawFilters();
    byId("search").addEventListener("input", searchSoon);
    view.list = virtualList(byId("list"), cellsOf, choose);
    arrange();
  });
  if (view.list) await open(wanted());
}

/** Return the sample that the address names, else the first. */
function wanted() {
  const at = Number(location.hash.slice(1)) - 1;
  const { numbers, columns } = view.overview;
  if (numbers) return Math.max(0, numbers.indexOf(at));
  return at >= 0 && at < columns.reward.length ? at : 0;
}

function open(at) {
  view.list.mark(at);
  return choose(at);
}

function describe() {
  const { files, notes, columns, has_texts: hasTexts } = view.overview;
  const more = files.length > 2 ? ` and ${files.length - 2} more files` : "";
  const size = columns.reward.length.toLocaleString("en");
  byId("shown").textContent = `${size} samples of ${files.slice(0, 2).join(", ")}${more}`;
  byId("notes").replaceChildren(...notes.map((text) => element("p", { class: "warning" }, text)));
  byId("search").disabled = !hasTexts;
  if (!hasTexts) byId("search").placeholder = "no texts in this file";
}

function drawFilters() {
  const { origins, errors } = view.overview;
  const names = origins.map(originName);
  const choices = [
    ["admitted", "Gate", [["", "any"], ["1", "open"], ["0", "shut"]]],
    [
      "error",
      "Error",
      [["", "with or without"], ["none", "none"], ["any", "any"], ...errors.map((code, at) => [at, code])],
    ],
    ["truncated", "Truncated", [["", "any"], ["1", "yes"], ["0", "no"]]],
  ];
  if (names.length > 1) choices.push(["origin", "Recipe", [["", "any"], ...names.map((one, at) => [at, one])]]);
  byId("filters").replaceChildren(...choices.map((one) => filter(...one)), groupFilter());
}

function originName({ recipe, fingerprint, overrides }) {
  const changed = overrides ? ` ${JSON.stringify(overrides)}` : "";
  return `${recipe ?? "unnamed"} ${(fingerprint ?? "").slice(0, 8)}${changed}`.slice(0, 60);
}

function filter(name, title, options) {
  const select = element(
    "select",
    {},
    ...options.map(([value, text]) => element("option", { value }, text)),
  );
  select.value = view.filters[name] ?? "";
  select.addEventListener("change", () => {
    view.filters[name] = select.value;
    arrange();
  });
  return element("label", {}, element("span", {}, title), select);
}

function groupFilter() {
  if (!view.filters.group) return "";
  const all = element("button", { type: "button" }, "One group ×");
  all.title = "Show all groups again";
  all.addEventListener("click", () => showGroup(""));
  return all;
}

function showGroup(group) {
  view.filters.group = group;
  drawFilters();
  arrange();
}

function searchSoon() {
  const searched = (view.numSearches += 1);
  setTimeout(() => {
    if (searched === view.numSearches) shown(() => search(searched));
  }, SEARCH_DELAY_MS);
}

async function search(searched) {
  const text = byId("search").value;
  const found = text ? new Set(await view.source.search(text)) : null;
  if (searched !== view.numSearches) return;
  view.found = found;
  arrange();
}

/** Sort and filter the list again. */
function arrange() {
  const { key, isDescending } = view.sort;
  const { columns } = view.overview;
  if (!view.orders.has(key)) view.orders.set(key, ascending(keyOf(columns, key)));
  const passes = passesOf(columns, view.filters, view.found);
  const items = filtered(view.orders.get(key), isDescending, passes);
  drawColumns();
  const all = columns.reward.length;
  byId("count").textContent =
    items.length === all
      ? `All ${all.toLocaleString("en")} samples`
      : `${items.length.toLocaleString("en")} of ${all.toLocaleString("en")} samples`;
  view.list.show(items);
}

function drawColumns() {
  const { key: sorted, isDescending } = view.sort;
  const heads = shownColumns().map(([key, title]) => {
    if (!key) return element("span", {}, title);
    const arrow = key === sorted ? (isDescending ? " ↓" : " ↑") : "";
    const direction = isDescending ? "descending" : "ascending";
    const button = element("button", { type: "button", class: "sort" }, `${title}${arrow}`);
    button.setAttribute("aria-label", `${title}${key === sorted ? `, ${direction}` : ""}`);
    if (key === "order") button.title = "In the order of the files";
    if (key === "time") button.title = "When it was answered, in UTC";
    button.dataset.key = key;
    button.addEventListener("click", () => {
      view.sort = { key, isDescending: key === sorted && !isDescending };
      arrange();
      byId("columns").querySelector(`[data-key="${key}"]`).focus();
    });
    return button;
  });
  byId("columns").replaceChildren(...heads);
}

function cellsOf(at) {
  const { columns, errors } = view.overview;
  const cell = (text, kind = "number") => element("span", { class: kind }, text);
  const deviation = view.deviations[at];
  const isFailed = columns.error[at] >= 0;
  return [
    cell(number(at), "number quiet"),
    view.hasTimes ? cell(utc(columns.time[at]).slice(11, 19), "number quiet") : null,
    isFailed ? cell("none", "number bad") : cell(signed(columns.reward[at])),
    zCell(columns.z[at], columns.admitted[at]),
    cell(columns.length[at] ?? ""),
    cell(Number.isNaN(deviation) ? "" : plain(deviation), deviation < 1e-4 ? "number flat" : "number"),
    isFailed ? cell(errors[columns.error[at]], "excerpt bad") : cell(visible(columns.excerpt[at]), "excerpt"),
  ];
}

/** Write a time in seconds as date and time in UTC. */
function utc(seconds) {
  const time = new Date(1000 * (seconds ?? NaN));
  return Number.isNaN(time.getTime()) ? "" : time.toISOString();
}

/** Show z, and whether it opened the gate. */
function zCell(z, admitted) {
  if (z === null) return element("span", { class: "number" });
  const [mark, state] = admitted ? ["●", "open"] : ["○", "shut"];
  const gate = element("span", { class: `state ${state}`, title: `gate ${state}` }, mark);
  gate.setAttribute("role", "img");
  gate.setAttribute("aria-label", `gate ${state}`);
  return element("span", { class: "number" }, gate, ` ${signed(z)}`);
}

async function choose(at) {
  const chosen = (view.numChosen += 1);
  await shown(async () => {
    const members = membersBeside(at);
    const others = members.filter((one) => one !== at);
    const [own, ...rest] = await view.source.samples([at, ...others]);
    if (chosen !== view.numChosen) return;
    const found = new Map([[at, own], ...others.map((one, place) => [one, rest[place]])]);
    history.replaceState(null, "", `#${number(at)}`);
    drawSample(at, members.map((one) => found.get(one)), members);
  });
}

/** Return the members of a sample's group, itself among them. */
function membersBeside(at) {
  const { group } = view.overview.columns;
  const all = membersOf(group, group[at]);
  const first = Math.max(0, Math.min(all.indexOf(at) - MAX_MEMBERS / 2, all.length - MAX_MEMBERS));
  return all.slice(first, first + MAX_MEMBERS);
}

function drawSample(at, all, members) {
  const usable = members.filter((_, place) => !all[place].unusable);
  const details = all.filter((one) => !one.unusable);
  const chosen = usable.indexOf(at);
  if (chosen < 0) {
    for (const id of ["about", "group", "text", "sum"]) show(id, null);
    throw new Unavailable(all[members.indexOf(at)].unusable);
  }
  const sample = details[chosen];
  const reward = sample.reward;
  drawAbout(at, sample);
  drawGroup(at, usable, details, chosen);
  if (reward.error) {
    show("text", [element("p", { class: "bad" }, errorText(reward.error))]);
    show("sum", null);
    return;
  }
  drawText(sample, reward, details);
  show("sum", recordedSum(reward, sample.constants));
}

function drawAbout(at, sample) {
  const { columns, origins } = view.overview;
  const { recipe, fingerprint, overrides } = origins[columns.origin[at]];
  const facts = [
    ["time", utc(columns.time[at])],
    ["recipe", recipe],
    ["fingerprint", fingerprint],
    ["overrides", overrides && JSON.stringify(overrides)],
  ];
  show("about", aboutView(sample, `Sample ${number(at)}`, facts));
}

function drawGroup(at, members, details, chosen) {
  const { group } = view.overview.columns;
  const size = membersOf(group, group[at]).length;
  const rewards = details.map((one) => one.reward);
  const completions = details.map((one, place) => titleOf(one, () => number(members[place])));
  const only = element("button", { type: "button" }, "List this group only");
  only.addEventListener("click", () => showGroup(String(group[at])));
  show("group", [
    ...groupView(completions, rewards, chosen, (place) => open(members[place])),
    size > members.length
      ? element("p", { class: "warning" }, `${members.length} of ${counted(size, "sample")} of this group.`)
      : null,
    size > 1 ? element("div", { class: "buttons" }, only) : null,
  ]);
}

function drawText(sample, reward, details) {
  const chooseView = (name) => {
    view.view = name;
    drawText(sample, reward, details);
    byId("text").querySelector("input:checked").focus();
  };
  show("text", recordedText(sample, reward, view.view, details, chooseView));
}

function show(id, children) {
  byId(id).hidden = children === null;
  byId(id).replaceChildren(...(children ?? []).filter((one) => one !== null));
}

/** Run a step; say in words why it could not be done. */
async function shown(step) {
  try {
    await step();
    byId("message").hidden = true;
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    byId("message").textContent = error.message;
    byId("message").hidden = false;
  }
}

start();
