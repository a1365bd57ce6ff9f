// Keyboard shortcuts: Ctrl+Enter generates, / searches, ? shows all of them; Esc closes a dialog.

import { make, setChildren } from "./dom.js";
import { randomizeSeed } from "./form.js";
import { openSheet } from "./sheet.js";
import { t } from "./i18n.js";

const KEYS = { make: "Ctrl + Enter", search: "/", prompt: "P", dice: "D", details: "← →", close: "Esc", help: "?" };

/** Listen to the keyboard; `submit` generates the clip. */
export function openKeys(submit) {
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      submit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape" && event.target.id === "search") clear(event.target);
      return;
    }
    const act = ACTS[event.key];
    if (act) (event.preventDefault(), act());
  });
}

const ACTS = {
  "/": () => document.getElementById("search")?.focus(),
  p: () => document.querySelector("#f-prompt textarea")?.focus(),
  d: () => randomizeSeed(true),
  "?": () => openHelp(),
};

function clear(field) {
  field.value = "";
  field.dispatchEvent(new Event("input"));
  field.blur();
}

/** Show the shortcuts. */
export function openHelp() {
  const sheet = openSheet(t("keys.title"), { kind: "narrow" });
  setChildren(
    sheet.body,
    make(
      "dl",
      { class: "table keys" },
      Object.entries(KEYS).map(([name, key]) => [
        make("dt", {}, make("kbd", {}, key)),
        make("dd", {}, t(`keys.${name}`)),
      ]),
    ),
  );
}
