// The draft: the values of the form, stored at every change and turned into the fields of a request.

import { store, load } from "./storage.js";
import { modeOf, modelOf, studio, emit } from "./studio.js";

// Fields without a Gradio component; the others are named in studio.fields.
const NO_CONTROL = {
  mode: "text-to-video",
  image: null,
  clip: null,
  other: null,
  mask: null,
  keyframes: [],
  window: null,
  box: null,
  moments: [],
  upsampledFrom: null,
  more: {},
};
const PLAIN_FIELDS = ["steps", "guidance", "frame_guidance", "guidance_rescale", "sampler"];
const LENGTHS = { storyboard: 4, long: 10 }; // default seconds of modes that need a length
const MAX_SEED = 2 ** 31;

export const draft = {};

/** Return the draft with the defaults of a model. */
export function defaultDraft(name) {
  const { name: model, defaults } = modelOf(name);
  const { size, seconds, steps, guidance, frame_guidance, guidance_rescale, sampler } = defaults;
  const [low, high] = defaults.guidance_interval;
  const [upsample, side] = [studio.options.upsamplers[0], studio.options.sides[0]];
  const promptText = { prompt: "", negative_prompt: "", upsample, upsampled_prompt: "", camera: "" };
  const shape = { model, size, seconds, length: null, side, strength: 0.6, watermark: "" };
  const seeding = { seed: 0, lock: false, variations: 1 };
  const sampling = { steps, guidance, frame_guidance, low, high, guidance_rescale, sampler };
  return { ...structuredClone(NO_CONTROL), ...promptText, ...shape, ...seeding, ...sampling };
}

/** Rename fields that were stored under their old names. */
export function renameFields(fields) {
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [studio.options.renamed[name] ?? name, value]));
}

/** Restore the draft of the last visit. */
export function restoreDraft() {
  Object.assign(draft, defaultDraft(), renameFields(load("draft", {})));
  // Drafts of version 0.1 have `picture` in place of `image`.
  draft.keyframes = draft.keyframes.map(({ at, image, picture }) => ({ at, image: image ?? picture ?? null }));
  if (!studio.options.modes.some((mode) => mode.name === draft.mode)) draft.mode = NO_CONTROL.mode;
  clampToModel();
}

/** Change the draft; size and duration are set to ones the model was trained for. */
export function updateDraft(values) {
  const before = draft.mode;
  Object.assign(draft, values);
  if (draft.mode !== before && !("length" in values)) draft.length = LENGTHS[draft.mode] ?? null;
  if (draft.mode !== before && !("strength" in values) && modeOf(draft.mode).strength)
    draft.strength = modeOf(draft.mode).strength;
  clampToModel();
  store("draft", draft);
  if (draft.mode !== before) emit("mode");
  emit("draft");
}

/** Set size and duration to ones the model was trained for. */
function clampToModel() {
  const model = modelOf(draft.model);
  draft.model = model.name;
  const sizes = sizesFor(draft.mode, model.name);
  if (!sizes.some((one) => one.size === draft.size))
    draft.size = (sizes.find((one) => one.size === model.defaults.size) ?? sizes[0])?.size;
  const durations = durationsFor(draft.size, model.name);
  if (!durations.includes(Number(draft.seconds)))
    draft.seconds = durations.includes(model.defaults.seconds) ? model.defaults.seconds : durations[0];
}

/** Return the sizes that the model was trained for, of clips or of images. */
export function sizesFor(mode, model) {
  const { still } = modeOf(mode);
  return modelOf(model).sizes.filter((one) => (still ? one.stills : one.clips));
}

/** Return the output size for an input of some size: the same where supported, the largest for outpaint. */
export function sizeFor(mode, size) {
  const sizes = sizesFor(mode, draft.model).map((one) => one.size);
  const area = (one) => one.split("x").reduce((columns, rows) => columns * rows);
  if (mode === "outpaint") return sizes.reduce((one, other) => (area(other) > area(one) ? other : one), draft.size);
  return sizes.includes(size) ? size : draft.size;
}

/** Return the durations that the model was trained for at a size. */
export function durationsFor(size, model) {
  return modelOf(model).sizes.find((one) => one.size === size)?.seconds ?? [];
}

