// The line at the top: the name, how the queue stands, a vote, the language, light and dark.

import { openVote } from "./ballot.js";
import { button, make, put } from "./dom.js";
import { bring } from "./drop.js";
import { shownCards } from "./gallery.js";
import { openHelp } from "./keys.js";
import { forget, keep, kept } from "./memory.js";
import { post } from "./net.js";
import { trying } from "./sheet.js";
import { studio, tell, when } from "./studio.js";
import { choose, spoken, t } from "./words.js";

const HERE = "paused in the studio"; // the server's reason when this page paused it
let seen = { counts: { queued: 0, running: 0 }, paused: null };
let gone = null;

/** Dress the page in dark or light, as it was last time; dark at first, as rooms are in which films are cut. */
export function dress() {
  const dark = kept("light", "dark") !== "light";
  document.body.classList.toggle("dark", dark);
  document.documentElement.dataset.light = dark ? "dark" : "light";
}

/** Show the line in its place. */
export function openTop(place) {
  const state = make("div", { id: "queue-state", role: "status" });
  const draw = () => {
    const dark = document.body.classList.contains("dark");
    const file = make("input", {
      type: "file",
      multiple: true,
      hidden: true,
      on: { change: () => bring([...file.files]).then(() => (file.value = "")) },
    });
    const vote = button("vote", t("vote.open"), () => openVote(shownCards()), { words: t("vote.open") });
    const add = button("upload", t("top.add"), () => file.click(), { words: t("top.add") });
    const language = make(
      "button",
      {
        type: "button",
        class: "knob round language",
        id: "language",
        "aria-label": t("top.language"),
        title: t("top.language"),
        on: { click: turn },
      },
      spoken() === "zh" ? "EN" : "中",
    );
    const light = button(
      dark ? "sun" : "moon",
      t(dark ? "top.light" : "top.dark"),
      () => (keep("light", dark ? "light" : "dark"), dress(), draw()),
      { id: "light" },
    );
    const leave = studio.offer.alone
      ? null
      : make(
          "form",
          { method: "post", action: "/studio/sign-out", on: { submit: leaving } },
          button("leave", t("top.leave"), () => {}, { type: "submit" }),
        );
    const name = make(
      "div",
      { id: "name" },
      make("img", { src: "/studio/look/mark.svg", alt: "", width: 28, height: 28 }),
      make("strong", {}, "Longtake"),
      make("span", {}, t("top.studio")),
    );
    put(
      place,
      name,
      state,
      make(
        "div",
        { id: "top-tools" },
        vote,
        add,
        file,
        button("keys", t("keys.title"), openHelp),
        language,
        light,
        leave,
      ),
    );
    follow();
  };
  const follow = () =>
    put(
      state,
      make("span", { class: `dot ${gone ? "gone" : seen.paused ? "paused" : seen.counts.running ? "running" : ""}` }),
      make("span", {}, stands()),
      pausing(),
    );
  when("language", draw);
  when("seen", (found) => ((seen = found), follow()));
  when("reached", (answer) => {
    const now = answer === true ? null : answer;
    if (Boolean(now) !== Boolean(gone)) ((gone = now), follow());
  });
  draw();
}

function stands() {
  if (gone) return gone.message;
  if (seen.paused) return seen.paused === HERE ? t("top.paused_here") : t("top.paused", { reason: seen.paused });
  const { queued, running } = seen.counts;
  return queued || running ? t("top.queue", { running, queued }) : t("top.idle");
}

function pausing() {
  if (!studio.offer.alone || gone || (!seen.paused && !seen.counts.queued && !seen.counts.running)) return null;
  const act = seen.paused ? "resume" : "pause";
  return button(
    seen.paused ? "play" : "pause",
    t(`top.${act}`),
    () => trying(() => post(`/studio/${act}`)).then(() => tell("clips")),
    { kind: "small" },
  );
}

function turn() {
  choose(spoken() === "zh" ? "en" : "zh");
  tell("language");
}

/** Leave nothing behind that the next one to sign in here could read. */
function leaving() {
  for (const name of ["draft", "voted", "presets"]) forget(name);
}
