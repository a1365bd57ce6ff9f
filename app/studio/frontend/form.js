// Keep the draft and Gradio's form in sync, in both directions.

import { updateDraft, randomSeed, draft, durationsFor, usesMoments, sizesFor } from "./draft.js";
import { debounce } from "./dom.js";
import { modelOf, modeOf, studio, listen } from "./studio.js";
import { formatSeconds, hasText, t } from "./i18n.js";

const lastValues = {}; // of the form, so that an older change event does not overwrite the draft
let fill = () => {};
let actions = {};

/** Connect the form: `fillForm` updates Gradio's components, `handlers` are called by its buttons. */
export function connectForm(fillForm, handlers, initial) {
  fill = debounce(0, fillForm);
  actions = handlers;
  Object.assign(lastValues, initial);
  listen("language mode", () => updateForm());
  listen("draft", markPage);
  window.studio = { fieldsChanged, buttonPressed, formUpdates };
}

/** Update the form with the draft. */
export function updateForm() {
  markPage();
  fill();
}

/** Change the draft, and update the form. */
export function setFields(values) {
  updateDraft(values);
  updateForm();
}

function fieldsChanged(values) {
  const found = {};
  studio.fields.forEach((name, number) => {
    const value = values[number];
    if (same(value, lastValues[name])) return;
    lastValues[name] = value;
    if (!same(value, draft[name])) found[name] = value ?? (typeof draft[name] === "string" ? "" : null);
  });
  if (!Object.keys(found).length) return;
  if ("upsampled_prompt" in found && !("prompt" in found)) found.upsampledFrom = null; // typed by the user
  const size = draft.size;
  updateDraft(found);
  if ("model" in found || "size" in found || size !== draft.size) updateForm();
}

const same = (one, other) => String(one ?? "") === String(other ?? "");

function buttonPressed(name, values) {
  fieldsChanged(values);
  actions[name]?.();
}

/** Return an update for each Gradio component. */
function formUpdates() {
  const update = (values) => ({ __type__: "update", ...values });
  return [
    ...studio.fields.map((name) => update({ ...fieldSettings(name), ...changedValue(name) })),
    ...studio.buttons.map((name) => update({ value: t(`form.${name}`) })),
    ...studio.sections.map((name) => update({ label: t(`form.${name}`) })),
  ];
}

/** Return the value of a field only where it changed, since the user may be typing in it. */
function changedValue(name) {
  return same(draft[name], lastValues[name]) ? {} : { value: draft[name] ?? null };
}

function fieldSettings(name) {
  const settings = { label: t(`form.${name}`) };
  if (hasText(`form.${name}_hint`)) settings.placeholder = t(`form.${name}_hint`);
  if (hasText(`form.${name}_info`)) settings.info = t(`form.${name}_info`);
  if (name in CHOICES) settings.choices = CHOICES[name]();
  return settings;
}

const labelled = (values, group) =>
  values.map((value) => [hasText(`${group}.${value || "none"}`) ? t(`${group}.${value || "none"}`) : String(value), value]);

const CHOICES = {
  size: () => sizesFor(draft.mode, draft.model).map(({ size }) => [size.replace("x", " × "), size]),
  seconds: () => durationsFor(draft.size, draft.model).map((seconds) => [formatSeconds(seconds), seconds]),
  upsample: () => labelled(studio.options.upsamplers, "upsample"),
  side: () => labelled(studio.options.sides, "side"),
  sampler: () => labelled(studio.options.samplers, "sampler"),
  camera: () => cameraChoices(),
  watermark: () => labelled(["", ...studio.options.corners], "watermark"),
  model: () => studio.options.models.map(({ name }) => [name, name]),
};

/** Return the moves of the camera, and the numbers that the draft has in place of one. */
function cameraChoices() {
  const moves = ["", ...modelOf(draft.model).camera];
  if (draft.camera && !moves.includes(draft.camera)) moves.push(draft.camera);
  return moves.map((move) => {
    const name = `camera.${(move || "none").replaceAll(" ", "_")}`;
    return [hasText(name) ? t(name) : move, move];
  });
}

/** Set the data attributes by which the style sheets show and hide fields. */
function markPage() {
  const mode = modeOf(draft.mode);
  const root = document.documentElement.dataset;
  root.mode = mode.name;
  root.promptsFrom = usesMoments() ? "cards" : "prompt";
  root.reads = [...mode.reads, mode.needs.length || mode.reads.length ? "frames" : ""].join(" ");
  root.duration = mode.still || !mode.timed ? "given" : mode.any_length ? "free" : "trained";
  root.models = studio.options.models.length > 1 ? "several" : "one";
  root.camera = modelOf(draft.model).camera.length && !mode.still ? "read" : "none";
  root.upsampler = studio.options.upsamplers.length > 1 ? "shipped" : "none";
}

/** Set a new random seed, unless the seed is locked. */
export function randomizeSeed(always = false) {
  if (always || !draft.lock) setFields({ seed: randomSeed() });
}
