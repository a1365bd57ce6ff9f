// Sheets that lie over the page, and words that pass by. The browser's own dialog keeps the focus and closes at Esc.

import { button, make, setChildren } from "./dom.js";
import { t } from "./i18n.js";

/** Open a sheet with a title; returns it, its body, and how to close it. `closed` is told when it is gone. */
export function openSheet(title, { kind = "", closed = () => {} } = {}) {
  const body = make("div", { class: "sheet-body" });
  const name = make("h2", { id: `sheet-${Date.now()}` }, title);
  const tools = make("div", { class: "sheet-tools" });
  const close = () => sheet.close();
  const head = make("header", { class: "sheet-head" }, name, tools, button("close", t("sheet.close"), close));
  const sheet = make("dialog", { class: `sheet ${kind}`, "aria-labelledby": name.id }, head, body);
  sheet.addEventListener("click", (event) => event.target === sheet && close());
  sheet.addEventListener("close", () => {
    const layer = sheet.querySelector("#toasts"); // what was just said stays
    if (layer) document.body.append(layer);
    sheet.remove();
    closed();
  });
  document.body.append(sheet);
  sheet.showModal();
  return { sheet, body, tools, name, close };
}

/** Say something for a while, with something to do about it where `act` is given. */
export function notify(sentence, { act = null, label = "", wrong = false } = {}) {
  const seconds = wrong ? 12 : act ? 10 : 4;
  const note = make(
    "div",
    { class: `toast ${wrong ? "wrong" : ""}`, role: wrong ? "alert" : "status" },
    make("p", {}, sentence),
  );
  const dismiss = () => note.remove();
  if (act) {
    const press = () => (dismiss(), act());
    note.append(make("button", { type: "button", class: "knob accent", on: { click: press } }, label));
  }
  note.append(button("close", t("sheet.close"), dismiss));
  const layer = toasts();
  layer.append(note);
  while (layer.children.length > 3) layer.firstChild.remove();
  setTimeout(dismiss, seconds * 1000);
}

/** Say why something was refused. */
export function showError(error) {
  if (error.name === "AbortError") return;
  if (error.status === undefined) console.error(error);
  notify(error.status === undefined ? t("net.broken") : error.message, { wrong: true });
}

/** Do something that the server may refuse, and say so where it does; returns what came of it, or null. */
export async function attempt(act) {
  try {
    return await act();
  } catch (error) {
    showError(error);
    return null;
  }
}

function toasts() {
  const open = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body; // above whatever is on top
  let layer = document.getElementById("toasts");
  layer ??= make("div", { id: "toasts", "aria-live": "polite" });
  if (layer.parentElement !== open) open.append(layer);
  return layer;
}

/** Open a menu at a button: [icon, words, what to do] of each, and [null, words] for a heading. */
export function openMenu(at, lines) {
  document.querySelector(".menu")?.remove();
  const menu = make("div", { class: "menu", role: "menu", popover: "auto" });
  const line = ([name, words, act]) => {
    if (!name) return make("p", { class: "menu-head", role: "presentation" }, words);
    const press = () => (menu.hidePopover(), act());
    return button(name, words, press, { words, kind: "menu-line", role: "menuitem" });
  };
  setChildren(menu, lines.map(line));
  menu.addEventListener("toggle", (event) => event.newState === "closed" && menu.remove());
  menu.addEventListener("keydown", walk);
  (at.closest("dialog") ?? document.body).append(menu);
  menu.showPopover();
  const place = at.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = place.bottom + 6 + height < innerHeight;
  menu.style.left = `${Math.max(8, Math.min(place.right - width, innerWidth - width - 8))}px`;
  menu.style.top = `${Math.max(8, below ? place.bottom + 6 : Math.min(place.top - height - 6, innerHeight - height - 8))}px`;
  menu.querySelector("button")?.focus();
}

function walk(event) {
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const lines = [...event.currentTarget.querySelectorAll("button")];
  lines.at((lines.indexOf(document.activeElement) + way) % lines.length)?.focus();
}
