// Presets: the studio's own, which add words or set the pace, and those that somebody kept.

import { changing } from "./actions.js";
import { button, make, put } from "./dom.js";
import { change, draft, renamed } from "./draft.js";
import { keep, kept } from "./memory.js";
import { openMenu, openSheet, say } from "./sheet.js";
import { studio, when } from "./studio.js";
import { has, t } from "./words.js";

const KEPT = ["model", "size", "seconds", "length", "variations", "strength", "side", "upsample", "watermark"];
KEPT.push("steps", "guidance", "frame_guidance", "low", "high", "guidance_rescale", "sampler");

/** Show the way to the presets in its place. */
export function openPresets(place) {
  const draw = () => {
    const title = make("h1", {}, t("compose.title"));
    const list = button("star", t("presets.menu"), () => menu(list), {
      words: t("presets.menu"),
      kind: "small",
      "aria-haspopup": "menu",
    });
    const clear = button("trash", t("compose.clear"), empty, { kind: "small" });
    put(place, title, list, clear);
  };
  when("language", draw);
  draw();
}

function menu(at) {
  const groups = Map.groupBy ? Map.groupBy(studio.offer.presets, (one) => one.group) : grouped(studio.offer.presets);
  const lines = [...groups].flatMap(([group, some]) => [
    [null, named(`presets.${group}`, group)],
    ...some.map((one) => [one.words ? "add" : "step", named(`presets.${one.name}`, one.name), () => use(one)]),
  ]);
  const own = kept("presets", []);
  const mine = own.length ? [[null, t("presets.own")], ...own.map((one) => ["star", one.name, () => take(one)])] : [];
  const forget = own.length ? [["trash", t("presets.forget"), () => forgetting(at)]] : [];
  openMenu(at, [...mine, [null, t("presets.keep_head")], ["tick", t("presets.keep"), keeping], ...forget, ...lines]);
}

const named = (name, otherwise) => (has(name) ? t(name) : otherwise);

function grouped(presets) {
  const groups = new Map();
  for (const one of presets) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}

/** Use one of the studio's: words go behind the prompt, or away again, fields into the form. */
function use({ words, fields, name }) {
  if (fields) return changing(t("presets.used", { name: named(`presets.${name}`, name) }), () => change(fields));
  const prompt = draft.prompt.trim().replace(/[.,;，。]+$/, "");
  const taken = prompt.includes(words)
    ? prompt
        .replace(words, "")
        .replace(/[\s,]+$/, "")
        .replace(/\s*,\s*,/, ",")
    : [prompt, words].filter(Boolean).join(", ");
  changing(t("presets.used", { name: named(`presets.${name}`, name) }), () => change({ prompt: taken }));
}

function take({ name, fields }) {
  changing(t("presets.used", { name }), () => change(renamed(fields)));
}

function keeping() {
  const sheet = openSheet(t("presets.keep"), { kind: "narrow" });
  const field = make("input", {
    type: "text",
    maxlength: 60,
    placeholder: t("presets.name"),
    "aria-label": t("presets.name"),
    required: true,
  });
  const save = (event) => {
    event.preventDefault();
    const name = field.value.trim();
    if (!name) return;
    const fields = Object.fromEntries(KEPT.map((key) => [key, draft[key]]));
    keep("presets", [...kept("presets", []).filter((one) => one.name !== name), { name, fields }]);
    sheet.close();
    say(t("presets.kept", { name }));
  };
  put(
    sheet.body,
    make(
      "form",
      { class: "naming", on: { submit: save } },
      field,
      make("button", { type: "submit", class: "knob accent" }, t("presets.keep")),
    ),
    make("p", { class: "hint" }, t("presets.what")),
  );
  field.focus();
}

function forgetting(at) {
  const lines = kept("presets", []).map((one) => [
    "trash",
    one.name,
    () => {
      keep(
        "presets",
        kept("presets", []).filter(({ name }) => name !== one.name),
      );
      say(t("presets.forgotten", { name: one.name }));
    },
  ]);
  openMenu(at, [[null, t("presets.forget")], ...lines]);
}

function empty() {
  changing(t("compose.cleared"), () =>
    change({
      prompt: "",
      negative_prompt: "",
      upsampled_prompt: "",
      upsampledFrom: null,
      image: null,
      clip: null,
      other: null,
      mask: null,
      window: null,
      box: null,
      keyframes: [],
      moments: [],
      more: {},
    }),
  );
}
