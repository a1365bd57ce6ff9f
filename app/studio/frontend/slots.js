// The inputs of a mode: slots for clips and images, and the tools for range, mask and box.

import { button, icon, make, setChildren } from "./dom.js";
import { updateDraft, draft, sizeFor } from "./draft.js";
import { setFields } from "./form.js";
import { get, patch, send } from "./net.js";
import { maskPainter } from "./mask.js";
import { boxPicker } from "./outpaint.js";
import { mediaElement, thumbnail } from "./media.js";
import { openSheet, notify, attempt } from "./sheet.js";
import { middleHalf, rangePicker } from "./range.js";
import { modeOf, emit, listen } from "./studio.js";
import { t } from "./i18n.js";

const SLOTS = ["image", "clip", "other"];
const IMAGE_TYPES = "image/png,image/jpeg,image/webp,image/heic,.heic";
const MASK_NOTE = "mask"; // the note of an uploaded mask
const VIDEO_TYPES = "video/*,image/gif,.mkv,.avi,.mts,.m2ts,.ts,.mpg,.flv,.3gp";

/** Show the slots of the mode in their element. */
export function openSlots(place) {
  let shown = "";
  const draw = () => {
    const { name, reads } = modeOf(draft.mode);
    const now = JSON.stringify([name, draft.image, draft.clip, draft.other, draft.size, document.documentElement.lang]);
    if (now === shown) return;
    shown = now;
    const slots = SLOTS.filter((slot) => reads.includes(slot));
    const tools = [];
    if (draft.clip && reads.includes("window")) tools.push(rangePicker(draft.clip));
    if (draft.clip && reads.includes("mask")) tools.push(maskPainter(draft.clip));
    if (draft.clip && name === "outpaint") tools.push(boxPicker(draft.clip));
    setChildren(
      place,
      make("p", { class: "line" }, t(`lines.${name}`)),
      slots.length ? make("div", { class: "slots" }, slots.map(slotOf)) : null,
      tools,
    );
  };
  listen("draft mode language", draw);
  draw();
}

const fits = (still) => (card) => card.still === still;

function slotOf(name) {
  const clearedTools = ({ seconds }) => ({ mask: null, box: null, window: seconds ? middleHalf(seconds) : null });
  const take = (card) =>
    setFields({ [name]: card.id, ...(name === "clip" ? { ...clearedTools(card), size: sizeFor(draft.mode, card.size) } : {}) });
  const clear = () => updateDraft({ [name]: null });
  return slot({ label: t(`slots.${name}`), id: draft[name], still: name === "image", take, clear });
}

/** Make a slot: it shows its input, accepts a dropped clip or file, and opens a chooser when pressed. */
export function slot({ label, id, still, take, clear }) {
  const fill = async (card) => {
    if (!card) return;
    if (still !== null && card.still !== still)
      return notify(t(still ? "slots.image_wanted" : "slots.clip_wanted"), { wrong: true });
    take(card);
  };
  const choose = () => openChoice(label, still, fill);
  const view = make("button", {
    type: "button",
    class: "slot-view",
    "aria-label": t("slots.choose", { slot: label }),
    on: { click: choose },
  });
  if (id) setChildren(view, thumbnail(id, label));
  else setChildren(view, icon("add"), make("span", {}, label));
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
    emit("dropped");
    fill(await attempt(() => cardIn(event.dataTransfer)));
  });
  return box;
}

/** Return the card of a dropped clip of the gallery, or of a dropped file after its upload. */
async function cardIn(data) {
  const id = data.getData("application/x-longtake");
  if (id) return get(`/studio/clips/${encodeURIComponent(id)}`);
  const [file] = data.files;
  if (!file) return null;
  const { card } = await send(file);
  emit("clips");
  return card;
}

/** Open a chooser of completed clips or images (still: true), with an upload button. */
function openChoice(label, still, take) {
  const sheet = openSheet(label, { kind: "choice" });
  const chosen = (card) => (sheet.close(), take(card));
  const file = make("input", {
    type: "file",
    accept: still ? IMAGE_TYPES : still === null ? `${IMAGE_TYPES},${VIDEO_TYPES}` : VIDEO_TYPES,
    hidden: true,
  });
  file.addEventListener("change", async () => {
    if (!file.files[0]) return;
    const found = await attempt(() => send(file.files[0]));
    if (found) (emit("clips"), chosen(found.card));
  });
  const grid = make("div", { class: "choices" });
  setChildren(
    sheet.body,
    button("upload", t("slots.upload"), () => file.click(), { words: t("slots.upload"), kind: "accent" }),
    file,
    grid,
  );
  attempt(async () => {
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
        mediaElement(card),
        make("span", {}, card.prompt || t("gallery.sent")),
      );
    setChildren(grid, ready.length ? ready.map(one) : make("p", { class: "nothing" }, t("slots.none")));
  });
}

/** Upload a mask; its note hides it from the gallery. */
export async function sendMask(blob) {
  const found = await attempt(() => send(blob, "mask.png"));
  if (!found) return null;
  const { id } = found.card;
  await attempt(() => patch(`/studio/clips/${encodeURIComponent(id)}`, { note: MASK_NOTE }));
  return id;
}

/** Return whether an upload is a painted mask. */
export const isMask = ({ kind, note }) => kind === "upload" && note === MASK_NOTE;
