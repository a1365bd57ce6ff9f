// Dialogs, toasts and menus. The browser's dialog element keeps the focus and closes at Esc.

import { button, make, setChildren } from "./dom.js";
import { t } from "./i18n.js";

/** Open a dialog with a title; returns its parts and a function that closes it. `closed` is called afterwards. */
export function openSheet(title, { kind = "", closed = () => {} } = {}) {
  const body = make("div", { class: "sheet-body" });
  const name = make("h2", { id: `sheet-${Date.now()}` }, title);
  const tools = make("div", { class: "sheet-tools" });
  const close = () => sheet.close();
  const head = make("header", { class: "sheet-head" }, name, tools, button("close", t("sheet.close"), close));
  const sheet = make("dialog", { class: `sheet ${kind}`, "aria-labelledby": name.id }, head, body);
  sheet.addEventListener("click", (event) => event.target === sheet && close());
  sheet.addEventListener("close", () => {
    const layer = sheet.querySelector("#toasts"); // toasts outlive the dialog
    if (layer) document.body.append(layer);
    sheet.remove();
    closed();
  });
  document.body.append(sheet);
  sheet.showModal();
  return { sheet, body, tools, name, close };
}

/** Show a toast for some seconds, with a button where `act` is given; a reason stays until it is closed. */
export function notify(sentence, { act = null, label = "", wrong = false, stays = wrong, about = "" } = {}) {
  const seconds = act ? 10 : 4;
  const note = make(
    "div",
    { class: `toast ${wrong ? "wrong" : ""}`, role: wrong ? "alert" : "status", data: { about } },
    make("p", {}, sentence),
  );
  const dismiss = () => note.remove();
  if (act) {
    const press = () => (dismiss(), act());
    note.append(make("button", { type: "button", class: "knob accent", on: { click: press } }, label));
  }
  note.append(button("close", t("sheet.close"), dismiss));
  const layer = toasts();
  if (about) layer.querySelector(`[data-about="${about}"]`)?.remove(); // the newest word on a matter
  layer.append(note);
  while (layer.children.length > 3) layer.firstChild.remove();
  if (!stays) setTimeout(dismiss, seconds * 1000);
}

/** Show the message of an error. */
export function showError(error) {
  if (error.name === "AbortError") return;
  if (error.status === undefined) console.error(error);
  notify(error.status === undefined ? t("net.broken") : error.message, { wrong: true });
}

/** Run a function and show its error; returns its result, or null. */
export async function attempt(act) {
  try {
    return await act();
  } catch (error) {
    showError(error);
    return null;
  }
}

function toasts() {
  const open = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body; // above the topmost dialog
  let layer = document.getElementById("toasts");
  layer ??= make("div", { id: "toasts", "aria-live": "polite" });
  if (layer.parentElement !== open) open.append(layer);
  return layer;
}

/** Open a menu at a button; a line is [icon, text, callback], a heading [null, text]. */
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
