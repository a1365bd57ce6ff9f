// The studio's page: the parts are put into their places, and the form makes clips.

import { openTimeline } from "./timeline.js";
import { debounce, whenPresent, setChildren, make } from "./dom.js";
import { requestBody, randomSeed, draft, isUpsampled, missingInput, restoreDraft } from "./draft.js";
import { openDrop } from "./drop.js";
import { connectForm, randomizeSeed, setFields, updateForm } from "./form.js";
import { openGallery } from "./gallery.js";
import { onExample } from "./welcome.js";
import { openKeys } from "./keys.js";
import { openModes } from "./modes.js";
import { post } from "./net.js";
import { openPresets } from "./presets.js";
import { notify, attempt } from "./sheet.js";
import { openSlots } from "./slots.js";
import { modeOf, studio, emit, listen } from "./studio.js";
import { applyTheme, openTop } from "./top.js";
import { formatDuration, loadTranslations, t } from "./i18n.js";

const PLACES = {
  top: openTop,
  modes: openModes,
  stage: openTimeline,
  presets: openPresets,
  sources: openSlots,
  gallery: openGallery,
};
let submitting = false;

/** Open the studio: what the page was given, and the way into its form. */
export async function open({ translations, options, fields, buttons, sections, initial }, fillForm) {
  Object.assign(studio, { options, fields, buttons, sections });
  loadTranslations(translations);
  applyTheme();
  restoreDraft();
  if (!draft.prompt && !draft.lock && !draft.seed) draft.seed = randomSeed();
  for (const [name, act] of Object.entries(PLACES)) act(await whenPresent(name));
  const estimate = await whenPresent("estimate");
  connectForm(fillForm, { generate: submitForm, random_seed: () => randomizeSeed(true), upsample_now: upsample }, initial);
  onExample((prompt) => (setFields({ mode: "text-to-video", prompt }), generate()));
  openKeys(() => requestAnimationFrame(() => document.getElementById("b-generate").click())); // which hears the last letter, too
  openDrop();
  listen(
    "draft language",
    debounce(500, () => showEstimate(estimate)),
  );
  listen("mode", () => document.getElementById("f-prompt")?.scrollIntoView({ block: "nearest" }));
  fitHeight();
  updateForm();
  showEstimate(estimate);
  document.documentElement.dataset.ready = "yes";
}

/** Let the form be as high as there is room below what is above it, so that its last line is always in sight. */
function fitHeight() {
  const columns = document.getElementById("columns");
  const measure = () =>
    columns.style.setProperty("--room", `${innerHeight - Math.max(16, columns.getBoundingClientRect().top) - 16}px`);
  for (const event of ["scroll", "resize"]) addEventListener(event, measure, { passive: true });
  new ResizeObserver(measure).observe(document.body);
  measure();
}

/** Ask for what the form says, or say what is missing. */
function submitForm() {
  const need = missingInput();
  if (!need) return generate();
  notify(t(`needs.${need}`), { wrong: true });
  if (need === "prompt") document.querySelector("#f-prompt textarea")?.focus();
}

async function generate() {
  if (submitting) return;
  submitting = true;
  const found = await attempt(() => post("/studio/generate", { ...requestBody(), variations: Number(draft.variations) || 1 }));
  submitting = false;
  if (!found) return;
  emit("clips");
  notify(t(found.cards.length > 1 ? "compose.queued_several" : "compose.queued", { count: found.cards.length }));
  randomizeSeed();
  if (innerWidth < 900) document.getElementById("gallery")?.scrollIntoView({ behavior: "smooth" });
}

/** Say what the clip will take, or why it cannot be made, beside the button. */
async function showEstimate(element) {
  const sent = JSON.stringify(requestBody());
  const need = missingInput();
  if (need) return void setChildren(element, make("span", { class: "hint" }, t(`needs.${need}`)));
  try {
    const found = await post("/studio/estimate", { ...requestBody(), variations: Number(draft.variations) || 1 });
    const sentence = t(found.measured ? "compose.estimate" : "compose.guessed", { time: formatDuration(found.seconds) });
    const reads = draft.upsampled_prompt.trim() && t(isUpsampled() ? "compose.upsampled" : "compose.stale");
    if (sent === JSON.stringify(requestBody()))
      setChildren(element, make("span", { title: found.sentence }, sentence), reads && make("p", { class: "hint" }, reads));
  } catch (error) {
    if (sent === JSON.stringify(requestBody())) setChildren(element, make("span", { class: "why" }, error.message));
  }
}

/** Let the upsampler write the prompt out, to be read and changed before the clip is made. */
async function upsample() {
  const prompt = draft.prompt.trim();
  if (!prompt) return notify(t("needs.prompt"), { wrong: true });
  const { still } = modeOf(draft.mode);
  const found = await attempt(() =>
    post("/studio/upsample", { prompt, seed: Number(draft.seed) || 0, still, model: draft.model }),
  );
  if (found) setFields({ upsampled_prompt: found.upsampled_prompt, upsampledFrom: prompt, upsample: "auto" });
}
