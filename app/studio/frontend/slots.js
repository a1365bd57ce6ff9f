// What a mode begins with: slots for clips and pictures, and what is marked on them.

import { button, icon, make, put } from "./dom.js";
import { change, draft, sizeFor } from "./draft.js";
import { set } from "./form.js";
import { get, patch, send } from "./net.js";
import { painter } from "./mask.js";
import { placer } from "./place.js";
import { screen, thumbnail } from "./screen.js";
import { openSheet, say, trying } from "./sheet.js";
import { middle, span } from "./span.js";
import { modeOf, tell, when } from "./studio.js";
import { t } from "./words.js";

const SLOTS = ["image", "clip", "other"];
const STILLS = "image/png,image/jpeg,image/webp";
const MASK = "mask"; // the note of one
const FILMS = "video/mp4,video/webm,video/x-matroska,image/gif";

/** Show the slots of the mode in their place. */
export function openSlots(place) {
  let shown = "";
  const draw = () => {
    const { name, reads } = modeOf(draft.mode);
    const now = JSON.stringify([name, draft.image, draft.clip, draft.other, draft.size, document.documentElement.lang]);
    if (now === shown) return;
    shown = now;
    const slots = SLOTS.filter((slot) => reads.includes(slot));
    const tools = [];
    if (draft.clip && reads.includes("window")) tools.push(span(draft.clip));
    if (draft.clip && reads.includes("mask")) tools.push(painter(draft.clip));
    if (draft.clip && name === "outpaint") tools.push(placer(draft.clip));
    put(
      place,
      make("p", { class: "line" }, t(`lines.${name}`)),
      slots.length ? make("div", { class: "slots" }, slots.map(slotOf)) : null,
      tools,
    );
  };
  when("draft mode language", draw);
  draw();
}

const fits = (still) => (card) => card.still === still;

function slotOf(name) {
  const marks = ({ seconds }) => ({ mask: null, box: null, window: seconds ? middle(seconds) : null });
  const take = (card) =>
    set({ [name]: card.id, ...(name === "clip" ? { ...marks(card), size: sizeFor(draft.mode, card.size) } : {}) });
  const clear = () => change({ [name]: null });
  return slot({ label: t(`slots.${name}`), id: draft[name], still: name === "image", take, clear });
}

/** Make a slot: it shows what is in it, takes what is dropped on it, and opens a choice when it is pressed. */
export function slot({ label, id, still, take, clear }) {
  const fill = async (card) => {
    if (!card) return;
    if (still !== null && card.still !== still)
      return say(t(still ? "slots.picture_wanted" : "slots.clip_wanted"), { wrong: true });
    take(card);
  };
  const choose = () => openChoice(label, still, fill);
  const view = make("button", {
    type: "button",
    class: "slot-view",
    "aria-label": t("slots.choose", { slot: label }),
    on: { click: choose },
  });
  if (id) put(view, thumbnail(id, label));
  else put(view, icon("add"), make("span", {}, label));
  const box = make(
    "div",
    { class: `slot ${id ? "full" : ""}` },
    view,
    id ? make("span", { class: "slot-name" }, label) : null,
    id && clear ? button("close", t("slots.clear"), clear) : null,
  );
  box.addEventListener(
    "dragover",
    (event) => (event.preventDefault(), event.stopPropagation(), box.classList.add("over")),
  );
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    box.classList.remove("over");
    tell("dropped");
    fill(await trying(() => cardIn(event.dataTransfer)));
  });
  return box;
}

/** Return the card of what is dragged: a clip of the gallery, or a file, which is sent. */
async function cardIn(data) {
  const id = data.getData("application/x-longtake");
  if (id) return get(`/studio/clips/${encodeURIComponent(id)}`);
  const [file] = data.files;
  if (!file) return null;
  const { card } = await send(file);
  tell("clips");
  return card;
}

/** Open a choice among finished clips or pictures (still: true), or a file of one's own. */
function openChoice(label, still, take) {
  const sheet = openSheet(label, { kind: "choice" });
  const chosen = (card) => (sheet.close(), take(card));
  const file = make("input", {
    type: "file",
    accept: still ? STILLS : still === null ? `${STILLS},${FILMS}` : FILMS,
    hidden: true,
  });
  file.addEventListener("change", async () => {
    if (!file.files[0]) return;
    const found = await trying(() => send(file.files[0]));
    if (found) (tell("clips"), chosen(found.card));
  });
  const grid = make("div", { class: "choices" });
  put(
    sheet.body,
    button("upload", t("slots.upload"), () => file.click(), { words: t("slots.upload"), kind: "accent" }),
    file,
    grid,
  );
  trying(async () => {
    const { cards } = await get("/studio/clips?limit=100");
    const ready = cards.filter(
      (card) => card.status === "completed" && !isMask(card) && (still === null || fits(still)(card)),
    );
    const one = (card) =>
      make(
        "button",
        {
          type: "button",
          class: "choice-one",
          "aria-label": card.prompt || t("gallery.sent"),
          on: { click: () => chosen(card) },
        },
        screen(card),
        make("span", {}, card.prompt || t("gallery.sent")),
      );
    put(grid, ready.length ? ready.map(one) : make("p", { class: "nothing" }, t("slots.none")));
  });
}

/** Send a mask; a note keeps it out of the gallery. */
export async function sendMask(blob) {
  const found = await trying(() => send(blob, "mask.png"));
  if (!found) return null;
  const { id } = found.card;
  await trying(() => patch(`/studio/clips/${encodeURIComponent(id)}`, { note: MASK }));
  return id;
}

/** Say whether a file is a mask that was painted here. */
export const isMask = ({ kind, note }) => kind === "upload" && note === MASK;
