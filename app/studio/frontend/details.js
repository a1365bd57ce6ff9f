// The details of one clip. Opening them does not change the form; only their buttons do.

import { makeAgain, openActions } from "./actions.js";
import { button, icon, debounce, make, setChildren } from "./dom.js";
import { randomSeed } from "./draft.js";
import { setFields } from "./form.js";
import { get, patch, post, remove } from "./net.js";
import { releaseMedia, mediaElement, thumbnail } from "./media.js";
import { openSheet, showError, attempt } from "./sheet.js";
import { shownCards, pick } from "./gallery.js";
import { emit, listen } from "./studio.js";
import { fileName, summary, RUNNING, statusText, unlearnedMark } from "./tile.js";
import { formatSeconds, formatDuration, hasText, formatDate, t } from "./i18n.js";

let open = null;

/** Open the details of a clip; arrow keys go to its neighbours in the gallery. */
export async function openDetails(id) {
  if (open) return showDetails(id);
  const sheet = openSheet(t("details.title"), {
    kind: "wide details",
    closed: () => ((open = null), releaseMedia(sheet.body)),
  });
  const [stage, facts] = [make("div", { class: "stage" }), make("div", { class: "facts-column" })];
  setChildren(sheet.body, stage, facts);
  open = { ...sheet, stage, facts, id, card: null };
  setChildren(
    sheet.tools,
    button("left", t("details.newer"), () => step(-1)),
    button("right", t("details.older"), () => step(1)),
  );
  sheet.sheet.addEventListener("keydown", (event) => {
    if (event.target.closest("textarea, input, video") || event.altKey || event.ctrlKey || event.metaKey) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way) step(way);
  });
  await showDetails(id);
}

listen("seen", (found) => {
  const card = open && found.cards.find(({ id }) => id === open.id);
  if (!card || !open.card) return;
  if (card.status !== open.card.status) showDetails(card.id);
  else if (open.phase) open.phase.textContent = statusText(card);
});

function step(way) {
  const cards = shownCards();
  const next = cards[cards.findIndex(({ id }) => id === open.id) + way];
  if (next) showDetails(next.id);
}

/** Show a clip: first its card of the gallery, then the details once its file was probed. */
async function showDetails(id) {
  open.id = id;
  const known = shownCards().find((card) => card.id === id);
  if (known) show(known, false);
  let card = null;
  try {
    card = await get(`/studio/clips/${encodeURIComponent(id)}`);
  } catch (error) {
    if (open?.id === id) (open.close(), showError(error));
    return;
  }
  if (open?.id === id) show(card, true); // still open at this clip
}

function show(card, whole) {
  const before = open.card;
  open.card = card;
  open.name.textContent = card.mode && hasText(`modes.${card.mode}`) ? t(`modes.${card.mode}`) : t("gallery.upload");
  if (before?.id !== card.id || before.status !== card.status || before.content !== card.content) {
    releaseMedia(open.stage);
    setChildren(open.stage, view(card));
  }
  const rest = whole ? [actionBar(card), noteField(card), table(card), credentials(card), parents(card)] : [table(card)];
  setChildren(open.facts, words(card), rest);
}

function view(card) {
  if (card.status !== "completed") {
    open.phase = make("p", { class: "phase" }, statusText(card));
    return make("div", { class: "pending" }, open.phase, card.error ? make("p", { class: "why" }, card.error) : null);
  }
  open.phase = null;
  const video = mediaElement(card, { eager: true });
  if (!card.still) video.controls = true;
  const frame = make("div", { class: "cinema" }, video);
  const sharp = (event) => event.currentTarget.setAttribute("aria-pressed", String(frame.classList.toggle("pixels")));
  const pixels = make(
    "button",
    { type: "button", class: "chip", "aria-pressed": "false", on: { click: sharp } },
    t("details.pixels"),
  );
  return [frame, make("div", { class: "under" }, pixels, make("span", { class: "facts" }, summary(card)))];
}

function words(card) {
  const part = (name, text) =>
    text ? make("div", { class: "quote" }, make("h3", {}, t(`details.${name}`)), make("p", {}, text)) : null;
  const moments = card.request?.moments?.map((one) => `${formatSeconds(one.at)}: ${one.prompt}`).join("\n");
  return make(
    "div",
    { class: "words" },
    part("prompt", moments || card.prompt),
    card.unlearned?.length ? unlearnedMark(card) : null,
    part("upsampled_prompt", card.upsampled_prompt),
    part("negative_prompt", card.negative_prompt),
  );
}

