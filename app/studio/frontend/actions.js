// Use a clip as an input: start a mode with it, make it again, or put it into a slot.

import { make } from "./dom.js";
import { defaultDraft, updateDraft, draft, draftFromRequest, sizeFor } from "./draft.js";
import { setFields } from "./form.js";
import { get, send } from "./net.js";
import { openMenu, notify, attempt } from "./sheet.js";
import { middleHalf } from "./range.js";
import { modeOf, studio } from "./studio.js";
import { t } from "./i18n.js";

/** Open the menu of the modes that take this clip or image. */
export function openActions(at, card, more = []) {
  const modes = studio.options.modes.filter(({ reads }) =>
    ["clip", "image", "keyframes"].some((name) => reads.includes(name)),
  );
  const takesCard = ({ reads }) => reads.includes("clip") !== card.still;
  const line = ({ name }) => [name, t(`modes.${name}`), () => startMode(name, card)];
  const boards = modeOf("storyboard").name === "storyboard" ? [line(modeOf("storyboard"))] : [];
  const first = [...modes.filter(takesCard), ...(card.still ? boards : [])].map(line);
  const frames = card.still
    ? []
    : [[null, t("actions.of_frame")], ...modes.filter((mode) => !takesCard(mode)).map(line), ...boards];
  openMenu(at, [[null, t(card.still ? "actions.of_image" : "actions.of_clip")], ...first, ...frames, ...more]);
}

/** Start a mode with a clip or image in its slot; the change of the form can be undone. */
export async function startMode(mode, card) {
  const wanted = modeOf(mode).reads;
  const inSlot = wanted.includes("clip") || (mode === "storyboard" && !card.still) ? card : await imageOf(card);
  if (!inSlot) return;
  changeWithUndo(t("actions.begun", { mode: t(`modes.${mode}`) }), () => {
    const values = { mode, ...clearedInputs(), ...inputFields(mode, inSlot) };
    if (card.prompt && !draft.prompt.trim()) values.prompt = card.prompt;
    values.size = sizeFor(mode, card.size);
    updateDraft(values);
  });
}

const clearedInputs = () => ({ clip: null, other: null, image: null, mask: null, window: null, box: null });

function inputFields(mode, card) {
  const { reads } = modeOf(mode);
  if (reads.includes("clip")) return { clip: card.id, window: card.seconds ? middleHalf(card.seconds) : null };
  if (reads.includes("image")) return { image: card.id };
  if (reads.includes("keyframes"))
    return {
      keyframes: [
        ...draft.keyframes.filter((one) => one.image),
        { at: nextMoment(draft.keyframes), image: card.id },
      ],
    };
  const shown = { [card.still ? "image" : "clip"]: card.id };
  const moments = draft.moments.filter((one) => one.prompt || one.image || one.clip);
  return {
    moments: [...moments, { at: nextMoment(moments), prompt: card.prompt || "", image: null, clip: null, ...shown }],
    length: Math.max(Number(draft.length) || 0, nextMoment(moments) + 2),
  };
}

function nextMoment(list) {
  return list.length ? Math.max(...list.map((one) => Number(one.at) || 0)) + 2 : 0;
}

/** Change the form and show a message with an undo button. */
export function changeWithUndo(sentence, act) {
  const before = structuredClone(draft);
  act();
  setFields({});
  notify(sentence, { act: () => changeWithUndo(t("actions.undone"), () => updateDraft(before)), label: t("actions.undo") });
  const stage = document.getElementById("stage");
  if (innerWidth >= 900) scrollTo({ top: 0, behavior: "smooth" });
  else (stage.hidden ? document.getElementById("compose") : stage).scrollIntoView({ behavior: "smooth" });
}

/** Fill the form with the request in a clip's metadata. */
export async function makeAgain(card) {
  const found = card.request ? card : await attempt(() => get(`/studio/clips/${encodeURIComponent(card.id)}`));
  if (!found) return;
  if (!found.request) return notify(found.missing || t("details.no_request"), { wrong: true });
  changeWithUndo(t("actions.again"), () => updateDraft({ ...defaultDraft(found.request.model), ...draftFromRequest(found.request) }));
}

/** Return the card of an image: the card itself, or the last frame of its clip, uploaded as an image. */
async function imageOf(card) {
  if (card.still) return card;
  const sent = await attempt(async () => send(await frameOf(card.content), "frame.png"));
  return sent?.card ?? null;
}

/** Return a frame of a clip as a PNG, by default its last. */
async function frameOf(address, at = Infinity) {
  const video = make("video", { muted: true, playsInline: true, preload: "auto", src: address });
  await new Promise((ready, fail) => {
    video.onloadeddata = ready;
    video.onerror = () => fail(new Error("a clip cannot be played"));
  });
  await new Promise((ready) => {
    video.onseeked = ready;
    video.currentTime = Math.max(0, Math.min(at, video.duration - 0.02));
  });
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
