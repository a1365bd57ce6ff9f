// The tile of a clip in the gallery. It is redrawn only when its status changes.

import { makeAgain, openActions } from "./actions.js";
import { button, icon, make, setChildren } from "./dom.js";
import { patch, post, remove } from "./net.js";
import { mediaElement, releaseMedia, swapImage } from "./media.js";
import { attempt, notify } from "./sheet.js";
import { listed } from "./words.js";
import { formatSeconds, formatDuration, hasText, t } from "./i18n.js";

export const RUNNING = ["queued", "in_progress"];

/** Make the tile of a card; `actions` are callbacks of the gallery: open, pick, changed, isPicked. */
export function makeTile(card, actions) {
  const element = make("article", { class: "tile", data: { id: card.id } });
  const tile = { element, card, drawn: "", parts: {}, actions };
  updateTile(tile, card);
  return tile;
}

/** Update a tile with its card. */
export function updateTile(tile, card) {
  tile.card = card;
  const drawn = JSON.stringify([
    card.status,
    card.content,
    card.poster,
    card.prompt,
    card.size,
    card.seconds,
    card.mode,
    card.unlearned,
    document.documentElement.lang,
  ]);
  if (drawn !== tile.drawn) {
    tile.drawn = drawn;
    draw(tile);
  }
  updateProgress(tile);
}

function draw(tile) {
  const { element, card, actions } = tile;
  releaseMedia(element);
  element.dataset.status = card.status;
  const parts = (tile.parts = {});
  const percentDone = card.status === "completed";
  const open = () => actions.open(tile.card);
  const title = card.prompt || t("gallery.sent");
  const view = make("button", {
    type: "button",
    class: "view",
    "aria-label": t("gallery.open", { title }),
    on: { click: open },
  });
  setChildren(view, percentDone ? mediaElement(card) : placeholder(tile));
  element.draggable = percentDone;
  element.ondragstart = (event) => event.dataTransfer.setData("application/x-longtake", card.id);
  const words = make("p", { class: "prompt", title }, title);
  setChildren(
    element,
    make("div", { class: "frame" }, view, overlay(tile)),
    words,
    card.unlearned?.length ? unlearnedMark(card) : null,
    make("div", { class: "facts" }, (parts.facts = make("span", {}, summary(card))), buttons(tile)),
  );
}

/** Make the mark that names the words of a clip's prompt that its model never learned. */
export function unlearnedMark(card) {
  const sentence = t("words.tile", { words: listed(card.unlearned) });
  return make("p", { class: "unlearned", title: sentence }, icon("question"), make("span", {}, sentence));
}

/** Return the name under which a clip is downloaded: the beginning of its prompt, and its seed. */
export function fileName(card) {
  const words = (card.prompt || card.mode || "clip").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["clip"];
  const name = words.join("-").slice(0, 60).replace(/-$/, "");
  const seed = card.seed === null || card.seed === undefined ? "" : `-${card.seed}`;
  return `${name}${seed}.${card.still ? "png" : "mp4"}`;
}

/** Make a link that downloads a clip. */
export function downloadLink(card) {
  const name = card.kind === "upload" ? "" : fileName(card);
  return make("a", { href: card.content, download: name, hidden: true });
}

function placeholder(tile) {
  const { parts, card } = tile;
  parts.preview = make("img", { class: "video preview", alt: "", hidden: true });
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

function overlay(tile) {
  const { card, parts, actions } = tile;
  if (card.status !== "completed") return null;
  parts.star = button("star", t("gallery.favourite"), () => star(tile), { kind: "star" });
  parts.pick = button("tick", t("gallery.pick"), () => actions.pick(tile.card), { kind: "pick" });
  return make("div", { class: "corner" }, parts.pick, parts.star);
}

function buttons(tile) {
  const { card, actions, parts } = tile;
  const path = `/studio/clips/${encodeURIComponent(card.id)}`;
  const act = (request) => async () => actions.changed(await attempt(request));
  const line = make("span", { class: "knobs" });
  if (card.status === "completed") {
    const menu = () => openActions(more, tile.card, tileLines(tile));
    const more = button("more", t("actions.menu"), menu, { "aria-haspopup": "menu" });
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

/** Return the lines of a tile's menu that are about its file. */
function tileLines({ card, actions }) {
  const path = `/studio/clips/${encodeURIComponent(card.id)}`;
  const drop = async () => {
    if (await attempt(() => remove(path))) actions.changed(null);
  };
  return [
    [null, t("actions.of_file")],
    ["download", t("details.download"), () => downloadLink(card).click()],
    ["tick", t(actions.isPicked(card.id) ? "actions.unselect" : "actions.select"), () => actions.pick(card)],
    ["trash", t("gallery.delete"), () => notify(t("actions.sure_delete"), { act: drop, label: t("gallery.delete") })],
  ];
}

async function star(tile) {
  const { card, actions } = tile;
  const found = await attempt(() =>
    patch(`/studio/clips/${encodeURIComponent(card.id)}`, { favourite: !card.favourite }),
  );
  if (found) actions.changed(found);
}

/** Update phase, step, remaining time, preview and star. */
function updateProgress(tile) {
  const { card, parts } = tile;
  if (parts.star) parts.star.setAttribute("aria-pressed", String(Boolean(card.favourite)));
  if (parts.pick) parts.pick.setAttribute("aria-pressed", String(tile.actions.isPicked(card.id)));
  if (!parts.phase) return;
  parts.phase.textContent = statusText(card);
  parts.eta.textContent =
    card.status === "failed"
      ? card.error || ""
      : RUNNING.includes(card.status) && card.eta !== null
        ? t("gallery.left", { time: formatDuration(card.eta) })
        : card.message || "";
  parts.done.style.width = `${percentDone(card)}%`;
  if (parts.stop) parts.stop.disabled = card.cancelling;
  if (parts.first) parts.first.hidden = card.status !== "queued" || !card.ahead;
  if (card.preview) swapImage(parts.preview, card.preview);
}

function percentDone(card) {
  if (card.status !== "in_progress") return 0;
  return card.progress ?? (card.steps ? (100 * card.step) / card.steps : 2);
}

/** Return the status of a clip as text. */
export function statusText(card) {
  if (card.cancelling) return t("state.cancelling");
  if (card.status === "queued") return card.ahead ? t("state.ahead", { ahead: card.ahead }) : t("state.next");
  if (card.status !== "in_progress") return t(`state.${card.status}`);
  const name = `phase.${(card.phase || "").replaceAll(" ", "_")}`;
  const phase = hasText(name) ? t(name) : card.phase || t("state.in_progress");
  return card.steps ? t("state.step", { phase, step: card.step, steps: card.steps }) : phase;
}

/** Return mode, duration and size as text. */
export function summary(card) {
  const mode =
    card.mode && hasText(`modes.${card.mode}`)
      ? t(`modes.${card.mode}`)
      : card.kind === "upload"
        ? t("gallery.upload")
        : card.mode;
  return [mode, card.still || !card.seconds ? null : formatSeconds(card.seconds), card.size?.replace("x", "×")]
    .filter(Boolean)
    .join(" · ");
}
