// The words of the prompts that the model never learned, under the prompt, before anything is made.

import { debounce, icon, make, setChildren } from "./dom.js";
import { draft, promptsRead } from "./draft.js";
import { currentLanguage, t } from "./i18n.js";
import { post } from "./net.js";
import { listen } from "./studio.js";

/** Show the unlearned words of the draft's prompts in their element, and keep them up to date. */
export function openWords(place) {
  place.setAttribute("role", "status");
  let asked = "";
  let found = null;
  const draw = () => setChildren(place, found?.unlearned.length ? remark(found) : null);
  const look = async () => {
    const texts = promptsRead();
    const body = JSON.stringify({ texts, model: draft.model });
    if (body === asked) return;
    asked = body;
    const answer = texts.length ? await post("/studio/words", { texts, model: draft.model }).catch(() => null) : null;
    if (body === asked) ((found = answer), draw());
  };
  listen("draft", debounce(350, look));
  listen("language", draw);
  look();
}

function remark({ unlearned, examples }) {
  const known = examples[currentLanguage()] ?? examples.en ?? [];
  const words = make("strong", {}, listed(unlearned));
  const [before, after] = t("words.unlearned").split("{words}");
  const knows = known.length ? t("words.knows", { words: listed(known) }) : "";
  return make("p", { class: "unlearned" }, icon("question"), make("span", {}, before, words, after, " ", knows));
}

/** Join words as the language of the page does. */
export function listed(words) {
  return words.join(t("words.comma"));
}
