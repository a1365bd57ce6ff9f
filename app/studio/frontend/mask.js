// Paint a mask over a clip: white where it is regenerated. It is uploaded as an image after a pause.

import { button, debounce, make, setChildren } from "./dom.js";
import { updateDraft, draft } from "./draft.js";
import { get } from "./net.js";
import { sendMask } from "./slots.js";
import { attempt } from "./sheet.js";
import { mediaElement } from "./media.js";
import { t } from "./i18n.js";

const SCALE = 8; // canvas points per pixel, for smooth strokes
const INK = "#ffb454";

/** Make the mask painter for a clip. */
export function maskPainter(id) {
  const place = make("div", { class: "tool painter" });
  attempt(async () => {
    const card = await get(`/studio/clips/${encodeURIComponent(id)}`);
    const [columns, rows] = (card.size ?? "64x64").split("x").map(Number);
    draw(place, card, columns, rows);
  });
  return place;
}

function draw(place, card, columns, rows) {
  const canvas = make("canvas", {
    width: columns * SCALE,
    height: rows * SCALE,
    class: "paint",
    "aria-label": t("mask.canvas"),
    tabindex: 0,
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const state = { tool: "brush", size: 0.16, from: null, before: null };
  context.lineCap = context.lineJoin = "round";
  const caption = make("p", { class: "hint", role: "status" });
  const save = debounce(400, async () => {
    const mask = maskOf(canvas, columns, rows);
    if (!mask.some) return (updateDraft({ mask: null }), (caption.textContent = t("mask.empty")));
    const sent = await sendMask(await mask.blob());
    if (sent)
      (updateDraft({ mask: sent }),
        (caption.textContent = t("mask.share", { percent: Math.max(1, Math.round(100 * mask.share)) })));
  });
  const at = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * canvas.width, ((event.clientY - top) / height) * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    state.from = at(event);
    state.before = context.getImageData(0, 0, canvas.width, canvas.height);
    stroke(state, context, state.from);
  });
  canvas.addEventListener("pointermove", (event) => state.from && stroke(state, context, at(event)));
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, () => state.from && ((state.from = null), save()));
  const tools = ["brush", "box", "rubber"].map((name) =>
    button(name, t(`mask.${name}`), () => turn(name), {
      "aria-pressed": String(name === state.tool),
      data: { tool: name },
    }),
  );
  const turn = (name) => (
    (state.tool = name),
    tools.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.tool === name)))
  );
  const size = make("input", {
    type: "range",
    min: 0.04,
    max: 0.5,
    step: 0.02,
    value: state.size,
    "aria-label": t("mask.size"),
    on: { input: () => (state.size = Number(size.value)) },
  });
  const clear = button("trash", t("mask.clear"), () => (context.clearRect(0, 0, canvas.width, canvas.height), save()));
  const invert = button("invert", t("mask.invert"), () => (inverted(context, canvas), save()));
  const frame = make("div", { class: "cinema stacked" }, mediaElement(card, { eager: true }), canvas);
  frame.style.setProperty("--shape", `${columns} / ${rows}`);
  caption.textContent = t(draft.mask ? "mask.kept" : "mask.empty");
  if (draft.mask) recallMask(context, canvas, draft.mask);
  setChildren(place, frame, make("div", { class: "tools" }, tools, size, invert, clear), caption);
}

function stroke(state, context, [x, y]) {
  const { width, height } = context.canvas;
  if (state.tool === "box") {
    context.putImageData(state.before, 0, 0);
    context.fillStyle = INK;
    context.fillRect(
      Math.min(x, state.from[0]),
      Math.min(y, state.from[1]),
      Math.abs(x - state.from[0]),
      Math.abs(y - state.from[1]),
    );
    return;
  }
  context.globalCompositeOperation = state.tool === "rubber" ? "destination-out" : "source-over";
  context.strokeStyle = INK;
  context.lineWidth = state.size * Math.min(width, height);
  context.beginPath();
  context.moveTo(...state.from);
  context.lineTo(x + 0.01, y);
  context.stroke();
  context.globalCompositeOperation = "source-over";
  state.from = [x, y];
}

function inverted(context, { width, height }) {
  const seen = context.getImageData(0, 0, width, height);
  context.fillStyle = INK;
  context.fillRect(0, 0, width, height);
  const full = context.getImageData(0, 0, width, height);
  for (let place = 3; place < seen.data.length; place += 4) full.data[place] = 255 - seen.data[place];
  context.putImageData(full, 0, 0);
}

/** Return the mask at the clip's size: its white share, and the image. */
function maskOf(canvas, columns, rows) {
  const small = make("canvas", { width: columns, height: rows });
  const context = small.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0, columns, rows);
  const seen = context.getImageData(0, 0, columns, rows);
  let white = 0;
  for (let place = 0; place < seen.data.length; place += 4) {
    const on = seen.data[place + 3] > 127;
    white += on;
    seen.data.fill(on ? 255 : 0, place, place + 3);
    seen.data[place + 3] = 255;
  }
  context.putImageData(seen, 0, 0);
  return {
    some: white > 0,
    share: white / (columns * rows),
    blob: () => new Promise((done) => small.toBlob(done, "image/png")),
  };
}

/** Draw the mask that was painted before a reload. */
function recallMask(context, canvas, id) {
  const image = new Image();
  image.onload = () => {
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const seen = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let place = 0; place < seen.data.length; place += 4) {
      seen.data[place + 3] = seen.data[place];
      seen.data.set([255, 180, 84], place);
    }
    context.putImageData(seen, 0, 0);
  };
  image.src = `/v1/files/${encodeURIComponent(id)}/content`;
}
