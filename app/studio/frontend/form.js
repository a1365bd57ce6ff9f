// The way between the draft and Gradio's form: what is typed comes in, and what changes elsewhere goes out.

import { change, dice, draft, durationsFor, isTold, sizesFor } from "./draft.js";
import { later } from "./dom.js";
import { modeOf, studio, when } from "./studio.js";
import { clipSeconds, has, t } from "./words.js";

const seen = {}; // what the form said last, so that what it has not heard yet does not undo what was changed
let fill = () => {};
let actions = {};

/** Take the way into the form, and what its buttons do. */
export function join(way, presses, initial) {
  fill = later(0, way);
  actions = presses;
  Object.assign(seen, initial);
  when("language mode", () => show());
  when("draft", mark);
  window.studio = { heard, pressed, filling };
}

/** Show the draft in the form. */
export function show() {
  mark();
  fill();
}

/** Change the draft, and show it in the form. */
export function set(values) {
  change(values);
  show();
}

function heard(values) {
  const found = {};
  studio.fields.forEach((name, number) => {
    const value = values[number];
    if (same(value, seen[name])) return;
    seen[name] = value;
    if (!same(value, draft[name])) found[name] = value ?? (typeof draft[name] === "string" ? "" : null);
  });
  if (!Object.keys(found).length) return;
  if ("upsampled_prompt" in found && !("prompt" in found)) found.upsampledFrom = null; // by hand
  const size = draft.size;
  change(found);
  if ("model" in found || "size" in found || size !== draft.size) show();
}

const same = (one, other) => String(one ?? "") === String(other ?? "");

function pressed(name, values) {
  heard(values);
  actions[name]?.();
}

/** Say what each of Gradio's parts is to show. */
function filling() {
  const update = (values) => ({ __type__: "update", ...values });
  return [
    ...studio.fields.map((name) => update({ ...told(name), ...changed(name) })),
    ...studio.buttons.map((name) => update({ value: t(`form.${name}`) })),
    ...studio.folds.map((name) => update({ label: t(`form.${name}`) })),
  ];
}

/** Return the value of a field that says something else; others are left alone, since somebody may be typing there. */
function changed(name) {
  return same(draft[name], seen[name]) ? {} : { value: draft[name] ?? null };
}

function told(name) {
  const said = { label: t(`form.${name}`) };
  if (has(`form.${name}_hint`)) said.placeholder = t(`form.${name}_hint`);
  if (has(`form.${name}_info`)) said.info = t(`form.${name}_info`);
  if (name in CHOICES) said.choices = CHOICES[name]();
  return said;
}

const named = (values, group) =>
  values.map((value) => [has(`${group}.${value || "none"}`) ? t(`${group}.${value || "none"}`) : String(value), value]);

const CHOICES = {
  size: () => sizesFor(draft.mode, draft.model).map(({ size }) => [size.replace("x", " × "), size]),
  seconds: () => durationsFor(draft.size, draft.model).map((seconds) => [clipSeconds(seconds), seconds]),
  upsample: () => named(studio.offer.upsamplers, "upsample"),
  side: () => named(studio.offer.sides, "side"),
  sampler: () => named(studio.offer.samplers, "sampler"),
  watermark: () => named(["", ...studio.offer.corners], "watermark"),
  model: () => studio.offer.models.map(({ name }) => [name, name]),
};

/** Leave word for the style sheets of what the mode reads. */
function mark() {
  const mode = modeOf(draft.mode);
  const root = document.documentElement.dataset;
  root.mode = mode.name;
  root.told = isTold() ? "cards" : "prompt";
  root.reads = [...mode.reads, mode.needs.length || mode.reads.length ? "frames" : ""].join(" ");
  root.lasts = mode.still || !mode.timed ? "given" : mode.any_length ? "free" : "trained";
  root.models = studio.offer.models.length > 1 ? "several" : "one";
  root.upsampled = studio.offer.upsamplers.length > 1 ? "offered" : "by-hand";
}

/** Put a new seed into the form, unless it is locked. */
export function roll(always = false) {
  if (always || !draft.lock) set({ seed: dice() });
}
