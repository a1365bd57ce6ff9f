// What this browser remembers between visits. Where it may not, the page works and forgets.

const PREFIX = "longtake.";

/** Return what was kept under a name, or else `missing`. */
export function load(name, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Keep something under a name. */
export function store(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // a private window, or a full one
  }
}

/** Forget what was kept under a name. */
export function erase(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // nothing was kept
  }
}
