// Local storage of the browser. Where it is not available, the page works without it.

const PREFIX = "longtake.";

/** Return a stored value, or `fallback`. */
export function load(name, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Store a value. */
export function store(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // a private window, or full storage
  }
}

/** Erase a stored value. */
export function erase(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // nothing was stored
  }
}
