// The gallery: generated clips, jobs and uploads, newest first; polled about once a second while a job runs.

import { openCompare } from "./compare.js";
import { openDetails } from "./details.js";
import { button, icon, debounce, make, setChildren } from "./dom.js";
import { showWelcome } from "./welcome.js";
import { get, getChanged, remove } from "./net.js";
import { releaseMedia } from "./media.js";
import { attempt, notify } from "./sheet.js";
import { isMask } from "./slots.js";
import { emit, listen } from "./studio.js";
import { downloadLink, makeTile, RUNNING, updateTile } from "./tile.js";
import { t } from "./i18n.js";

const PAGE = 48; // cards of a response
const SHOWN_PICKED = 4; // selected clips that are shown
const BUSY_POLL_MS = 900;
const IDLE_POLL_MS = 4000; // between two requests, with and without unfinished jobs

const tiles = new Map();
const filters = { search: "", favourites: "", kind: "" };
let newest = []; // cards of the first page
let older = []; // cards of the pages after it
let more = false;
let loaded = false;
let etag = null;
let timer = 0;
let picked = [];
let parts = {};

/** Show the gallery in its element, and keep it up to date. */
export function openGallery(place) {
  parts = {
    grid: make("div", { id: "grid" }),
    none: make("div", { id: "none" }),
    tray: make("div", { id: "tray", hidden: true }),
  };
  parts.more = make("button", { type: "button", class: "knob", id: "older", hidden: true, on: { click: fetchOlder } });
  const head = make("div", { id: "gallery-head" });
  setChildren(place, head, parts.none, parts.grid, parts.more);
  document.body.append(parts.tray);
  const draw = () => {
    setChildren(head, searchBar());
    parts.more.textContent = t("gallery.older");
    layOut();
  };
  listen("language", draw);
  listen("clips", () => poll(true));
  document.addEventListener("visibilitychange", () => !document.hidden && poll());
  draw();
  poll(true);
}

function searchBar() {
  const search = debounce(250, () => poll(true, true));
  const field = make("input", {
    type: "search",
    id: "search",
    placeholder: t("gallery.search"),
    "aria-label": t("gallery.search"),
    value: filters.search,
  });
  field.addEventListener("input", () => ((filters.search = field.value), search()));
  const box = make("label", { class: "search" }, icon("search"), field);
  const kinds = ["", "job", "upload"].map((kind) =>
    chip(t(`gallery.kind_${kind || "all"}`), filters.kind === kind, () => (filters.kind = kind)),
  );
  const stars = chip(
    t("gallery.favourites"),
    Boolean(filters.favourites),
    (on) => (filters.favourites = on ? "true" : ""),
    "star",
  );
  return [box, make("div", { class: "chips", role: "group", "aria-label": t("gallery.filter") }, kinds, stars)];
}

function chip(words, on, act, name = "") {
  const press = (event) => {
    act(event.currentTarget.getAttribute("aria-pressed") !== "true");
    setChildren(document.getElementById("gallery-head"), searchBar());
    poll(true, true);
  };
  return make(
    "button",
    { type: "button", class: "chip", "aria-pressed": String(on), on: { click: press } },
    name ? icon(name) : null,
    words,
  );
}

/** Request the first page; `now` ignores the ETag, `other` starts a new search. */
async function poll(now = false, other = false) {
  clearTimeout(timer);
  if (document.hidden) return;
  if (now) etag = null;
  if (other) older = [];
  const url = query();
  let response = null;
  try {
    response = await getChanged(url, etag);
    emit("reached", true);
  } catch (error) {
    emit("reached", error);
  }
  if (url === query() && response) applyResponse(response);
  clearTimeout(timer);
  timer = setTimeout(poll, newest.some((card) => RUNNING.includes(card.status)) ? BUSY_POLL_MS : IDLE_POLL_MS);
}

const query = (after = "") =>
  `/studio/clips?${new URLSearchParams(Object.entries({ ...filters, after, limit: PAGE }).filter(([, value]) => value))}`;

