// Files that are dragged onto the page or pasted: kept, shown, and, where they carry a request, made again by a click.

import { readBoard } from "./board.js";
import { make } from "./dom.js";
import { openDetails } from "./details.js";
import { send } from "./net.js";
import { trying } from "./sheet.js";
import { tell, when } from "./studio.js";
import { t } from "./words.js";

/** Let files be dropped anywhere on the page. */
export function openDrop() {
  const veil = make("div", { id: "veil", hidden: true, "aria-hidden": "true" }, make("p", {}));
  document.body.append(veil);
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const hide = () => (veil.hidden = true);
  when("dropped", hide);
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    veil.firstChild.textContent = t("drop.here");
    veil.hidden = Boolean(event.target.closest?.(".slot"));
  });
  addEventListener("dragleave", (event) => event.relatedTarget || hide());
  addEventListener("drop", (event) => {
    hide();
    if (!files(event)) return;
    event.preventDefault();
    bring([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (pasted.length) (event.preventDefault(), bring(pasted));
  });
}

/** Keep files, and show what the last of them is. */
export async function bring(files) {
  let last = null;
  for (const file of files) {
    if (/\.(ya?ml|json)$/i.test(file.name)) await readBoard(file);
    else last = (await trying(() => send(file))) ?? last;
  }
  tell("clips");
  if (last) openDetails(last.card.id);
}
