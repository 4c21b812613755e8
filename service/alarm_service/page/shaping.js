// Aspects under another shaping or scale, from the numbers before shaping that the server returned.

const sigmoid = (value) =>
  value >= 0 ? 1 / (1 + Math.exp(-value)) : Math.exp(value) / (1 + Math.exp(value));

//: The shapings of recipes: a value's function, and what the values are divided by.
export const SHAPINGS = {
  sigmoid: { shape: sigmoid, divisor: shared },
  centred: { shape: (value) => sigmoid(value) - 0.5, divisor: shared },
  mean: { shape: sigmoid, divisor: ({ raw }) => Math.max(raw.length, 1) },
  per_length: { shape: sigmoid, divisor: (values) => Math.max(values.num_tokens, 1) },
  none: { shape: (value) => value, divisor: shared },
};

function shared(values) {
  return values.is_divided ? Math.max(values.raw.length, 1) : 1;
}

/** Shape an aspect again; one without values (spread over prefixes) is as the server shaped it. */
export function reshaped(aspect, shaping, scale) {
  const values = aspect?.values;
  if (!values) return aspect;
  const { shape, divisor } = SHAPINGS[shaping];
  const parts = values.raw.map((value) => shape(scale * value) / divisor(values));
  return {
    ...aspect,
    reward: parts.reduce((sum, part) => sum + part, 0),
    token_rewards: aspect.token_rewards && placed(parts, values, aspect.token_rewards.length),
  };
}

function placed(parts, values, numTokens) {
  const rewards = new Array(numTokens).fill(0);
  if (values.tokens) parts.forEach((part, at) => (rewards[values.tokens[at]] += part));
  return rewards;
}