function applyResponse({ found, etag: tag }) {
  etag = tag;
  loaded = true;
  const ids = new Set(found.cards.map(({ id }) => id));
  const pushed = newest.filter(({ id }) => !ids.has(id)); // moved off the first page by newer cards
  if (older.length) older = [...pushed, ...older].filter(({ id }) => !ids.has(id));
  newest = found.cards;
  if (!older.length) more = found.more;
  emit("seen", found);
  layOut();
}

async function fetchOlder() {
  const last = [...newest, ...older].at(-1);
  const found = last && (await attempt(() => get(query(last.id))));
  if (!found) return;
  older.push(...found.cards);
  more = found.more;
  layOut();
}

/** Return the cards that are shown, newest first. */
export function shownCards() {
  return [...newest, ...older].filter((card) => !isMask(card));
}

/** Lay out the tiles; existing tiles are reused. */
function layOut() {
  const cards = shownCards();
  const wanted = new Set(cards.map(({ id }) => id));
  for (const [id, tile] of tiles) {
    if (wanted.has(id)) continue;
    releaseMedia(tile.element);
    tile.element.remove();
    tiles.delete(id);
  }
  cards.forEach((card, place) => {
    if (tiles.has(card.id)) updateTile(tiles.get(card.id), card);
    else tiles.set(card.id, makeTile(card, tileActions));
    const { element } = tiles.get(card.id);
    if (parts.grid.children[place] !== element) parts.grid.insertBefore(element, parts.grid.children[place] ?? null);
  });
  parts.more.hidden = !more;
  const searched = filters.search || filters.kind || filters.favourites;
  if (cards.length) setChildren(parts.none);
  else if (searched) setChildren(parts.none, make("p", { class: "nothing" }, t("gallery.nothing")));
  else if (loaded) showWelcome(parts.none);
  drawTray();
}

const tileActions = {
  open: (card) => openDetails(card.id),
  pick,
  isPicked: (id) => picked.includes(id),
  changed: (card) => {
    if (card?.status)
      [newest, older] = [newest, older].map((list) =>
        list.map((one) => (one.id === card.id ? { ...one, ...card } : one)),
      );
    layOut();
    poll(true);
  },
};

/** Select a clip, or no longer. */
export function pick(card) {
  picked = picked.includes(card.id) ? picked.filter((id) => id !== card.id) : [...picked, card.id];
  layOut();
}

function drawTray() {
  const there = picked.map((id) => shownCards().find((card) => card.id === id)).filter((card) => card?.content);
  picked = there.map(({ id }) => id);
  parts.tray.hidden = !there.length;
  const compare = button("compare", t("compare.open"), () => openCompare(there[0].id, there[1].id), {
    words: t("compare.open"),
    kind: "accent",
    disabled: there.length !== 2,
  });
  const fetchAll = button("download", t("gallery.download_all"), () => downloadAll(there));
  const dropAll = button("trash", t("gallery.delete_all"), () =>
    notify(t("gallery.sure_delete", { count: there.length }), { act: () => deleteAll(there), label: t("gallery.delete") }),
  );
  const clear = button("close", t("compare.clear"), () => ((picked = []), layOut()));
  const shown = there.slice(-SHOWN_PICKED).map((card) => make("img", { class: "thumb", src: card.poster, alt: card.prompt }));
  const count = make("span", {}, there.length < 2 ? t("compare.another") : t("gallery.selected", { count: there.length }));
  setChildren(parts.tray, shown, count, compare, fetchAll, dropAll, clear);
}

/** Download clips one after the other, since a browser drops links that follow at once. */
async function downloadAll(cards) {
  for (const card of cards) {
    downloadLink(card).click();
    await new Promise((next) => setTimeout(next, 400));
  }
}

async function deleteAll(cards) {
  for (const { id } of cards) await attempt(() => remove(`/studio/clips/${encodeURIComponent(id)}`));
  picked = [];
  poll(true);
}
