// What this browser remembers between visits. Where it may not, the page works and forgets.

const OURS = "longtake.";

/** Return what was kept under a name, or else `missing`. */
export function kept(name, missing) {
  try {
    const text = localStorage.getItem(OURS + name);
    return text === null ? missing : JSON.parse(text);
  } catch {
    return missing;
  }
}

/** Keep something under a name. */
export function keep(name, value) {
  try {
    localStorage.setItem(OURS + name, JSON.stringify(value));
  } catch {
    // a private window, or a full one
  }
}

/** Forget what was kept under a name. */
export function forget(name) {
  try {
    localStorage.removeItem(OURS + name);
  } catch {
    // nothing was kept
  }
}
