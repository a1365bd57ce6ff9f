// Presets: built-in ones, which add a phrase or set the steps, and stored ones.

import { changeWithUndo } from "./actions.js";
import { button, make, setChildren } from "./dom.js";
import { updateDraft, draft, renameFields } from "./draft.js";
import { store, load } from "./storage.js";
import { openMenu, openSheet, notify } from "./sheet.js";
import { modelOf, studio, listen } from "./studio.js";
import { hasText, t } from "./i18n.js";

const STORED_FIELDS = ["model", "size", "seconds", "length", "variations", "strength", "side", "upsample", "watermark"];
STORED_FIELDS.push("steps", "guidance", "frame_guidance", "low", "high", "guidance_rescale", "sampler");

/** Show the button of the presets in its element. */
export function openPresets(place) {
  const draw = () => {
    const title = make("h1", {}, t("compose.title"));
    const list = button("star", t("presets.menu"), () => menu(list), {
      words: t("presets.menu"),
      kind: "small",
      "aria-haspopup": "menu",
    });
    const clear = button("trash", t("compose.clear"), empty, { kind: "small" });
    setChildren(place, title, list, clear);
  };
  listen("language", draw);
  draw();
}

function menu(at) {
  const { unheard } = modelOf(draft.model); // groups of words that were measured to change nothing
  const offered = studio.options.presets.filter(({ group }) => !unheard.includes(group));
  const groups = Map.groupBy ? Map.groupBy(offered, (one) => one.group) : grouped(offered);
  const lines = [...groups].flatMap(([group, some]) => [
    [null, labelFor(`presets.${group}`, group)],
    ...some.map((one) => [one.phrase ? "add" : "step", labelFor(`presets.${one.name}`, one.name), () => applyBuiltIn(one)]),
  ]);
  const stored = load("presets", []);
  const storedLines = stored.length ? [[null, t("presets.own")], ...stored.map((one) => ["star", one.name, () => applyStored(one)])] : [];
  const eraseLine = stored.length ? [["trash", t("presets.forget"), () => openErase(at)]] : [];
  openMenu(at, [...storedLines, [null, t("presets.keep_head")], ["tick", t("presets.keep"), openSave], ...eraseLine, ...lines]);
}

const labelFor = (name, otherwise) => (hasText(name) ? t(name) : otherwise);

function grouped(presets) {
  const groups = new Map();
  for (const one of presets) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}

/** Apply a built-in preset: add its phrase to the prompt or remove it, or set its fields. */
function applyBuiltIn({ phrase, fields, name }) {
  if (fields) return changeWithUndo(t("presets.used", { name: labelFor(`presets.${name}`, name) }), () => updateDraft(fields));
  const prompt = draft.prompt.trim().replace(/[.,;，。]+$/, "");
  const changed = prompt.includes(phrase)
    ? prompt
        .replace(phrase, "")
        .replace(/[\s,]+$/, "")
        .replace(/\s*,\s*,/, ",")
    : [prompt, phrase].filter(Boolean).join(", ");
  changeWithUndo(t("presets.used", { name: labelFor(`presets.${name}`, name) }), () => updateDraft({ prompt: changed }));
}

function applyStored({ name, fields }) {
  changeWithUndo(t("presets.used", { name }), () => updateDraft(renameFields(fields)));
}

function openSave() {
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
    const fields = Object.fromEntries(STORED_FIELDS.map((key) => [key, draft[key]]));
    store("presets", [...load("presets", []).filter((one) => one.name !== name), { name, fields }]);
    sheet.close();
    notify(t("presets.kept", { name }));
  };
  setChildren(
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

function openErase(at) {
  const lines = load("presets", []).map((one) => [
    "trash",
    one.name,
    () => {
      store(
        "presets",
        load("presets", []).filter(({ name }) => name !== one.name),
      );
      notify(t("presets.forgotten", { name: one.name }));
    },
  ]);
  openMenu(at, [[null, t("presets.forget")], ...lines]);
}

function empty() {
  changeWithUndo(t("compose.cleared"), () =>
    updateDraft({
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