/** Return the request body of the draft. */
export function requestBody() {
  const mode = modeOf(draft.mode);
  const { defaults } = modelOf(draft.model);
  const found = {
    ...draft.more,
    mode: draft.mode,
    prompt: promptText(),
    model: draft.model,
    size: draft.size,
    seed: Number(draft.seed) || 0,
  };
  if (draft.negative_prompt.trim()) found.negative_prompt = draft.negative_prompt.trim();
  if (draft.watermark) found.watermark = draft.watermark;
  if (draft.camera && modelOf(draft.model).camera.length && !mode.still) found.camera = draft.camera;
  if (mode.timed && !mode.still && !mode.any_length) found.seconds = Number(draft.seconds);
  if (mode.timed && mode.any_length && Number(draft.length) > 0) found.seconds = Number(draft.length);
  for (const name of PLAIN_FIELDS) if (draft[name] !== null && draft[name] !== defaults[name]) found[name] = draft[name];
  const [low, high] = defaults.guidance_interval;
  if (Number(draft.low) !== low || Number(draft.high) !== high)
    found.guidance_interval = [Number(draft.low), Number(draft.high)];
  if (isUpsampled()) found.upsampled_prompt = draft.upsampled_prompt.trim();
  if (draft.upsample !== "none" && !usesMoments()) found.upsample = draft.upsample;
  for (const name of mode.reads) {
    const value = read(name);
    if (value !== null && value !== undefined && value !== "") found[name] = value;
  }
  return found;
}

/** Return the texts that the model reads: the upsampled prompt or the typed one, or those of the moments. */
export function promptsRead() {
  const texts = usesMoments()
    ? draft.moments.map((one) => one.prompt)
    : [isUpsampled() ? draft.upsampled_prompt : draft.prompt];
  return texts.map((text) => text.trim()).filter(Boolean);
}

/** Return the prompt; a prompt schedule has none outside its moments. */
function promptText() {
  return usesMoments() ? "" : draft.prompt.trim();
}

/** Return whether the prompts come from the cards of the timeline. */
export function usesMoments() {
  const mode = modeOf(draft.mode);
  return mode.needs.includes("moments") || (mode.reads.includes("moments") && draft.moments.length > 0);
}

/** Return whether the upsampled prompt is used: it was typed, or it belongs to the present prompt. */
export function isUpsampled() {
  if (!draft.upsampled_prompt.trim() || usesMoments()) return false;
  return draft.upsampledFrom === null || draft.upsampledFrom === draft.prompt.trim();
}

function read(name) {
  if (name === "box" && draft.mode === "inpaint") return null; // the mask has the region
  if (name === "keyframes") return draft.keyframes.filter((one) => one.image).map((one) => [one.at, one.image]);
  if (name === "moments") {
    const files = (one) =>
      Object.fromEntries(["image", "clip"].filter((key) => one[key]).map((key) => [key, one[key]]));
    const moments = draft.moments
      .filter((one) => one.prompt.trim())
      .map((one) => ({ at: one.at, prompt: one.prompt.trim(), ...files(one) }));
    return moments.length ? moments : null;
  }
  return draft[name];
}

/** Return the name of the first missing input of the mode, or null. */
export function missingInput() {
  const mode = modeOf(draft.mode);
  const fields = requestBody();
  const need = mode.needs.find((name) => !fields[name] || fields[name].length === 0);
  if (need) return need;
  if (mode.name === "inpaint" && !draft.mask) return "mask";
  if (mode.name === "keyframes" && !fields.keyframes?.length) return "keyframes";
  return fields.prompt || fields.moments ? null : "prompt";
}

/** Return the draft with the values of a request. */
export function draftFromRequest(request) {
  const found = defaultDraft(request.model);
  const { defaults } = modelOf(request.model);
  const {
    mode = NO_CONTROL.mode,
    size,
    seconds,
    guidance_interval,
    keyframes,
    moments,
    upsample,
    upsampled_prompt,
    hashes,
    model_hash,
    made_with,
    ...plain
  } = request;
  for (const [name, value] of Object.entries(plain)) {
    if (value === null || value === undefined) continue;
    if (name in found && name !== "model") found[name] = value;
    else if (name !== "model" && value !== defaults[name]) found.more[name] = value;
  }
  found.mode = studio.options.modes.some((one) => one.name === mode) ? mode : NO_CONTROL.mode;
  if (size) found.size = Array.isArray(size) ? size.join("x") : size;
  if (seconds) Object.assign(found, modeOf(mode).any_length ? { length: seconds } : { seconds });
  if (guidance_interval) [found.low, found.high] = guidance_interval;
  if (keyframes) found.keyframes = keyframes.map(([at, image]) => ({ at, image }));
  if (moments)
    found.moments = moments.map((one) => ({
      at: one.at,
      prompt: one.prompt,
      image: one.image ?? null,
      clip: one.clip ?? null,
    }));
  if (upsample && studio.options.upsamplers.includes(upsample)) found.upsample = upsample;
  if (upsampled_prompt)
    Object.assign(found, {
      upsampled_prompt,
      upsampledFrom: found.upsample === "none" ? null : (request.prompt ?? "").trim(),
    });
  return { ...found, lock: draft.lock }; // the seed is used once, and then a new one
}

/** Return a random seed. */
export function randomSeed() {
  return Math.floor(Math.random() * MAX_SEED);
}
