// What the parts of the page share: the offer of this server, and word of what has changed.

export const studio = { offer: null, fields: [] };

const events = new EventTarget();

/** Tell the other parts: "draft", "mode", "language", "clips" or "seen" has changed. */
export function emit(name, detail = null) {
  events.dispatchEvent(new CustomEvent(name, { detail }));
}

/** Do something whenever one of these has changed. */
export function listen(names, callback) {
  for (const name of names.split(" ")) events.addEventListener(name, (event) => callback(event.detail));
}

/** Return the mode of a name, as the server describes it. */
export function modeOf(name) {
  return studio.options.modes.find((mode) => mode.name === name) ?? studio.options.modes[0];
}

/** Return the model of a name, or else the first on offer. */
export function modelOf(name) {
  return studio.options.models.find((model) => model.name === name) ?? studio.options.models[0];
}
