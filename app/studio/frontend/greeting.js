// What an empty gallery says: a few prompts, each a click away from a clip.

import { icon, make, put } from "./dom.js";
import { t } from "./words.js";

const EXAMPLES = ["ball", "cube", "capsule", "cylinder"];
let run = () => {};

/** Take what makes a clip of a prompt. */
export function greeting(act) {
  run = act;
}

/** Greet whoever has made nothing yet. */
export function greet(place) {
  const language = document.documentElement.lang;
  if (place.dataset.language === language && place.querySelector(".greeting")) return;
  place.dataset.language = language;
  const example = (name) => {
    const prompt = t(`examples.${name}`);
    return make(
      "button",
      { type: "button", class: "example", on: { click: () => run(prompt) } },
      icon("play"),
      make("span", {}, prompt),
    );
  };
  put(
    place,
    make(
      "div",
      { class: "greeting" },
      make("h2", {}, t("greeting.title")),
      make("p", {}, t("greeting.line")),
      make("div", { class: "examples" }, EXAMPLES.map(example)),
      make("p", { class: "hint" }, t("greeting.drop")),
    ),
  );
}
