// Make elements. Text is always added as text nodes, so user input is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `traits` are attributes, `on` listeners, `data` data-* attributes; children are elements or text. */
export function make(tag, traits = {}, ...children) {
  return applyTraits(document.createElement(tag), traits, children);
}

function applyTraits(element, traits, children) {
  for (const [name, value] of Object.entries(traits)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name in PROPERTIES) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const PROPERTIES = {
  value: 1,
  checked: 1,
  disabled: 1,
  muted: 1,
  loop: 1,
  playsInline: 1,
  hidden: 1,
  indeterminate: 1,
};

/** Make a 24 by 24 SVG icon from its path. */
export function icon(name) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [
    ["viewBox", "0 0 24 24"],
    ["class", "icon"],
    ["aria-hidden", "true"],
  ])
    svg.setAttribute(key, value);
  svg.append(path);
  return svg;
}

/** Make a button with an icon, a label for screen readers, and the text `words` where it is given. */
export function button(name, label, press, { words = "", kind = "", ...traits } = {}) {
  const shown = [icon(name), words && make("span", {}, words)].filter(Boolean);
  return make(
    "button",
    {
      type: "button",
      class: `knob ${words ? "" : "round"} ${kind}`,
      "aria-label": label,
      title: label,
      on: { click: press },
      ...traits,
    },
    ...shown,
  );
}

/** Wait for the element with an id. */
export async function whenPresent(id) {
  while (!document.getElementById(id)) await new Promise(requestAnimationFrame);
  return document.getElementById(id);
}

/** Replace the children of an element. */
export function setChildren(element, ...children) {
  element.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Return a function that runs once, some time after its last call. */
export function debounce(milliseconds, act) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), milliseconds);
  };
}

const PATHS = {
  "text-to-video": "M4 6h16M4 11h10M4 16h6M15 13l6 3.5-6 3.5z",
  "text-to-image": "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  loop: "M7 8c-6 0-6 8 0 8 4 0 6-8 10-8 6 0 6 8 0 8-4 0-6-8-10-8z",
  long: "M2 9h20v6H2zM7 9v6M12 9v6M17 9v6",
  storyboard: "M3 5h7v6H3zM14 5h7v6h-7zM3 14h7v5H3zM14 14h7v5h-7z",
  "image-to-video": "M3 5h12v14H3zM3 15l4-4 5 5M18 9l4 3-4 3z",
  keyframes: "M3 12h18M6 9l3 3-3 3-3-3zM18 9l3 3-3 3-3-3zM12 9l3 3-3 3-3-3z",
  extend: "M3 7h9v10H3zM15 12h6M18 9l3 3-3 3",
  connect: "M2 7h6v10H2zM16 7h6v10h-6zM8 12h8M13 9l3 3-3 3",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  remix: "M4 7h4l8 10h4M4 17h4l2.5-3M13.500 10L16 7h4M18 5l2 2-2 2M18 15l2 2-2 2",
  retake: "M3 7h18v10H3zM9 4v16M15 4v16",
  inpaint: "M4 5h16v14H4zM9 15c0-4 6-2 6-6M9 15h.01",
  outpaint: "M8 8h8v8H8zM3 7V3h4M17 3h4v4M21 17v4h-4M7 21H3v-4",
  recut: "M6 7a2 2 0 1 0 .01 0M6 17a2 2 0 1 0 .01 0M8 9l12 8M8 15l12-8",
  star: "M12 3.500l2.600 5.400 5.900.8-4.300 4.100 1 5.900L12 16.900l-5.200 2.800 1-5.900L3.500 9.700l5.900-.8z",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  dice: "M5 5h14v14H5zM9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  close: "M6 6l12 12M18 6L6 18",
  stop: "M7 7h10v10H7z",
  play: "M7 5l12 7-12 7z",
  pause: "M8 5v14M16 5v14",
  again: "M4 12a8 8 0 1 0 2.500-5.800M4 4v5h5",
  next: "M12 19V5M6 11l6-6 6 6",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  add: "M12 5v14M5 12h14",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  vote: "M12 3v18M5 7h14M5 7l-3 7h6zM19 7l-3 7h6z",
  search: "M10.500 4a6.500 6.500 0 1 0 .01 0M15.500 15.500L21 21",
  sun: "M12 8a4 4 0 1 0 .01 0M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.500 1.500M17.500 17.500L19 19M5 19l1.500-1.500M17.500 6.500L19 5",
  moon: "M20 14A8.500 8.500 0 0 1 10 4a8.500 8.500 0 1 0 10 10z",
  keys: "M3 6h18v12H3zM7 10h.01M12 10h.01M17 10h.01M8 14h8",
  leave: "M14 4H5v16h9M10 12h11M18 9l3 3-3 3",
  brush: "M19 4l-9 9M10 13c-3 0-3 3-3 4s-1 2-3 2c1 2 7 2 8-2 .5-2-.5-4-2-4z",
  box: "M5 6h14v12H5z",
  rubber: "M9 19l-5-5 9-9 6 6-8 8zM9 19h11",
  invert: "M12 4a8 8 0 1 0 .01 0M12 4v16M12 8h3M12 12h7.500M12 16h3",
  question: "M12 3a9 9 0 1 0 .01 0M9.500 9.500c0-3.500 5-3.500 5-.5 0 2-2.500 2-2.500 4.500M12 17h.01",
  step: "M6 5l9 7-9 7zM18 5v14",
  note: "M5 4h14v11l-5 5H5zM14 20v-5h5",
  tick: "M5 12l5 5 9-11",
  shield: "M12 3l8 3v6c0 5-4 8-8 9-4-1-8-4-8-9V6z",
};
