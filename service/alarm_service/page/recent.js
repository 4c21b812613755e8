// What the server rewarded recently: distributions, signs of a gamed reward, load and errors.

import { call } from "./api.js";
import { figure, frame, histogram, line, shape, short } from "./charts.js";
import { byId, counted, element, plain } from "./dom.js";

const PERIOD_MS = 10_000;
const MAX_LOADS = 90;

//: Figure -> its title, and the key of its limit; one that names components has several rows.
const FIGURES = [
  ["zero_deviation_share", "groups whose rewards are all equal", "zero_deviation_share"],
  ["ceiling_share", "samples at the largest reward", "ceiling_share"],
  ["drift_up", "drift of z upwards (CUSUM)", "drift"],
  ["drift_down", "drift of z downwards (CUSUM)", "drift"],
  ["variance_shares", "variance explained by", "variance_share"],
  ["opposed_shares", "pairs ordered against z by", "opposed_share"],
  ["length_correlation", "correlation of reward and length, absolute", "length_correlation"],
  ["truncated_share", "truncated samples", "truncated_share"],
  ["omitted_share", "samples not shown whole", "omitted_share"],
];

/** Fill the section whenever it is open; ``recipeOf`` returns the chosen recipe's name. */
export function startRecent(recipeOf, askForKey) {
  const details = byId("recent");
  const loads = [];
  let timer = null;
  const refresh = async () => {
    clearTimeout(timer);
    if (!details.open) return;
    if (!document.hidden) await fill(recipeOf(), loads, askForKey);
    timer = setTimeout(refresh, PERIOD_MS);
  };
  details.addEventListener("toggle", refresh);
  document.addEventListener("visibilitychange", refresh);
  byId("recipe").addEventListener("change", refresh);
}

async function fill(recipe, loads, askForKey) {
  const body = byId("recent-body");
  try {
    const query = recipe ? `?recipe=${encodeURIComponent(recipe)}` : "";
    const recent = await call(`recent${query}`, null, askForKey);
    loads.push(recent.load);
    if (loads.length > MAX_LOADS) loads.shift();
    const opened = [...body.querySelectorAll("details[open]")].map((one) => one.dataset.title);
    body.replaceChildren(...recentView(recent, loads));
    for (const one of body.querySelectorAll("details")) one.open = opened.includes(one.dataset.title);
  } catch (error) {
    body.replaceChildren(element("p", { class: "bad" }, error.message));
  }
}

/** Show one answer of /recent; ``loads`` are those of the answers so far. */
export function recentView(recent, loads) {
  const { num_samples: number } = recent.gaming;
  const told = number
    ? `${recent.recipe}: the last ${counted(number, "sample")}, since ${timeOf(recent.since)}`
    : `${recent.recipe} has rewarded nothing since the server started`;
  return [
    element("p", {}, `${told}; read at ${timeOf(recent.load.time)}.`),
    element("div", { class: "charts" }, ...charts(recent), ...loadCharts(loads)),
    number ? signs(recent) : null,
    errors(recent.errors),
    texts("Best", recent.best),
    texts("Worst", recent.worst),
  ].filter((one) => one !== null);
}

function charts(recent) {
  const { rewards, holistic, points, admission, threshold } = recent;
  if (!rewards || !holistic) return [];
  return [
    figure(
      "z: the holistic score",
      histogram(holistic, "Histogram of normalized holistic scores", threshold),
      "Bars: these samples. Line: the same number of samples as in the calibration (mean 0, " +
        "deviation 1, normal). Dashed: the threshold.",
    ),
    figure("Rewards", histogram(rewards, "Histogram of rewards")),
    figure("Reward over length in characters", scatter(points), "Blue: past the threshold."),
    figure("Share past the threshold over time", admissionLine(admission)),
  ];
}

function scatter(points) {
  const lengths = points.map(([length]) => length);
  const rewards = points.map(([, reward]) => reward);
  const drawn = frame(rangeOf(lengths), rangeOf(rewards), "Rewards over lengths");
  for (const [length, reward, admitted] of points) {
    drawn.svg.append(
      shape("circle", {
        class: admitted ? "point past" : "point",
        cx: drawn.x(length).toFixed(1),
        cy: drawn.y(reward).toFixed(1),
        r: 2.5,
      }),
    );
  }
  return drawn.svg;
}

