// Requests to this server. An error response has a one-sentence message, which is shown unchanged.

import { t } from "./i18n.js";

/** An error response, with its message and status. */
class RequestFailed extends Error {
  constructor(message, status) {
    super(message);
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
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailed(t("net.gone"), 0);
  }
  if (response.ok || response.status === 304) return response;
  if (response.status === 401) location.reload(); // to the sign-in page
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // the body is not JSON
  }
  throw new RequestFailed(message || t("net.failed", { status: response.status }), response.status);
}

const readJson = async (response) => (await response).json();

export const get = (path) => readJson(call("GET", path));
export const post = (path, json = {}, more = {}) => readJson(call("POST", path, { json, ...more }));
export const patch = (path, json) => readJson(call("PATCH", path, { json }));
export const remove = (path) => readJson(call("DELETE", path));

/** Upload a file; returns its card, and the request in its metadata or null. */
export function send(file, name = file.name) {
  const form = new FormData();
  form.append("file", file, name || "file");
  return readJson(call("POST", "/studio/read", { form }));
}

/** Request with an ETag; returns null for an unchanged response. */
export async function getChanged(path, etag) {
  const response = await call("GET", path, { headers: etag ? { "If-None-Match": etag } : {} });
  return response.status === 304 ? null : { found: await response.json(), etag: response.headers.get("ETag") };
}
