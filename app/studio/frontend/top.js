// The top bar: name, state of the queue, vote, language, theme, sign out.

import { openVote } from "./vote.js";
import { button, make, setChildren } from "./dom.js";
import { uploadFiles } from "./drop.js";
import { shownCards } from "./gallery.js";
import { openHelp } from "./keys.js";
import { erase, store, load } from "./storage.js";
import { post } from "./net.js";
import { attempt } from "./sheet.js";
import { studio, emit, listen } from "./studio.js";
import { setLanguage, currentLanguage, t } from "./i18n.js";

const PAUSE_REASON = "paused in the studio"; // the server's reason when this page paused it
let latest = { counts: { queued: 0, running: 0 }, paused: null };
let unreachable = null;

const systemIsLight = matchMedia("(prefers-color-scheme: light)");

/** Apply the theme that was chosen, or else the system's. */
export function applyTheme() {
  const dark = load("light", systemIsLight.matches ? "light" : "dark") !== "light";
  document.body.classList.toggle("dark", dark);
  document.documentElement.dataset.light = dark ? "dark" : "light";
}

/** Show the top bar in its element. */
export function openTop(place) {
  const state = make("div", { id: "queue-state", role: "status" });
  const draw = () => {
    const dark = document.body.classList.contains("dark");
    const file = make("input", {
      type: "file",
      multiple: true,
      hidden: true,
      on: { change: () => uploadFiles([...file.files]).then(() => (file.value = "")) },
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
        on: { click: switchLanguage },
      },
      currentLanguage() === "zh" ? "EN" : "中",
    );
    const light = button(
      dark ? "sun" : "moon",
      t(dark ? "top.light" : "top.dark"),
      () => (store("light", dark ? "light" : "dark"), applyTheme(), draw()),
      { id: "light" },
    );
    const signOut = studio.options.single_user
      ? null
      : make(
          "form",
          { method: "post", action: "/studio/sign-out", on: { submit: clearStorage } },
          button("leave", t("top.leave"), () => {}, { type: "submit" }),
        );
    const name = make(
      "div",
      { id: "name" },
      make("img", { src: "/studio/frontend/mark.svg", alt: "", width: 28, height: 28 }),
      make("strong", {}, "Longtake"),
      make("span", {}, t("top.studio")),
    );
    setChildren(
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
        signOut,
      ),
    );
    updateState();
  };
  const updateState = () =>
    setChildren(
      state,
      make("span", { class: `dot ${unreachable ? "gone" : latest.paused ? "paused" : latest.counts.running ? "running" : ""}` }),
      make("span", {}, queueText()),
      pauseButton(),
    );
  listen("language", draw);
  systemIsLight.addEventListener("change", () => (applyTheme(), draw()));
  listen("seen", (found) => ((latest = found), updateState()));
  listen("reached", (answer) => {
    const now = answer === true ? null : answer;
    if (Boolean(now) !== Boolean(unreachable)) ((unreachable = now), updateState());
  });
  draw();
}

function queueText() {
  if (unreachable) return unreachable.message;
  if (latest.paused) return latest.paused === PAUSE_REASON ? t("top.paused_here") : t("top.paused", { reason: latest.paused });
  const { queued, running } = latest.counts;
  return queued || running ? t("top.queue", { running, queued }) : t("top.idle");
}

function pauseButton() {
  if (!studio.options.single_user || unreachable || (!latest.paused && !latest.counts.queued && !latest.counts.running)) return null;
  const act = latest.paused ? "resume" : "pause";
  return button(
    latest.paused ? "play" : "pause",
    t(`top.${act}`),
    () => attempt(() => post(`/studio/${act}`)).then(() => emit("clips")),
    { kind: "small" },
  );
}

function switchLanguage() {
  setLanguage(currentLanguage() === "zh" ? "en" : "zh");
  emit("language");
}

/** Erase what the next user of this browser must not see. */
function clearStorage() {
  for (const name of ["draft", "voted", "presets"]) erase(name);
}
