// The request as a curl command, as Python, as JSONL, or as a link.

import { byId } from "./dom.js";
import { toFragment } from "./request.js";
import { overridesOf, samplesOf } from "./samples.js";

const WAYS = {
  curl: ["As a curl command", curl],
  python: ["As Python, with alarm-client", python],
  jsonl: ["As JSONL, for alarm score", jsonl],
  link: ["Link to this page with these texts", link],
};

/** Show the request with that body in another form, and copy it where the browser allows. */
export async function share(way, form, body, usesKey) {
  const [title, write] = WAYS[way];
  const text = write(form, body, usesKey);
  byId("share-title").textContent = title;
  byId("share-text").value = text;
  byId("share").showModal();
  byId("share-text").select();
  let note = "Press Ctrl+C to copy.";
  try {
    await navigator.clipboard.writeText(text);
    note = "Copied to the clipboard.";
  } catch {
    // Browsers offer no clipboard to pages over plain HTTP from another machine.
  }
  byId("share-note").textContent = note;
}

const server = () => new URL(".", location.href).href.replace(/\/$/, "");

function curl(form, body, usesKey) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = usesKey ? ' \\\n  -H "Authorization: Bearer $ALARM_API_KEY"' : "";
  return `curl ${server()}/hierarchical_reward${key} \\\n  --json '${quoted}'\n`;
}

function python(form, body, usesKey) {
  const samples = body.samples.map(
    (sample) => {
      const fields = Object.entries(sample).map(([name, value]) => `${name}=${literal(value)}`);
      return `    Sample(${fields.join(", ")}),\n`;
    },
  );
  const key = usesKey ? ', api_key=os.environ["ALARM_API_KEY"]' : "";
  const recipe = form.recipe ? `, recipe=${literal(form.recipe)}` : "";
  const overrides = overridesOf(form.overrides);
  const given = Object.keys(overrides).length ? `, overrides=${literal(overrides)}` : "";
  return (
    (usesKey ? "import os\n\n" : "") +
    "from alarm_client import AlarmClient, Sample\n\n" +
    `samples = [\n${samples.join("")}]\n` +
    `with AlarmClient(${literal(server())}${key}) as client:\n` +
    `    result = client.hierarchical_reward(samples${recipe}${given}, aspects="all")\n` +
    "print(result)\n"
  );
}

function jsonl(form) {
  const lines = samplesOf(form).map((one) => JSON.stringify(one));
  return `${lines.join("\n")}\n`;
}

function link(form) {
  return `${location.href.replace(/#.*/, "")}#${toFragment(form)}`;
}

function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    const members = Object.entries(value).map(([name, one]) => `${literal(name)}: ${literal(one)}`);
    return `{${members.join(", ")}}`;
  }
  return JSON.stringify(value);
}
