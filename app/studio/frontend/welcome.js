// What an empty gallery says: a few prompts, each a click away from a clip.

import { icon, make, setChildren } from "./dom.js";
import { t } from "./i18n.js";

const EXAMPLES = ["ball", "cube", "capsule", "cylinder"];
let generate = () => {};

/** Take what makes a clip of a prompt. */
export function onExample(act) {
  generate = act;
}

/** Greet whoever has made nothing yet. */
export function showWelcome(place) {
  const language = document.documentElement.lang;
  if (place.dataset.language === language && place.querySelector(".greeting")) return;
  place.dataset.language = language;
  const example = (name) => {
    const prompt = t(`examples.${name}`);
    return make(
      "button",
      { type: "button", class: "example", on: { click: () => generate(prompt) } },
      icon("play"),
      make("span", {}, prompt),
    );
  };
  setChildren(
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
