// The samples of a list: deviations of groups, order, and filters.

/** Return a column that a list sorts by, as numbers; NaN stands for none. */
export function keyOf(columns, name) {
  if (name === "order") return Float64Array.from(columns.reward, (_, at) => at);
  if (name === "deviation") return deviationsOf(columns);
  return Float64Array.from(columns[name], (value) => value ?? NaN);
}

/** Return the deviation (n − 1) of the rewards of each sample's group; NaN for fewer than two. */
export function deviationsOf({ reward, group }) {
  const size = 1 + group.reduce((most, one) => Math.max(most, one), -1);
  const [counts, means, squares] = [0, 1, 2].map(() => new Float64Array(size));
  const eachKnown = (step) => reward.forEach((one, at) => one !== null && step(one, group[at]));
  eachKnown((one, of) => {
    counts[of] += 1;
    means[of] += (one - means[of]) / counts[of];
  });
  eachKnown((one, of) => (squares[of] += (one - means[of]) ** 2));
  return Float64Array.from(group, (of) =>
    counts[of] > 1 ? Math.sqrt(squares[of] / (counts[of] - 1)) : NaN,
  );
}

/** Return the samples of a group. */
export function membersOf(group, wanted) {
  const members = [];
  group.forEach((number, at) => number === wanted && members.push(at));
  return members;
}

/** Return all samples in ascending order of a column; those without a number are at the end. */
export function ascending(key) {
  const known = [];
  const rest = [];
  key.forEach((value, at) => (Number.isNaN(value) ? rest : known).push(at));
  known.sort((a, b) => key[a] - key[b]);
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
