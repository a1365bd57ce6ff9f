// What the parts of the page share: the offer of this server, and word of what has changed.

export const studio = { offer: null, fields: [] };

const told = new EventTarget();

/** Tell the other parts: "draft", "mode", "language", "clips" or "seen" has changed. */
export function tell(what, detail = null) {
  told.dispatchEvent(new CustomEvent(what, { detail }));
}

/** Do something whenever one of these has changed. */
export function when(whats, act) {
  for (const what of whats.split(" ")) told.addEventListener(what, (event) => act(event.detail));
}

/** Return the mode of a name, as the server describes it. */
export function modeOf(name) {
  return studio.offer.modes.find((mode) => mode.name === name) ?? studio.offer.modes[0];
}

/** Return the model of a name, or else the first on offer. */
export function modelOf(name) {
  return studio.offer.models.find((model) => model.name === name) ?? studio.offer.models[0];
}
