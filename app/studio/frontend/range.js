// Choose a time range of a clip with two sliders.

import { make, setChildren } from "./dom.js";
import { updateDraft, draft } from "./draft.js";
import { get } from "./net.js";
import { mediaElement } from "./media.js";
import { attempt } from "./sheet.js";
import { t } from "./i18n.js";

const STEP = 0.125; // seconds: a frame at 8 frames a second

/** Return the middle half of a clip, in seconds. */
export const middleHalf = (seconds) => [seconds / 4, (3 * seconds) / 4].map((at) => Math.round(at / STEP) * STEP);

/** Make the range picker for a clip. */
export function rangePicker(id) {
  const place = make("div", { class: "tool span" });
  attempt(async () => {
    const card = await get(`/studio/clips/${encodeURIComponent(id)}`);
    draw(place, card, card.duration ?? card.seconds ?? 2);
  });
  return place;
}

function draw(place, card, seconds) {
  const video = mediaElement(card, { eager: true });
  video.loop = false;
  let [from, to] = draft.window ?? middleHalf(seconds);
  to = Math.min(to, seconds);
  const caption = make("p", { class: "range-caption", role: "status" });
  const chosen = make("span", { class: "span-chosen" });
  const handle = (name, value) =>
    make("input", {
      type: "range",
      min: 0,
      max: seconds,
      step: STEP,
      value,
      "aria-label": t(`span.${name}`),
      class: name,
    });
  const [first, last] = [handle("from", from), handle("to", to)];
  const apply = (moved) => {
    [from, to] = [Number(first.value), Number(last.value)];
    if (to - from < STEP) moved === first ? (from = Math.max(0, to - STEP)) : (to = Math.min(seconds, from + STEP));
    if (to - from < STEP) from = to - STEP;
    [first.value, last.value] = [from, to];
    chosen.style.left = `${(100 * from) / seconds}%`;
    chosen.style.width = `${(100 * (to - from)) / seconds}%`;
    caption.textContent = t(draft.mode === "recut" ? "span.kept" : "span.regenerated", { from, to });
    if (moved) video.currentTime = moved === first ? from : Math.max(from, to - STEP);
    if (!draft.window || draft.window[0] !== from || draft.window[1] !== to) updateDraft({ window: [from, to] });
  };
  for (const one of [first, last]) one.addEventListener("input", () => apply(one));
  video.addEventListener("timeupdate", () => video.currentTime >= to && (video.currentTime = from));
  video.addEventListener("ended", () => ((video.currentTime = from), video.play().catch(() => {})));
  setChildren(place, make("div", { class: "cinema" }, video), make("div", { class: "span-line" }, chosen, first, last), caption);
  apply(null);
}
