// Votes: which of two clips is better in visual quality, motion and prompt adherence.

import { openCompare } from "./compare.js";
import { make, setChildren } from "./dom.js";
import { store, load } from "./storage.js";
import { get, post } from "./net.js";
import { notify, attempt } from "./sheet.js";
import { t } from "./i18n.js";

const CRITERIA = ["looks", "motion", "prompt"];
const ANSWERS = ["left", "tie", "right"];

/** Make the vote form of two clips; `onVote` is called after the vote. */
export function voteForm([left, right], onVote) {
  const chosen = {};
  const send = make(
    "button",
    {
      type: "button",
      class: "knob accent",
      disabled: true,
      on: {
        click: async () => {
          send.disabled = true;
          const found = await attempt(() => post("/studio/votes", { left: left.id, right: right.id, ...chosen }));
          if (!found) return void (send.disabled = false);
          store("voted", [...load("voted", []), pairKey(left, right)].slice(-500));
          notify(t("vote.thanks", { count: found.count }));
          setChildren(form, make("p", { class: "hint" }, t("vote.thanks", { count: found.count })));
          onVote();
        },
      },
    },
    t("vote.send"),
  );
  const pick = (criterion, answer) => {
    chosen[criterion] = answer;
    send.disabled = CRITERIA.some((name) => !chosen[name]);
  };
  const option = (criterion, answer) =>
    make(
      "label",
      { class: "answer" },
      make("input", {
        type: "radio",
        name: `vote-${criterion}`,
        value: answer,
        on: { change: () => pick(criterion, answer) },
      }),
      make("span", {}, t(`vote.${answer}`)),
    );
  const row = (criterion) =>
    make(
      "fieldset",
      {},
      make("legend", {}, t(`vote.${criterion}`)),
      ANSWERS.map((answer) => option(criterion, answer)),
    );
  const form = make("div", { class: "vote" }, make("h3", {}, t("vote.head")), CRITERIA.map(row), send);
  return form;
}

const pairKey = (one, two) => [one.id, two.id].sort().join(" ");

/** Open a vote on two variations of one request that have no vote yet; shows a message where there are none. */
export async function openVote(cards) {
  const done = new Set(load("voted", []));
  const groups = new Map();
  for (const card of cards) {
    if (card.kind !== "job" || card.status !== "completed") continue;
    const key = JSON.stringify([card.mode, card.prompt, card.negative_prompt, card.size, card.parents]);
    groups.set(key, [...(groups.get(key) ?? []), card]);
  }
  for (const group of groups.values()) {
    for (const [one, two] of pairs(group)) {
      if (done.has(pairKey(one, two)) || !(await differOnlyInSeed(one, two))) continue;
      const [left, right] = Math.random() < 0.5 ? [one, two] : [two, one];
      return openCompare(left.id, right.id, () => openVote(cards));
    }
  }
  notify(t("vote.none"));
}

function* pairs(group) {
  for (let first = 0; first < group.length; first++) {
    for (let second = first + 1; second < group.length; second++) yield [group[first], group[second]];
  }
}

async function differOnlyInSeed(one, two) {
  const found = await attempt(() =>
    Promise.all([one, two].map(({ id }) => get(`/studio/clips/${encodeURIComponent(id)}`))),
  );
  if (!found) return false;
  const [left, right] = found.map(({ request }) => JSON.stringify({ ...request, seed: 0 }));
  return left === right && found[0].request?.seed !== found[1].request?.seed;
}
