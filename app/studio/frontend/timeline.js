// The timeline: cards of a storyboard, of a long clip's prompt schedule, or of keyframes.

import { changeWithUndo } from "./actions.js";
import { button, make, setChildren } from "./dom.js";
import { requestBody, updateDraft, draft, draftFromRequest } from "./draft.js";
import { setFields } from "./form.js";
import { post } from "./net.js";
import { notify, attempt } from "./sheet.js";
import { slot } from "./slots.js";
import { modeOf, listen } from "./studio.js";
import { t } from "./i18n.js";

const STEP = 0.5; // seconds of a latent frame
const CARD_SECONDS = 2; // between the last card and an added one
const TAIL_SECONDS = 2;

/** Show the timeline in its element, where the mode has one. */
export function openTimeline(place) {
  let shown = "";
  const draw = () => {
    const kind = kindOf(draft.mode);
    const list = kind ? draft[kind] : [];
    const now = JSON.stringify([
      kind,
      draft.mode,
      document.documentElement.lang,
      list.map((one) => [one.at, one.image, one.clip]),
      end(),
    ]);
    if (now === shown) return updatePrompts(place);
    shown = now;
    place.hidden = !kind;
    if (kind)
      setChildren(
        place,
        head(kind),
        ruler(kind),
        make(
          "div",
          { class: "cards" },
          list.map((one, number) => cardOf(kind, one, number)),
          addButton(kind),
        ),
      );
    else setChildren(place);
  };
  const started = () => {
    if (draft.mode === "storyboard" && !draft.moments.length) {
      updateDraft({
        moments: [0, CARD_SECONDS].map((at, number) => ({ at, prompt: number ? "" : draft.prompt, image: null, clip: null })),
        length: draft.length ?? 2 * CARD_SECONDS,
      });
    }
    draw();
  };
  listen("mode", started);
  listen("draft language", draw);
  started();
}

/** Update the prompts, except the field that has the focus. */
function updatePrompts(place) {
  place.querySelectorAll(".card textarea").forEach((field, number) => {
    if (field !== document.activeElement) field.value = draft.moments[number].prompt;
  });
}

const kindOf = (mode) => ["moments", "keyframes"].find((name) => modeOf(mode).reads.includes(name)) ?? null;

/** Return the end of the clip in seconds. */
function end() {
  const last = Math.max(0, ...[...draft.moments, ...draft.keyframes].map((one) => Number(one.at) || 0));
  return Math.max(Number(draft.length) || 0, Number(draft.length) ? 0 : last + TAIL_SECONDS);
}

function head(kind) {
  const files =
    draft.mode === "storyboard"
      ? [
          button("upload", t("board.import"), read, { words: t("board.import") }),
          button("download", t("board.export"), write, { words: t("board.export") }),
        ]
      : [];
  return make(
    "div",
    { class: "board-head" },
    make("h2", {}, t(`modes.${draft.mode}`)),
    make("p", {}, t(`board.${draft.mode}`)),
    make("div", { class: "board-files" }, files),
  );
}

/** Make the ruler in seconds, with a handle at the start of each card. */
function ruler(kind) {
  const whole = end();
  const line = make("div", { class: "ruler", role: "group", "aria-label": t("board.ruler", { seconds: whole }) });
  for (let at = 0; at <= whole; at += whole > 20 ? 5 : 1) line.append(mark(at, whole));
  draft[kind].forEach((one, number) => {
    const next = draft[kind][number + 1]?.at ?? whole;
    const segment = make("span", { class: "stretch", data: { tone: String(number % 4) } });
    segment.style.left = `${(100 * one.at) / whole}%`;
    segment.style.width = `${Math.max(0, (100 * (next - one.at)) / whole)}%`;
    line.append(segment);
    if (number || kind === "keyframes") line.append(handleOf(kind, number, one, whole, line));
  });
  return line;
}

function mark(at, whole) {
  const tick = make("span", { class: "tick" }, String(at));
  tick.style.left = `${(100 * at) / whole}%`;
  return tick;
}

function handleOf(kind, number, one, whole, line) {
  const handle = make(
    "button",
    { type: "button", class: "handle", "aria-label": t("board.begins", { number: number + 1, at: one.at }) },
    String(number + 1),
  );
  handle.style.left = `${(100 * one.at) / whole}%`;
  handle.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
    if (!way) return;
    event.preventDefault();
    move(kind, number, one.at + way);
    document.querySelectorAll(".ruler .handle")[kind === "keyframes" ? number : number - 1]?.focus();
  });
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    const { left, width } = line.getBoundingClientRect();
    const slide = ({ clientX }) => move(kind, number, ((clientX - left) / width) * whole);
    const done = () => (
      document.removeEventListener("pointermove", slide),
      document.removeEventListener("pointerup", done)
    );
    document.addEventListener("pointermove", slide);
    document.addEventListener("pointerup", done);
  });
  return handle;
}

