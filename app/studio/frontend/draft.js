// What is being asked for: remembered at every change, and turned into the fields of a request.

import { keep, kept } from "./memory.js";
import { modeOf, modelOf, studio, tell } from "./studio.js";

// Fields with a control of Gradio's are named in studio.fields; these have places of their own.
const OWN = {
  mode: "text-to-video",
  image: null,
  clip: null,
  other: null,
  mask: null,
  pictures: [],
  window: null,
  box: null,
  moments: [],
  writtenOf: null,
  more: {},
};
const PLAIN = ["steps", "guidance", "frame_guidance", "rescale", "method"];
const LENGTHS = { storyboard: 4, long: 10 }; // seconds, of modes that must be told
const MOST_SEED = 2 ** 31;

export const draft = {};

/** Return the form as a model leaves it. */
export function blank(name) {
  const { name: model, defaults } = modelOf(name);
  const { size, seconds, steps, guidance, frame_guidance, rescale, method } = defaults;
  const [low, high] = defaults.interval;
  const [upsample, side] = [studio.offer.upsamplers[0], studio.offer.sides[0]];
  const words = { prompt: "", negative: "", upsample, written: "" };
  const shape = { model, size, seconds, length: null, side, strength: 0.6, mark: "" };
  const chance = { seed: 0, lock: false, variations: 1 };
  const pace = { steps, guidance, frame_guidance, low, high, rescale, method };
  return { ...structuredClone(OWN), ...words, ...shape, ...chance, ...pace };
}

/** Take up the draft of the last visit. */
export function recall() {
  Object.assign(draft, blank(), kept("draft", {}));
  if (!studio.offer.modes.some((mode) => mode.name === draft.mode)) draft.mode = OWN.mode;
  within();
}

/** Change the draft; what the model was not trained for becomes the nearest that it was. */
export function change(values) {
  const before = draft.mode;
  Object.assign(draft, values);
  if (draft.mode !== before && !("length" in values)) draft.length = LENGTHS[draft.mode] ?? null;
  if (draft.mode !== before && !("strength" in values) && modeOf(draft.mode).strength)
    draft.strength = modeOf(draft.mode).strength;
  within();
  keep("draft", draft);
  if (draft.mode !== before) tell("mode");
  tell("draft");
}

/** Bring size and duration within what the model was trained for. */
function within() {
  const model = modelOf(draft.model);
  draft.model = model.name;
  const sizes = sizesFor(draft.mode, model.name);
  if (!sizes.some((one) => one.size === draft.size))
    draft.size = (sizes.find((one) => one.size === model.defaults.size) ?? sizes[0])?.size;
  const durations = durationsFor(draft.size, model.name);
  if (!durations.includes(Number(draft.seconds)))
    draft.seconds = durations.includes(model.defaults.seconds) ? model.defaults.seconds : durations[0];
}

/** Return the sizes that the model was trained for, of clips or of pictures. */
export function sizesFor(mode, model) {
  const { still } = modeOf(mode);
  return modelOf(model).sizes.filter((one) => (still ? one.stills : one.clips));
}

/** Return the size to make of a clip of some size: its own, around it the largest, or that of the form. */
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

/** Return the body that asks for the draft. */
export function body() {
  const mode = modeOf(draft.mode);
  const { defaults } = modelOf(draft.model);
  const found = {
    ...draft.more,
    mode: draft.mode,
    prompt: words(),
    model: draft.model,
    size: draft.size,
    seed: Number(draft.seed) || 0,
  };
  if (draft.negative.trim()) found.negative = draft.negative.trim();
  if (draft.mark) found.mark = draft.mark;
  if (mode.timed && !mode.still && !mode.free) found.seconds = Number(draft.seconds);
  if (mode.timed && mode.free && Number(draft.length) > 0) found.seconds = Number(draft.length);
  for (const name of PLAIN) if (draft[name] !== null && draft[name] !== defaults[name]) found[name] = draft[name];
  const [low, high] = defaults.interval;
  if (Number(draft.low) !== low || Number(draft.high) !== high)
    found.interval = [Number(draft.low), Number(draft.high)];
  if (isWritten()) found.written = draft.written.trim();
  if (draft.upsample !== "none" && !isTold()) found.upsample = draft.upsample;
  for (const name of mode.reads) {
    const value = read(name);
    if (value !== null && value !== undefined && value !== "") found[name] = value;
  }
  return found;
}

/** Return what is typed; moments have words of their own. */
function words() {
  return isTold() ? "" : draft.prompt.trim();
}

/** Say whether the cards of a timeline say what is to be seen, and not the prompt. */
export function isTold() {
  const mode = modeOf(draft.mode);
  return mode.needs.includes("moments") || (mode.reads.includes("moments") && draft.moments.length > 0);
}

/** Say whether the model reads what is written out, by hand or of this very prompt. */
export function isWritten() {
  if (!draft.written.trim() || isTold()) return false;
  return draft.writtenOf === null || draft.writtenOf === draft.prompt.trim();
}

function read(name) {
  if (name === "box" && draft.mode === "inpaint") return null; // a mask says the same
  if (name === "pictures") return draft.pictures.filter((one) => one.picture).map((one) => [one.at, one.picture]);
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

/** Return the first thing that the mode still needs, by its name, or null. */
export function missing() {
  const mode = modeOf(draft.mode);
  const asked = body();
  const need = mode.needs.find((name) => !asked[name] || asked[name].length === 0);
  if (need) return need;
  if (mode.name === "inpaint" && !draft.mask) return "mask";
  if (mode.name === "keyframes" && !asked.pictures?.length) return "pictures";
  return asked.prompt || asked.moments ? null : "prompt";
}

/** Return the draft that asks for what a request asked for. */
export function drafted(request) {
  const found = blank(request.model);
  const { defaults } = modelOf(request.model);
  const {
    mode = OWN.mode,
    size,
    seconds,
    interval,
    pictures,
    moments,
    upsample,
    written,
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
  found.mode = studio.offer.modes.some((one) => one.name === mode) ? mode : OWN.mode;
  if (size) found.size = Array.isArray(size) ? size.join("x") : size;
  if (seconds) Object.assign(found, modeOf(mode).free ? { length: seconds } : { seconds });
  if (interval) [found.low, found.high] = interval;
  if (pictures) found.pictures = pictures.map(([at, picture]) => ({ at, picture }));
  if (moments)
    found.moments = moments.map((one) => ({
      at: one.at,
      prompt: one.prompt,
      image: one.image ?? null,
      clip: one.clip ?? null,
    }));
  if (upsample && studio.offer.upsamplers.includes(upsample)) found.upsample = upsample;
  if (written)
    Object.assign(found, { written, writtenOf: found.upsample === "none" ? null : (request.prompt ?? "").trim() });
  return { ...found, lock: true };
}

/** Return a seed that nobody chose. */
export function dice() {
  return Math.floor(Math.random() * MOST_SEED);
}
