// The studio's page: the parts are put into their places, and the form makes clips.

import { openBoard } from "./board.js";
import { later, present, put, make } from "./dom.js";
import { body, dice, draft, isUpsampled, missing, recall } from "./draft.js";
import { openDrop } from "./drop.js";
import { join, roll, set, show } from "./form.js";
import { openGallery } from "./gallery.js";
import { greeting } from "./greeting.js";
import { openKeys } from "./keys.js";
import { openModes } from "./modes.js";
import { post } from "./net.js";
import { openPresets } from "./presets.js";
import { say, trying } from "./sheet.js";
import { openSlots } from "./slots.js";
import { modeOf, studio, tell, when } from "./studio.js";
import { dress, openTop } from "./top.js";
import { duration, learn, t } from "./words.js";

const PLACES = {
  top: openTop,
  modes: openModes,
  stage: openBoard,
  presets: openPresets,
  sources: openSlots,
  gallery: openGallery,
};
let making = false;

/** Open the studio: what the page was given, and the way into its form. */
export async function open({ words, offer, fields, buttons, folds, initial }, way) {
  Object.assign(studio, { offer, fields, buttons, folds });
  learn(words);
  dress();
  recall();
  if (!draft.prompt && !draft.lock && !draft.seed) draft.seed = dice();
  for (const [name, act] of Object.entries(PLACES)) act(await present(name));
  const estimate = await present("estimate");
  join(way, { make: press, dice: () => roll(true), write: writeOut }, initial);
  greeting((prompt) => (set({ mode: "text-to-video", prompt }), ask()));
  openKeys(() => requestAnimationFrame(() => document.getElementById("b-make").click())); // which hears the last letter, too
  openDrop();
  when(
    "draft language",
    later(500, () => estimated(estimate)),
  );
  when("mode", () => document.getElementById("f-prompt")?.scrollIntoView({ block: "nearest" }));
  fit();
  show();
  estimated(estimate);
  document.documentElement.dataset.ready = "yes";
}

/** Let the form be as high as there is room below what is above it, so that its last line is always in sight. */
function fit() {
  const desk = document.getElementById("desk");
  const measure = () =>
    desk.style.setProperty("--room", `${innerHeight - Math.max(16, desk.getBoundingClientRect().top) - 16}px`);
  for (const event of ["scroll", "resize"]) addEventListener(event, measure, { passive: true });
  new ResizeObserver(measure).observe(document.body);
  measure();
}

/** Ask for what the form says, or say what is missing. */
function press() {
  const need = missing();
  if (!need) return ask();
  say(t(`needs.${need}`), { wrong: true });
  if (need === "prompt") document.querySelector("#f-prompt textarea")?.focus();
}

async function ask() {
  if (making) return;
  making = true;
  const found = await trying(() => post("/studio/ask", { ...body(), variations: Number(draft.variations) || 1 }));
  making = false;
  if (!found) return;
  tell("clips");
  say(t(found.cards.length > 1 ? "compose.queued_several" : "compose.queued", { count: found.cards.length }));
  roll();
  if (innerWidth < 900) document.getElementById("gallery")?.scrollIntoView({ behavior: "smooth" });
}

/** Say what the clip will take, or why it cannot be made, beside the button. */
async function estimated(place) {
  const asked = JSON.stringify(body());
  const need = missing();
  if (need) return void put(place, make("span", { class: "hint" }, t(`needs.${need}`)));
  try {
    const found = await post("/studio/estimate", { ...body(), variations: Number(draft.variations) || 1 });
    const sentence = t(found.learned ? "compose.estimate" : "compose.guessed", { time: duration(found.seconds) });
    const reads = draft.upsampled_prompt.trim() && t(isUpsampled() ? "compose.upsampled" : "compose.stale");
    if (asked === JSON.stringify(body()))
      put(place, make("span", { title: found.sentence }, sentence), reads && make("p", { class: "hint" }, reads));
  } catch (error) {
    if (asked === JSON.stringify(body())) put(place, make("span", { class: "why" }, error.message));
  }
}

/** Let the upsampler write the prompt out, to be read and changed before the clip is made. */
async function writeOut() {
  const prompt = draft.prompt.trim();
  if (!prompt) return say(t("needs.prompt"), { wrong: true });
  const { still } = modeOf(draft.mode);
  const found = await trying(() =>
    post("/studio/upsample", { prompt, seed: Number(draft.seed) || 0, still, model: draft.model }),
  );
  if (found) set({ upsampled_prompt: found.upsampled_prompt, upsampledFrom: prompt, upsample: "auto" });
}
