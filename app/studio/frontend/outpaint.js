// Place a clip in a larger frame for outpaint, with a box that is moved and resized.

import { make, setChildren } from "./dom.js";
import { updateDraft, draft } from "./draft.js";
import { thumbnail } from "./media.js";
import { t } from "./i18n.js";

const SNAP = 16; // pixels of a patch of the model
const SIDES = ["left", "top", "right", "bottom"];

/** Make the box picker for a clip. */
export function boxPicker(id) {
  const [columns, rows] = draft.size.split("x").map(Number);
  const snap = Math.min(SNAP, columns / 4);
  const clip = make(
    "div",
    { class: "placed", tabindex: 0, role: "group", "aria-label": t("place.clip") },
    thumbnail(id),
    make("span", { class: "grip" }),
  );
  const frame = make("div", { class: "outer" }, clip);
  frame.style.setProperty("--shape", `${columns} / ${rows}`);
  const caption = make("p", { class: "hint", role: "status" });
  const bounds = ([left, top, right, bottom]) => {
    const [wide, high] = [
      Math.max(snap, Math.min(right - left, columns)),
      Math.max(snap, Math.min(bottom - top, rows)),
    ];
    const [x, y] = [Math.max(0, Math.min(left, columns - wide)), Math.max(0, Math.min(top, rows - high))];
    return [x, y, x + wide, y + high].map((side) => Math.round(side / snap) * snap);
  };
  let box = bounds(draft.box ?? [columns / 4, rows / 4, (3 * columns) / 4, (3 * rows) / 4]);
  const apply = (next) => {
    box = bounds(next);
    const share = [box[0] / columns, box[1] / rows, (box[2] - box[0]) / columns, (box[3] - box[1]) / rows].map(
      (part) => `${100 * part}%`,
    );
    ["left", "top", "width", "height"].forEach((name, side) => (clip.style[name] = share[side]));
    caption.textContent = t("place.box", Object.fromEntries(SIDES.map((name, side) => [name, box[side]])));
    if (JSON.stringify(draft.box) !== JSON.stringify(box)) updateDraft({ box });
  };
  clip.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    clip.setPointerCapture(event.pointerId);
    const start = { x: event.clientX, y: event.clientY, box: [...box], grip: event.target.classList.contains("grip") };
    const scale = columns / frame.clientWidth;
    const move = ({ clientX, clientY }) => {
      const [across, down] = [(clientX - start.x) * scale, (clientY - start.y) * scale];
      const [left, top, right, bottom] = start.box;
      apply(
        start.grip
          ? [left, top, right + across, bottom + down]
          : [left + across, top + down, right + across, bottom + down],
      );
    };
    clip.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"])
      clip.addEventListener(end, () => clip.removeEventListener("pointermove", move), { once: true });
  });
  clip.addEventListener("keydown", (event) => {
    const [across, down] =
      { ArrowLeft: [-snap, 0], ArrowRight: [snap, 0], ArrowUp: [0, -snap], ArrowDown: [0, snap] }[event.key] ?? [];
    if (across === undefined) return;
    event.preventDefault();
    const [left, top, right, bottom] = box;
    apply(
      event.shiftKey
        ? [left, top, right + across, bottom + down]
        : [left + across, top + down, right + across, bottom + down],
    );
  });
  apply(box);
  return setChildren(make("div", { class: "tool placer" }), frame, caption);
}
