// Start the page: open its parts, and submit the form.

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
import { openWords } from "./words.js";
import { applyTheme, openTop } from "./top.js";
import { formatDuration, loadTranslations, t } from "./i18n.js";

const PLACES = {
  top: openTop,
  modes: openModes,
  stage: openTimeline,
  presets: openPresets,
  words: openWords,
  sources: openSlots,
  gallery: openGallery,
};
let submitting = false;

/** Open the studio with the props of the page and a function that fills its form. */
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
  openKeys(() => requestAnimationFrame(() => document.getElementById("b-generate").click())); // after the form's last change event
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

/** Limit the form to the height of the window, so that its submit button stays visible. */
function fitHeight() {
  const columns = document.getElementById("columns");
  const measure = () =>
    columns.style.setProperty("--room", `${innerHeight - Math.max(16, columns.getBoundingClientRect().top) - 16}px`);
  for (const event of ["scroll", "resize"]) addEventListener(event, measure, { passive: true });
  new ResizeObserver(measure).observe(document.body);
  measure();
}

/** Submit the form, or show what is missing. */
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
  for (const note of document.querySelectorAll(".toast.wrong, .toast[data-about=upsampling]")) note.remove();
  notify(t(found.cards.length > 1 ? "compose.queued_several" : "compose.queued", { count: found.cards.length }));
  randomizeSeed();
  if (innerWidth < 900) document.getElementById("gallery")?.scrollIntoView({ behavior: "smooth" });
}

/** Show the estimate next to the button, or why the request is refused. */
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

/** Upsample the prompt into the form, where it can be edited. */
async function upsample() {
  const prompt = draft.prompt.trim();
  if (!prompt) return notify(t("needs.prompt"), { wrong: true });
  const { still } = modeOf(draft.mode);
  const found = await attempt(() =>
    post("/studio/upsample", { prompt, seed: Number(draft.seed) || 0, still, model: draft.model }),
  );
  if (!found) return;
  if (found.unchanged) return notify(t(`upsample.unchanged_${found.unchanged}`), { stays: true, about: "upsampling" });
  setFields({ upsampled_prompt: found.upsampled_prompt, upsampledFrom: prompt, upsample: "auto" });
  const added = Object.entries(found.added).map(([name, value]) => `${t(`upsample.added_${name}`)}: ${value}`);
  if (added.length) notify(t("upsample.added", { list: added.join("; ") }), { stays: true, about: "upsampling" });
}
