// Two clips side by side, in step, and a vote between them.

import { ballot } from "./ballot.js";
import { button, make, put } from "./dom.js";
import { get } from "./net.js";
import { darken, screen } from "./screen.js";
import { openSheet, trying } from "./sheet.js";
import { clipSeconds, has, t } from "./words.js";

const PACES = [1, 0.5, 0.25];
const APART_SECONDS = 0.06; // half a frame at 8 frames a second

/** Compare two clips that are named by their ids; `next` is what to do when a vote has been cast. */
export async function openCompare(left, right, next = null) {
  const found = await trying(() =>
    Promise.all([left, right].map((id) => get(`/studio/clips/${encodeURIComponent(id)}`))),
  );
  if (!found) return;
  let ticking = 0;
  const closed = () => (cancelAnimationFrame(ticking), darken(sheet.body));
  const sheet = openSheet(t(next ? "vote.title" : "compare.title"), { kind: "wide compare", closed });
  const films = found.map((card) => screen(card, { eager: true }));
  const side = (card, number) =>
    make(
      "figure",
      {},
      make("div", { class: "cinema" }, films[number]),
      make(
        "figcaption",
        {},
        make("strong", {}, t(number ? "compare.right" : "compare.left")),
        make("span", {}, next ? "" : card.prompt),
      ),
    );
  const pair = make("div", { class: "pair" }, found.map(side));
  const playing = films.filter((film) => film.tagName === "VIDEO");
  const vote = sameWords(...found) ? ballot(found, () => (next ? (sheet.close(), next()) : null)) : null;
  put(
    sheet.body,
    next ? make("p", { class: "asked" }, found[0].prompt) : null,
    pair,
    playing.length ? transport(playing) : null,
    vote,
    next ? null : differences(found),
  );
  const tick = () => {
    inStep(playing);
    ticking = requestAnimationFrame(tick);
  };
  if (playing.length === 2) tick();
}

/** Say whether two clips were asked for in the same words, so that one may be better than the other. */
function sameWords(one, other) {
  return one.kind === "job" && other.kind === "job" && one.mode === other.mode && one.prompt === other.prompt;
}

/** Keep two films in step: the shorter one follows the longer, and both begin again when that has ended. */
function inStep(films) {
  for (const film of films) film.loop = false;
  if (films[0].dataset.held) return;
  const [lead, other] = [...films].sort((one, two) => (two.duration || 0) - (one.duration || 0));
  const over = (film) => film.ended || film.duration - film.currentTime < 0.02;
  const early = over(other) && lead.currentTime < other.duration - APART_SECONDS;
  if (over(lead)) {
    for (const film of films) film.currentTime = 0;
    for (const film of films) film.play().catch(() => {});
  } else if (early || (!over(other) && Math.abs(lead.currentTime - other.currentTime) > APART_SECONDS)) {
    other.currentTime = lead.currentTime;
    other.play().catch(() => {});
  }
}

function transport(films) {
  const [first] = films;
  const all = (act) => films.forEach(act);
  const hold = (held) => {
    held ? (first.dataset.held = "yes") : delete first.dataset.held;
    all((film) => (held ? film.pause() : film.play().catch(() => {})));
    put(play, ...button(held ? "play" : "pause", "", () => {}).childNodes);
    play.setAttribute("aria-label", t(held ? "compare.play" : "compare.pause"));
  };
  const play = button("pause", t("compare.pause"), () => hold(!first.dataset.held), { id: "play" });
  const seek = (seconds) => (
    hold(true),
    all((film) => (film.currentTime = Math.max(0, Math.min(seconds, film.duration || seconds))))
  );
  const line = make("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": t("compare.moment") });
  const clock = make("span", { class: "clock" });
  const longest = () => Math.max(...films.map((film) => film.duration || 0), 0.1);
  line.addEventListener("input", () => seek((line.value / 1000) * longest()));
  first.addEventListener("timeupdate", () => {
    const now = Math.max(...films.map((film) => film.currentTime));
    if (!first.dataset.held) line.value = Math.round((1000 * now) / longest());
    clock.textContent = clipSeconds(now);
  });
  const frame = button("step", t("compare.frame"), () => seek(first.currentTime + 0.125));
  let pace = 0;
  const slow = make(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-label": t("compare.pace"),
      on: {
        click: () => {
          pace = (pace + 1) % PACES.length;
          all((film) => (film.playbackRate = PACES[pace]));
          slow.textContent = `${PACES[pace]}×`;
        },
      },
    },
    "1×",
  );
  return make("div", { class: "transport" }, play, frame, line, clock, slow);
}

/** Say in what the requests of two clips differ. */
function differences([one, two]) {
  const [left, right] = [one, two].map((card) => card.request ?? {});
  const names = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter(
    (name) => JSON.stringify(left[name]) !== JSON.stringify(right[name]),
  );
  const told = (value) =>
    value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
  const row = (name) =>
    make(
      "tr",
      {},
      make(
        "th",
        { scope: "row" },
        has(`details.${name}`) ? t(`details.${name}`) : has(`form.${name}`) ? t(`form.${name}`) : name,
      ),
      make("td", {}, told(left[name])),
      make("td", {}, told(right[name])),
    );
  if (!names.length) return make("p", { class: "hint" }, t("compare.same"));
  return make(
    "table",
    { class: "differences" },
    make("caption", {}, t("compare.differences")),
    make("tbody", {}, names.map(row)),
  );
}
