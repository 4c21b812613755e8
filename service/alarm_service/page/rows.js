// The samples of a list: deviations of groups, order, and filters.

import { advantagesOf } from "./group.js";

/** Return the columns that a list sorts by, as numbers; NaN stands for none. */
export function keysOf(columns) {
  const numbers = (values) => Float64Array.from(values, (value) => value ?? NaN);
  return {
    order: Float64Array.from(columns.reward, (_, at) => at),
    reward: numbers(columns.reward),
    z: numbers(columns.z),
    length: numbers(columns.length),
    deviation: deviationsOf(columns),
  };
}

/** Return the deviation (n − 1) of the rewards of each sample's group. */
function deviationsOf({ reward, group }) {
  const members = membersOf(group);
  const deviations = new Float64Array(reward.length).fill(NaN);
  for (const all of members.values()) {
    const { deviation } = advantagesOf(all.map((at) => reward[at]));
    if (deviation !== null) for (const at of all) deviations[at] = deviation;
  }
  return deviations;
}

/** Return the samples of each group, by its number. */
export function membersOf(group) {
  const members = new Map();
  group.forEach((number, at) => {
    if (members.has(number)) members.get(number).push(at);
    else members.set(number, [at]);
  });
  return members;
}

/** Return all samples in ascending order of a column; those without a number are at the end. */
export function ascending(key) {
  const known = [];
  const rest = [];
  key.forEach((value, at) => (Number.isNaN(value) ? rest : known).push(at));
  known.sort((a, b) => key[a] - key[b] || a - b);
  return { known, rest };
}

/** Return the samples that pass all filters, in an order. */
export function filtered({ known, rest }, isDescending, passes) {
  const ordered = known.filter(passes);
  if (isDescending) ordered.reverse();
  return ordered.concat(rest.filter(passes));
}

/**
 * Return whether a sample passes the filters: ``admitted`` "1" or "0", ``error`` "none", "any" or a
 * number, ``origin`` and ``group`` numbers, ``truncated`` "1" or "0"; empty ones let all pass.
 * ``found`` is a set of samples that contain a text, or null.
 */
export function passesOf(columns, filters, found) {
  const { admitted, error, origin, group, truncated } = columns;
  const equals = (column, wanted) => (at) => String(column[at]) === wanted;
  const tests = [];
  if (filters.admitted) tests.push(equals(admitted, filters.admitted));
  if (filters.error === "none") tests.push((at) => error[at] < 0);
  else if (filters.error === "any") tests.push((at) => error[at] >= 0);
  else if (filters.error) tests.push(equals(error, filters.error));
  if (filters.origin) tests.push(equals(origin, filters.origin));
  if (filters.group) tests.push(equals(group, filters.group));
  if (filters.truncated) tests.push(equals(truncated, filters.truncated));
  if (found) tests.push((at) => found.has(at));
  return (at) => tests.every((test) => test(at));
}
