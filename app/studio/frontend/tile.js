// A clip in the gallery: waiting, being made, finished or failed. It is drawn anew only where its state changes.

import { makeAgain, openActions } from "./actions.js";
import { button, icon, make, put } from "./dom.js";
import { patch, post, remove } from "./net.js";
import { screen, darken, develop } from "./screen.js";
import { trying } from "./sheet.js";
import { clipSeconds, duration, has, t } from "./words.js";

export const RUNNING = ["queued", "in_progress"];

/** Make the tile of a card; `deeds` are what the gallery does: open, pick, changed, gone, isPicked. */
export function makeTile(card, deeds) {
  const element = make("article", { class: "tile", data: { id: card.id } });
  const tile = { element, card, look: "", parts: {}, deeds };
  updateTile(tile, card);
  return tile;
}

/** Show what a card says now. */
export function updateTile(tile, card) {
  tile.card = card;
  const look = JSON.stringify([
    card.status,
    card.content,
    card.poster,
    card.prompt,
    card.size,
    document.documentElement.lang,
  ]);
  if (look !== tile.look) {
    tile.look = look;
    draw(tile);
  }
  follow(tile);
}

function draw(tile) {
  const { element, card, deeds } = tile;
  darken(element);
  element.dataset.status = card.status;
  const parts = (tile.parts = {});
  const done = card.status === "completed";
  const open = () => deeds.open(tile.card);
  const title = card.prompt || t("gallery.sent");
  const view = make("button", {
    type: "button",
    class: "view",
    "aria-label": t("gallery.open", { title }),
    on: { click: open },
  });
  put(view, done ? screen(card) : waiting(tile));
  element.draggable = done;
  element.ondragstart = (event) => event.dataTransfer.setData("application/x-longtake", card.id);
  const words = make("p", { class: "says", title }, title);
  put(
    element,
    make("div", { class: "frame" }, view, corner(tile)),
    words,
    make("div", { class: "facts" }, (parts.facts = make("span", {}, facts(card))), knobs(tile)),
  );
}

function waiting(tile) {
  const { parts, card } = tile;
  parts.preview = make("img", { class: "film preview", alt: "", hidden: true });
  parts.phase = make("span", { class: "phase" });
  parts.eta = make("span", { class: "eta" });
  parts.bar = make("span", { class: "bar" }, (parts.done = make("span", {})));
  const failed = !RUNNING.includes(card.status);
  return [
    parts.preview,
    failed ? icon("close") : make("span", { class: "shimmer" }),
    make("span", { class: "progress", "aria-live": "off" }, parts.phase, parts.eta, failed ? null : parts.bar),
  ];
}

function corner(tile) {
  const { card, parts, deeds } = tile;
  if (card.status !== "completed") return null;
  parts.star = button("star", t("gallery.favourite"), () => star(tile), { kind: "star" });
  parts.pick = button("compare", t("gallery.pick"), () => deeds.pick(tile.card), { kind: "pick" });
  return make("div", { class: "corner" }, parts.pick, parts.star);
}

function knobs(tile) {
  const { card, deeds, parts } = tile;
  const path = `/studio/clips/${encodeURIComponent(card.id)}`;
  const act = (deed) => async () => deeds.changed(await trying(deed));
  const line = make("span", { class: "knobs" });
  if (card.status === "completed") {
    const more = button("more", t("actions.menu"), () => openActions(more, tile.card), { "aria-haspopup": "menu" });
    if (card.mode) line.append(button("again", t("actions.make_again"), () => makeAgain(tile.card)));
    line.append(more);
  } else if (RUNNING.includes(card.status)) {
    const [first, stop] = [act(() => post(`${path}/move`, { ahead: 0 })), act(() => post(`${path}/cancel`))];
    parts.first = button("next", t("gallery.first"), first);
    parts.stop = button("stop", t("gallery.cancel"), stop, { words: t("gallery.cancel"), kind: "small" });
    line.append(parts.first, parts.stop);
  } else {
    const [retry, drop] = [act(() => post(`${path}/retry`)), act(() => remove(path))];
    line.append(button("again", t("gallery.retry"), retry), button("trash", t("gallery.delete"), drop));
  }
  return line;
}

async function star(tile) {
  const { card, deeds } = tile;
  const found = await trying(() =>
    patch(`/studio/clips/${encodeURIComponent(card.id)}`, { favourite: !card.favourite }),
  );
  if (found) deeds.changed(found);
}

/** Bring what moves up to date: phase, step, time left, preview, star. */
function follow(tile) {
  const { card, parts } = tile;
  if (parts.star) parts.star.setAttribute("aria-pressed", String(Boolean(card.favourite)));
  if (parts.pick) parts.pick.setAttribute("aria-pressed", String(tile.deeds.isPicked(card.id)));
  if (!parts.phase) return;
  parts.phase.textContent = state(card);
  parts.eta.textContent =
    card.status === "failed"
      ? card.error || ""
      : RUNNING.includes(card.status) && card.eta !== null
        ? t("gallery.left", { time: duration(card.eta) })
        : card.said || "";
  parts.done.style.width = `${done(card)}%`;
  if (parts.stop) parts.stop.disabled = card.cancelling;
  if (parts.first) parts.first.hidden = card.status !== "queued" || !card.ahead;
  if (card.preview) develop(parts.preview, card.preview);
}

function done(card) {
  if (card.status !== "in_progress") return 0;
  return card.progress ?? (card.steps ? (100 * card.step) / card.steps : 2);
}

/** Say where a clip stands, in a few words. */
export function state(card) {
  if (card.cancelling) return t("state.cancelling");
  if (card.status === "queued") return card.ahead ? t("state.ahead", { ahead: card.ahead }) : t("state.next");
  if (card.status !== "in_progress") return t(`state.${card.status}`);
  const name = `phase.${(card.phase || "").replaceAll(" ", "_")}`;
  const phase = has(name) ? t(name) : card.phase || t("state.in_progress");
  return card.steps ? t("state.step", { phase, step: card.step, steps: card.steps }) : phase;
}

/** Say what a clip is, in a few words. */
export function facts(card) {
  const mode =
    card.mode && has(`modes.${card.mode}`)
      ? t(`modes.${card.mode}`)
      : card.kind === "upload"
        ? t("gallery.upload")
        : card.mode;
  return [mode, card.still || !card.seconds ? null : clipSeconds(card.seconds), card.size?.replace("x", "×")]
    .filter(Boolean)
    .join(" · ");
}
