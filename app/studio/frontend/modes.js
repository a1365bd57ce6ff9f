// The strip of modes.

import { icon, make, setChildren } from "./dom.js";
import { updateDraft, draft } from "./draft.js";
import { updateForm } from "./form.js";
import { studio, listen } from "./studio.js";
import { t } from "./i18n.js";

const GROUPS = {
  text: (mode) => !mode.reads.some((name) => ["image", "keyframes", "clip"].includes(name)),
  images: (mode) => mode.reads.some((name) => ["image", "keyframes"].includes(name)),
  clips: (mode) => mode.reads.includes("clip"),
};

/** Show the strip in its element. */
export function openModes(place) {
  const strip = make("div", { id: "mode-strip", role: "radiogroup", on: { keydown: walk } });
  setChildren(place, strip);
  const draw = () => {
    strip.setAttribute("aria-label", t("modes.all"));
    setChildren(
      strip,
      Object.entries(GROUPS).map(([group, within]) => section(group, studio.options.modes.filter(within))),
    );
  };
  const turn = () => {
    for (const one of strip.querySelectorAll("[role=radio]")) {
      const on = one.dataset.mode === draft.mode;
      one.setAttribute("aria-checked", String(on));
      one.tabIndex = on ? 0 : -1;
      if (on) reveal(strip, one);
    }
  };
  listen("language", () => (draw(), turn()));
  listen("mode", turn);
  draw();
  turn();
}

function section(group, modes) {
  const one = ({ name }) =>
    make(
      "button",
      {
        type: "button",
        class: "mode",
        role: "radio",
        data: { mode: name },
        title: t(`lines.${name}`),
        on: { click: () => chooseMode(name) },
      },
      icon(name),
      make("span", {}, t(`modes.${name}`)),
    );
  return make(
    "div",
    { class: "mode-group" },
    make("span", { class: "mode-group-name" }, t(`modes.of_${group}`)),
    make("div", { class: "mode-row" }, modes.map(one)),
  );
}

function reveal(strip, one) {
  const { offsetLeft, offsetWidth } = one;
  if (strip.scrollWidth > strip.clientWidth)
    strip.scrollTo({ left: offsetLeft - (strip.clientWidth - offsetWidth) / 2 });
}

function walk(event) {
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const all = [...event.currentTarget.querySelectorAll("[role=radio]")];
  const next = all.at((all.findIndex((one) => one.dataset.mode === draft.mode) + way) % all.length);
  chooseMode(next.dataset.mode);
  next.focus();
}

/** Choose a mode; the rest of the draft stays. */
export function chooseMode(mode) {
  updateDraft({ mode });
  updateForm();
}
