// Play two clips side by side in sync, and vote on them.

import { voteForm } from "./vote.js";
import { button, make, setChildren } from "./dom.js";
import { get } from "./net.js";
import { releaseMedia, mediaElement } from "./media.js";
import { openSheet, attempt } from "./sheet.js";
import { formatSeconds, hasText, t } from "./i18n.js";

const SPEEDS = [1, 0.5, 0.25];
const DRIFT_SECONDS = 0.06; // half a frame at 8 frames a second

/** Compare two clips by their ids; `next` is called after a vote. */
export async function openCompare(left, right, next = null) {
  const found = await attempt(() =>
    Promise.all([left, right].map((id) => get(`/studio/clips/${encodeURIComponent(id)}`))),
  );
  if (!found) return;
  let ticking = 0;
  const closed = () => (cancelAnimationFrame(ticking), releaseMedia(sheet.body));
  const sheet = openSheet(t(next ? "vote.title" : "compare.title"), { kind: "wide compare", closed });
  const videos = found.map((card) => mediaElement(card, { eager: true }));
  const side = (card, number) =>
    make(
      "figure",
      {},
      make("div", { class: "cinema" }, videos[number]),
      make(
        "figcaption",
        {},
        make("strong", {}, t(number ? "compare.right" : "compare.left")),
        make("span", {}, next ? "" : card.prompt),
      ),
    );
  const pair = make("div", { class: "pair" }, found.map(side));
  const playing = videos.filter((video) => video.tagName === "VIDEO");
  const vote = samePrompt(...found) ? voteForm(found, () => (next ? (sheet.close(), next()) : null)) : null;
  setChildren(
    sheet.body,
    next ? make("p", { class: "asked" }, found[0].prompt) : null,
    pair,
    playing.length ? transport(playing) : null,
    vote,
    next ? null : differences(found),
  );
  const tick = () => {
    synchronize(playing);
    ticking = requestAnimationFrame(tick);
  };
  if (playing.length === 2) tick();
}

/** Return whether two clips have the same mode and prompt, so that a vote makes sense. */
function samePrompt(one, other) {
  return one.kind === "job" && other.kind === "job" && one.mode === other.mode && one.prompt === other.prompt;
}

/** Keep two videos in sync: the shorter one follows the longer, and both restart when the longer one ends. */
function synchronize(videos) {
  for (const video of videos) video.loop = false;
  if (videos[0].dataset.paused) return;
  const [lead, other] = [...videos].sort((one, two) => (two.duration || 0) - (one.duration || 0));
  const over = (video) => video.ended || video.duration - video.currentTime < 0.02;
  const early = over(other) && lead.currentTime < other.duration - DRIFT_SECONDS;
  if (over(lead)) {
    for (const video of videos) video.currentTime = 0;
    for (const video of videos) video.play().catch(() => {});
  } else if (early || (!over(other) && Math.abs(lead.currentTime - other.currentTime) > DRIFT_SECONDS)) {
    other.currentTime = lead.currentTime;
    other.play().catch(() => {});
  }
}

function transport(videos) {
  const [first] = videos;
  const all = (act) => videos.forEach(act);
  const setPaused = (paused) => {
    paused ? (first.dataset.paused = "yes") : delete first.dataset.paused;
    all((video) => (paused ? video.pause() : video.play().catch(() => {})));
    setChildren(play, ...button(paused ? "play" : "pause", "", () => {}).childNodes);
    play.setAttribute("aria-label", t(paused ? "compare.play" : "compare.pause"));
  };
  const play = button("pause", t("compare.pause"), () => setPaused(!first.dataset.paused), { id: "play" });
  const seek = (seconds) => (
    setPaused(true),
    all((video) => (video.currentTime = Math.max(0, Math.min(seconds, video.duration || seconds))))
  );
  const line = make("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": t("compare.moment") });
  const clock = make("span", { class: "clock" });
  const longest = () => Math.max(...videos.map((video) => video.duration || 0), 0.1);
  line.addEventListener("input", () => seek((line.value / 1000) * longest()));
  first.addEventListener("timeupdate", () => {
    const now = Math.max(...videos.map((video) => video.currentTime));
    if (!first.dataset.paused) line.value = Math.round((1000 * now) / longest());
    clock.textContent = formatSeconds(now);
  });
  const frame = button("step", t("compare.frame"), () => seek(first.currentTime + 0.125));
  let speed = 0;
  const speedButton = make(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-label": t("compare.pace"),
      on: {
        click: () => {
          speed = (speed + 1) % SPEEDS.length;
          all((video) => (video.playbackRate = SPEEDS[speed]));
          speedButton.textContent = `${SPEEDS[speed]}×`;
        },
      },
    },
    "1×",
  );
  return make("div", { class: "transport" }, play, frame, line, clock, speedButton);
}

/** List the fields in which two requests differ. */
function differences([one, two]) {
  const [left, right] = [one, two].map((card) => card.request ?? {});
  const names = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter(
    (name) => JSON.stringify(left[name]) !== JSON.stringify(right[name]),
  );
  const format = (value) =>
    value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
  const row = (name) =>
    make(
      "tr",
      {},
      make(
        "th",
        { scope: "row" },
        hasText(`details.${name}`) ? t(`details.${name}`) : hasText(`form.${name}`) ? t(`form.${name}`) : name,
      ),
      make("td", {}, format(left[name])),
      make("td", {}, format(right[name])),
    );
  if (!names.length) return make("p", { class: "hint" }, t("compare.same"));
  return make(
    "table",
    { class: "differences" },
    make("caption", {}, t("compare.differences")),
    make("tbody", {}, names.map(row)),
  );
}