function admissionLine(slices) {
  // Places are the order of the samples: steps of training come in bursts.
  const format = { y: percent, x: (at) => timeOf(slices[Math.round(at)]?.time ?? null) };
  const drawn = frame([0, slices.length - 1], [0, 1], "Share past the threshold", format);
  line(drawn, slices.map((one, at) => [at, one.share]), "line");
  return drawn.svg;
}

function loadCharts(loads) {
  const last = loads.at(-1);
  const now =
    `${counted(last.num_requests, "request")} in flight, ` +
    `${counted(last.num_waiting_samples, "sample")} waiting for a device, ` +
    `${short(last.num_queued_tokens)} of ${short(last.max_queued_tokens)} tokens queued`;
  if (loads.length < 2) {
    return [figure("Queue and devices", element("p", {}, `${now}.`))];
  }
  const format = { y: percent, x: timeOf };
  const drawn = frame([loads[0].time, last.time], [0, 1], "Use of queue and devices", format);
  const queue = loads.map((one) => [one.time, one.num_queued_tokens / one.max_queued_tokens]);
  line(drawn, queue, "line second");
  line(drawn, useOf(loads, "device_busy_s"), "line");
  return [figure("Queue and devices", drawn.svg, `Blue: device busy. Orange: queue used. ${now}.`)];
}

function useOf(loads, seconds) {
  return loads.slice(1).map((one, at) => {
    const before = loads[at];
    const share = (one[seconds] - before[seconds]) / Math.max(one.time - before.time, 1e-3);
    return [one.time, Math.min(Math.max(share, 0), 1)];
  });
}

function signs({ gaming, limits }) {
  const rows = FIGURES.flatMap(([key, title, limit]) => {
    const value = key === "length_correlation" ? absolute(gaming[key]) : gaming[key];
    if (value === null || typeof value !== "object") return [[title, value, limits[limit]]];
    return Object.entries(value).map(([name, share]) => [
      `${title} ${name}`,
      share,
      // The holistic score may dominate: that is what rules are made for.
      key === "variance_shares" && name === "holistic" ? null : limits[limit],
    ]);
  });
  return element(
    "table",
    { class: "signs" },
    element("caption", {}, "Is the reward being gamed?"),
    element(
      "thead",
      {},
      element("tr", {}, ...["Figure", "Now", "Limit", ""].map(headOf)),
    ),
    element("tbody", {}, ...rows.map(([title, value, limit]) => signRow(title, value, limit))),
  );
}

const absolute = (value) => (value === null ? null : Math.abs(value));

const headOf = (title) => (title ? element("th", { scope: "col" }, title) : element("td"));

function signRow(title, value, limit) {
  const isPassed = value !== null && limit !== null && value > limit;
  return element(
    "tr",
    {},
    element("td", {}, title),
    element("td", { class: "number" }, value === null ? "too few samples" : plain(value)),
    element("td", { class: "number" }, limit === null ? "none" : plain(limit)),
    element("td", { class: isPassed ? "bad" : "quiet" }, isPassed ? "beyond the limit" : ""),
  );
}

function errors(codes) {
  const names = Object.entries(codes);
  if (!names.length) return element("p", { class: "quiet" }, "No sample was left without a reward.");
  const told = names.map(([code, number]) => `${code}: ${number}`).join(", ");
  return element("p", { class: "warning" }, `Samples without a reward: ${told}.`);
}

function texts(title, samples) {
  if (!samples?.length) return null;
  const rows = samples.map(({ reward, prompt, completion }) =>
    element(
      "li",
      {},
      element("strong", {}, plain(reward)),
      element("p", { class: "quiet" }, prompt),
      element("p", {}, completion || "(empty)"),
    ),
  );
  return element(
    "details",
    { class: "kept", "data-title": title },
    element("summary", {}, `${title} of these samples`),
    element("ol", {}, ...rows),
  );
}

function rangeOf(values) {
  return [Math.min(...values), Math.max(...values)];
}

const percent = (share) => `${Math.round(100 * share)} %`;

function timeOf(seconds) {
  if (seconds === null) return "";
  return new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
}
