// What the parts of the page share: the server's options, and events.

export const studio = { options: null, fields: [] };

const events = new EventTarget();

/** Emit an event: "draft", "mode", "language", "clips", "seen", "reached" or "dropped". */
export function emit(name, detail = null) {
  events.dispatchEvent(new CustomEvent(name, { detail }));
}

/** Call a function at each of these events. */
export function listen(names, callback) {
  for (const name of names.split(" ")) events.addEventListener(name, (event) => callback(event.detail));
}

/** Return the mode of a name, from the options. */
export function modeOf(name) {
  return studio.options.modes.find((mode) => mode.name === name) ?? studio.options.modes[0];
}

/** Return the model of a name, or the first one. */
export function modelOf(name) {
  return studio.options.models.find((model) => model.name === name) ?? studio.options.models[0];
}
