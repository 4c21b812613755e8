// The report of `alarm replay`: charts, figures, and the samples that changed most.

import { bars, histograms, keys, points, shares } from "./replay_charts.js";
import { byId, element, signed } from "./dom.js";
import { aboutView, recordedSum, recordedText } from "./recorded.js";

const overview = JSON.parse(byId("overview").textContent);
const lines = byId("changed").textContent.trim();
const changed = lines ? lines.split("\n").map((line) => JSON.parse(line)) : [];

const report = { chosen: 0, view: null };

const SIDES = [
  ["before", "Before"],
  ["after", "Now"],
];

function start() {
  document.title = overview.title;
  byId("title").textContent = overview.title;
  byId("what").append(
    ...overview.paragraphs.map(({ text, is_caution: isCaution }) =>
      element("p", { class: isCaution ? "warning" : null }, text),
    ),
  );
  if (overview.num_samples) drawCharts();
  byId("tables").append(...overview.tables.flatMap(tableOf));
  drawMost();
  if (changed.length) drawSample();
}

function drawCharts() {
  const { pairs, num_samples: numSamples, result } = overview;
  const part =
    pairs.length < numSamples
      ? `${pairs.length.toLocaleString("en")} samples of ${numSamples.toLocaleString("en")}, chosen at random`
      : `${numSamples.toLocaleString("en")} samples`;
  const kindOf = ([, , was, is]) => (was === is ? "point" : is ? "gained" : "lost");
  const { admitted, ranks } = result;
  const parts = Object.entries(overview.parts).map(([name, change]) => [name, rounded(change)]);
  const same = ranks.num_pairs - ranks.num_reversed - ranks.num_newly_tied - ranks.num_untied;
  const all = [
    chart(
      "Reward before and now",
      points("Reward before to the right, now upward", pairs, kindOf),
      [["point", "same side of the gate"], ["gained", "past the threshold only now"], ["lost", "only before"]],
      `${part}: before to the right, now upward; on the dashed line nothing changed.`,
    ),
    chart(
      "Distribution of rewards",
      histograms(
        "Number of samples by reward",
        pairs.map(([before]) => before),
        pairs.map(([, now]) => now),
      ),
      [["before", "before"], ["now", "now"]],
      `${part}, by reward.`,
    ),
    chart(
      "Gate",
      shares("Samples by gate before and now", [
        ["open before and now", admitted.num_both, "now"],
        ["open only now", admitted.num_gained, "gained"],
        ["open only before", admitted.num_lost, "lost"],
        ["shut before and now", admitted.num_neither, "same"],
      ]),
      [
        ["now", `open before and now: ${admitted.num_both}`],
        ["gained", `only now: ${admitted.num_gained}`],
        ["lost", `only before: ${admitted.num_lost}`],
        ["same", `shut: ${admitted.num_neither}`],
      ],
      "",
    ),
    ranks.num_pairs
      ? chart(
          "Ranks within prompts",
          shares("Pairs of one prompt by order", [
            ["same order", same, "same"],
            ["tied only now or only before", ranks.num_newly_tied + ranks.num_untied, "partly"],
            ["reversed", ranks.num_reversed, "lost"],
          ]),
          [
            ["same", `same order: ${same}`],
            ["partly", `tied only now: ${ranks.num_newly_tied}, only before: ${ranks.num_untied}`],
            ["lost", `reversed: ${ranks.num_reversed}`],
          ],
          `${ranks.num_pairs} pairs of samples of one prompt.`,
        )
      : null,
    parts.length
      ? chart(
          "Which part changed the reward",
          bars("Mean absolute change of each part", parts),
          [],
          `Mean absolute change of weight × value; 0 where a part does not count. ${knownParts()}`,
        )
      : null,
  ];
  byId("charts").append(...all.filter((one) => one !== null));
}

/** Passes in other batches differ in the last bits: that is no change. */
const rounded = (change) => (change < 1e-4 ? 0 : change);

function knownParts() {
  const { num_samples: all, num_with_parts: known } = overview;
  if (known === all) return "";
  return `Of ${known} of ${all} samples: of the others the rule is no weighted sum, or not in the capture.`;
}

function chart(title, drawing, explained, note) {
  return element(
    "section",
    {},
    element("h2", {}, title),
    drawing,
    explained.length ? keys(explained) : null,
    note ? element("p", { class: "quiet" }, note) : null,
  );
}

function tableOf({ title, headers, rows, note }) {
  const headOf = (one) => (one ? element("th", { scope: "col" }, one) : element("td"));
  const line = (cells) => element("tr", {}, ...cells.map((one) => element("td", {}, one)));
  return [
    element("h2", {}, title),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...headers.map(headOf))),
      element("tbody", {}, ...rows.map(line)),
    ),
    note ? element("p", { class: "quiet" }, note) : null,
  ].filter((one) => one !== null);
}

function drawMost() {
  const heads = ["Change", "Before", "Now", "Rank", "Gate", "Completion"];
  const table = element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...heads.map((one) => element("th", { scope: "col" }, one)))),
    element("tbody", {}, ...changed.map(changedRow)),
  );
  const none = element("p", { class: "quiet" }, "No sample has a reward before and now.");
  byId("most").replaceChildren(
    element("h2", {}, "Samples whose reward changed most"),
    changed.length ? element("div", { class: "choices" }, table) : none,
  );
}

function changedRow({ before, after, ranks }, at) {
  const isChosen = at === report.chosen;
  const cell = (text, kind = "number") => element("td", { class: kind }, text);
  const gate = (one) => (one.reward.admitted ? "open" : "shut");
  const [was, is] = [gate(before), gate(after)];
  const open = element(
    "button",
    { type: "button", class: "open", "aria-pressed": String(isChosen) },
    before.completion.slice(0, 200) || "(empty)",
  );
  open.addEventListener("click", () => {
    report.chosen = at;
    drawMost();
    drawSample();
    byId("most").querySelector("[aria-pressed=true]").focus();
  });
  return element(
    "tr",
    { class: isChosen ? "chosen" : null },
    cell(signed(after.reward.reward - before.reward.reward)),
    cell(signed(before.reward.reward)),
    cell(signed(after.reward.reward)),
    cell(ranks.num_samples > 1 ? `${ranks.before} → ${ranks.after} of ${ranks.num_samples}` : "alone"),
    cell(was === is ? is : `${was} → ${is}`),
    element("td", {}, open),
  );
}

function drawSample() {
  const { before } = changed[report.chosen];
  byId("about").hidden = false;
  byId("about").replaceChildren(...aboutView(before, "The chosen sample", []));
  drawTexts();
  byId("sums").replaceChildren(
    ...sides("sum", (one, reward) => recordedSum(reward, one.constants)),
  );
}

function drawTexts() {
  const choose = (side) => (view) => {
    report.view = view;
    drawTexts();
    byId("texts").querySelector(`[data-side=${side}] input:checked`)?.focus();
  };
  const texts = sides("completion", (one, reward, side) =>
    recordedText(one, reward, report.view, [one], choose(side)),
  );
  byId("texts").replaceChildren(...texts);
}

/** Draw one section per side; a form keeps the radio buttons of the sides apart. */
function sides(what, draw) {
  return SIDES.map(([side, title]) => {
    const one = changed[report.chosen][side];
    const name = `${one.recipe ?? "unnamed"} ${one.fingerprint}`;
    const form = element("form", {}, ...draw(one, one.reward, side));
    form.dataset.side = side;
    return element(
      "section",
      { "aria-label": `${title}: ${what}` },
      element("p", { class: "side" }, element("strong", {}, title), ` ${name}`),
      form,
    );
  });
}

start();
