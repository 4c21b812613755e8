// Calls of the server that this page came from. The key stays in this module.

let key = null;
let asking = null;

/** An answer that is no result; the message is for people. */
export class Refused extends Error {}

export const usesKey = () => key !== null;

/** Call a route; ask for a key where the server requires one. */
export async function call(path, body, askForKey) {
  for (let wasRefused = false; ; wasRefused = true) {
    const response = await send(path, body);
    if (response.status !== 401) return result(response);
    asking ??= askForKey(wasRefused || key !== null).finally(() => (asking = null));
    key = await asking;
  }
}

async function send(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new Refused("The server does not answer: it may have stopped, or the network is down.");
  }
}

async function result(response) {
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    throw new Refused(`The server answered ${response.status} without JSON.`);
  }
  if (response.ok) return answer;
  const { message, retryable } = answer.error ?? { message: response.statusText };
  const wait = response.headers.get("Retry-After");
  const advice = retryable ? ` Try again${wait ? ` in ${wait} s` : ""}.` : "";
  throw new Refused(`The server refused this (${response.status}): ${message}.${advice}`);
}
