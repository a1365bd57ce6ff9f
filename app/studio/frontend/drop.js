// Upload files that are dropped on the page or pasted, and show their details.

import { importStoryboard } from "./timeline.js";
import { make } from "./dom.js";
import { openDetails } from "./details.js";
import { send } from "./net.js";
import { attempt } from "./sheet.js";
import { emit, listen } from "./studio.js";
import { t } from "./i18n.js";

/** Accept files anywhere on the page. */
export function openDrop() {
  const overlay = make("div", { id: "veil", hidden: true, "aria-hidden": "true" }, make("p", {}));
  document.body.append(overlay);
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const hide = () => (overlay.hidden = true);
  listen("dropped", hide);
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    overlay.firstChild.textContent = t("drop.here");
    overlay.hidden = Boolean(event.target.closest?.(".slot"));
  });
  addEventListener("dragleave", (event) => event.relatedTarget || hide());
  addEventListener("drop", (event) => {
    hide();
    if (!files(event)) return;
    event.preventDefault();
    uploadFiles([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (pasted.length) (event.preventDefault(), uploadFiles(pasted));
  });
}

/** Upload files, and open the details of the last one. */
export async function uploadFiles(files) {
  let last = null;
  for (const file of files) {
    if (/\.(ya?ml|json)$/i.test(file.name)) await importStoryboard(file);
    else last = (await attempt(() => send(file))) ?? last;
  }
  emit("clips");
  if (last) openDetails(last.card.id);
}