function actionBar(card) {
  const done = card.status === "completed";
  const line = make("div", { class: "doing" });
  const path = `/studio/clips/${encodeURIComponent(card.id)}`;
  const closing = (act) => () => (open.close(), act());
  if (card.request)
    line.append(
      button(
        "again",
        t("actions.make_again"),
        closing(() => makeAgain(card)),
        { words: t("actions.make_again"), kind: "accent" },
      ),
    );
  if (card.request)
    line.append(
      button(
        "dice",
        t("actions.another"),
        closing(() => anotherSeed(card)),
        { words: t("actions.another") },
      ),
    );
  if (done) {
    const menu = button("edit", t("actions.menu"), () => openActions(menu, card), {
      words: t("actions.menu"),
      "aria-haspopup": "menu",
    });
    menu.addEventListener("click", () =>
      document.querySelector(".menu")?.addEventListener("click", () => open?.close()),
    );
    line.append(menu);
    line.append(
      button(
        "tick",
        t("gallery.pick"),
        closing(() => pick(card)),
        { words: t("gallery.pick") },
      ),
    );
    line.append(
      make(
        "a",
        {
          class: "knob",
          href: card.content,
          download: card.kind === "upload" ? "" : fileName(card),
          "aria-label": t("details.download"),
        },
        icon("download"),
        make("span", {}, t("details.download")),
      ),
    );
    const star = button(
      "star",
      t("gallery.favourite"),
      async () => {
        const found = await attempt(() => patch(path, { favourite: star.getAttribute("aria-pressed") !== "true" }));
        if (found) (star.setAttribute("aria-pressed", String(found.favourite)), emit("clips"));
      },
      { kind: "star", "aria-pressed": String(Boolean(card.favourite)) },
    );
    line.append(star);
  }
  if (RUNNING.includes(card.status))
    line.append(
      button("stop", t("gallery.cancel"), () => attempt(() => post(`${path}/cancel`)).then(() => emit("clips")), {
        words: t("gallery.cancel"),
      }),
    );
  else line.append(removal(path));
  return line;
}

/** Make a button that removes a clip when it is pressed twice. */
function removal(path) {
  const removeButton = button("trash", t("gallery.delete"), async () => {
    if (removeButton.dataset.sure) {
      const gone = await attempt(() => remove(path));
      if (gone) (open?.close(), emit("clips"));
      return;
    }
    removeButton.dataset.sure = "yes";
    removeButton.append(make("span", {}, t("details.sure")));
    setTimeout(() => (delete removeButton.dataset.sure, removeButton.querySelector("span")?.remove()), 3000);
  });
  return removeButton;
}

/** Fill the form with the request and a new random seed. */
async function anotherSeed(card) {
  await makeAgain(card);
  setFields({ lock: false, seed: randomSeed() });
}

function noteField(card) {
  const field = make("textarea", {
    rows: 2,
    maxlength: 2000,
    placeholder: t("details.note_hint"),
    "aria-label": t("details.note"),
    value: card.note || "",
  });
  const saved = make("span", { class: "saved", role: "status" });
  const save = debounce(600, async () => {
    const note = field.value;
    const found = await attempt(() => patch(`/studio/clips/${encodeURIComponent(card.id)}`, { note }));
    if (found) ((saved.textContent = t("details.saved")), emit("clips"));
  });
  field.addEventListener("input", () => ((saved.textContent = ""), save()));
  return make("label", { class: "note" }, make("h3", {}, t("details.note"), saved), field);
}

function table(card) {
  const request = card.request ?? {};
  const rows = {
    status: card.status === "completed" ? null : statusText(card),
    mode: request.mode && hasText(`modes.${request.mode}`) ? t(`modes.${request.mode}`) : request.mode,
    size: card.size?.replace("x", "×"),
    duration: card.still ? null : (card.duration ?? card.seconds) && formatSeconds(card.duration ?? card.seconds),
    frames: card.frames && (card.fps ? t("details.frames_at", { frames: card.frames, fps: card.fps }) : card.frames),
    seed: request.seed,
    steps: request.steps,
    guidance: request.guidance,
    sampler: request.sampler,
    strength: request.strength,
    side: request.side && t(`side.${request.side}`),
    window: request.window && t("details.from_to", { from: request.window[0], to: request.window[1] }),
    model: card.model,
    weights: card.model_hash?.slice(0, 12),
    made_with: card.made_with,
    inputs: card.status === "completed" ? card.message : null,
    took: card.run_seconds && formatDuration(card.run_seconds),
    bytes: card.bytes && t("details.kilobytes", { kilobytes: Math.ceil(card.bytes / 1024) }),
    created: card.created_at && formatDate(card.created_at),
    id: card.id,
  };
  const shown = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make(
    "dl",
    { class: "table" },
    shown.map(([name, value]) => [make("dt", {}, t(`details.${name}`)), make("dd", {}, String(value))]),
  );
}

function credentials(card) {
  const missing = [card.missing ?? []].flat().filter(Boolean);
  const lines = missing.map((line) => make("p", { class: "why" }, line));
  if (!card.credentials) return lines;
  return [
    make(
      "div",
      { class: `credentials ${card.credentials}` },
      icon("shield"),
      make("div", {}, make("strong", {}, t(`credentials.${card.credentials}`)), make("p", {}, card.verdict || "")),
    ),
    ...lines,
  ];
}

function parents(card) {
  if (!card.parents?.length) return null;
  const one = (id) =>
    make(
      "button",
      { type: "button", class: "parent", "aria-label": t("details.parent"), on: { click: () => showDetails(id) } },
      thumbnail(id),
    );
  return make("div", { class: "parents" }, make("h3", {}, t("details.made_from")), card.parents.map(one));
}