/** Move the start of a card, between its neighbours. */
function move(kind, number, wanted) {
  const list = draft[kind];
  const least = number ? list[number - 1].at + STEP : 0;
  const most = list[number + 1] ? list[number + 1].at - STEP : end() - (kind === "keyframes" ? 0 : STEP);
  const at = Math.max(least, Math.min(most, Math.round(wanted / STEP) * STEP));
  if (at !== list[number].at) edit(kind, number, { at });
}

function edit(kind, number, values) {
  updateDraft({ [kind]: draft[kind].map((one, place) => (place === number ? { ...one, ...values } : one)) });
}

function cardOf(kind, one, number) {
  const from = make("input", {
    type: "number",
    min: 0,
    step: STEP,
    value: one.at,
    disabled: kind === "moments" && !number,
    "aria-label": t("board.at"),
    on: { change: () => move(kind, number, Number(from.value) || 0) },
  });
  const remove = button("trash", t("board.remove", { number: number + 1 }), () => drop(kind, number), {
    disabled: draft[kind].length < 2 && kind === "moments" && draft.mode === "storyboard",
  });
  const [earlier, after] = [-1, 1].map((way) =>
    button(
      way < 0 ? "left" : "right",
      t(way < 0 ? "board.earlier" : "board.later", { number: number + 1 }),
      () => swap(kind, number, way),
      { disabled: !draft[kind][number + way] },
    ),
  );
  const top = make(
    "div",
    { class: "card-head" },
    make("span", { class: "number" }, String(number + 1)),
    from,
    make("span", { class: "unit" }, t("board.seconds")),
    make("span", { class: "grow" }),
    earlier,
    after,
    remove,
  );
  return make(
    "article",
    { class: "card", data: { tone: String(number % 4) } },
    top,
    cardSlot(kind, one, number),
    kind === "keyframes" ? null : promptField(one, number),
  );
}

function promptField(one, number) {
  const field = make("textarea", {
    rows: 3,
    placeholder: t("board.words"),
    "aria-label": t("board.words_of", { number: number + 1 }),
    value: one.prompt,
  });
  field.addEventListener("input", () => edit("moments", number, { prompt: field.value }));
  return field;
}

function cardSlot(kind, one, number) {
  if (draft.mode === "long") return null;
  if (kind === "keyframes")
    return slot({
      label: t("slots.image"),
      id: one.image,
      still: true,
      take: (card) => edit(kind, number, { image: card.id }),
      clear: () => edit(kind, number, { image: null }),
    });
  const take = (card) =>
    edit(kind, number, card.still ? { image: card.id, clip: null } : { clip: card.id, image: null });
  return slot({
    label: t("board.shown"),
    id: one.image ?? one.clip,
    still: null,
    take,
    clear: () => edit(kind, number, { image: null, clip: null }),
  });
}

function addButton(kind) {
  const add = () => {
    const list = draft[kind];
    const at = list.length ? list.at(-1).at + CARD_SECONDS : 0;
    const length = Number(draft.length) && at >= Number(draft.length) ? { length: at + CARD_SECONDS } : {};
    setFields({
      [kind]: [...list, kind === "keyframes" ? { at, image: null } : { at, prompt: "", image: null, clip: null }],
      ...length,
    });
  };
  return button("add", t("board.add"), add, { words: t("board.add"), kind: "add" });
}

function drop(kind, number) {
  const list = draft[kind].filter((_, place) => place !== number);
  if (kind === "moments" && list.length) list[0] = { ...list[0], at: 0 };
  updateDraft({ [kind]: list });
}

/** Swap two neighbouring cards; their start times stay. */
function swap(kind, number, way) {
  const list = [...draft[kind]];
  const [one, other] = [list[number], list[number + way]];
  [list[number], list[number + way]] = [
    { ...other, at: one.at },
    { ...one, at: other.at },
  ];
  updateDraft({ [kind]: list });
}

/** Choose a storyboard file. */
function read() {
  const file = make("input", {
    type: "file",
    accept: ".yaml,.yml,.json",
    on: { change: () => file.files[0] && importStoryboard(file.files[0]) },
  });
  file.click();
}

/** Fill the form from a storyboard file. */
export async function importStoryboard(file) {
  const found = await attempt(async () => post("/studio/storyboard", { text: await file.text() }));
  if (!found) return;
  changeWithUndo(t("board.imported", { count: found.request.moments.length }), () =>
    updateDraft(draftFromRequest({ ...found.request, mode: "storyboard" })),
  );
  for (const line of [found.missing ?? []].flat().filter(Boolean)) notify(line, { wrong: true });
}

async function write() {
  const found = await attempt(() => post("/studio/storyboard/text", { request: requestBody() }));
  if (!found) return;
  const address = URL.createObjectURL(new Blob([found.text], { type: "application/yaml" }));
  make("a", { href: address, download: "storyboard.yaml" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
