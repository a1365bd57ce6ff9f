// Questions to this server, and to nobody else. What it refuses comes as one sentence, which is shown as it is.

import { t } from "./words.js";

/** A sentence that says why something was refused. */
class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

async function call(method, path, { json, form, ...more } = {}) {
  const options = { method, credentials: "same-origin", cache: "no-store", ...more };
  if (json !== undefined)
    Object.assign(options, {
      body: JSON.stringify(json),
      headers: { "Content-Type": "application/json", ...more.headers },
    });
  if (form) options.body = form;
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(t("net.gone"), 0);
  }
  if (answer.ok || answer.status === 304) return answer;
  if (answer.status === 401) location.reload(); // to the door
  let sentence = "";
  try {
    sentence = (await answer.json()).error.message;
  } catch {
    // no JSON, so no sentence
  }
  throw new Refusal(sentence || t("net.failed", { status: answer.status }), answer.status);
}

const read = async (answer) => (await answer).json();

export const get = (path) => read(call("GET", path));
export const post = (path, json = {}, more = {}) => read(call("POST", path, { json, ...more }));
export const patch = (path, json) => read(call("PATCH", path, { json }));
export const remove = (path) => read(call("DELETE", path));

/** Send a file to be kept: what it is, and the request that it carries, if any. */
export function send(file, name = file.name) {
  const form = new FormData();
  form.append("file", file, name || "file");
  return read(call("POST", "/studio/read", { form }));
}

/** Ask for something that may be as it was: null where it is. */
export async function getChanged(path, etag) {
  const answer = await call("GET", path, { headers: etag ? { "If-None-Match": etag } : {} });
  return answer.status === 304 ? null : { found: await answer.json(), etag: answer.headers.get("ETag") };
}
