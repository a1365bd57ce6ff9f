// Votes: which of two clips looks better, moves better, follows the prompt better.

import { openCompare } from "./compare.js";
import { make, put } from "./dom.js";
import { keep, kept } from "./memory.js";
import { get, post } from "./net.js";
import { say, trying } from "./sheet.js";
import { t } from "./words.js";

const QUALITIES = ["looks", "motion", "prompt"];
const ANSWERS = ["left", "tie", "right"];

/** Make the ballot of two clips; `cast` is called when the vote is in. */
export function ballot([left, right], cast) {
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
          const found = await trying(() => post("/studio/votes", { left: left.id, right: right.id, ...chosen }));
          if (!found) return void (send.disabled = false);
          keep("voted", [...kept("voted", []), paired(left, right)].slice(-500));
          say(t("vote.thanks", { count: found.count }));
          put(form, make("p", { class: "hint" }, t("vote.thanks", { count: found.count })));
          cast();
        },
      },
    },
    t("vote.send"),
  );
  const pick = (quality, answer) => {
    chosen[quality] = answer;
    send.disabled = QUALITIES.some((name) => !chosen[name]);
  };
  const option = (quality, answer) =>
    make(
      "label",
      { class: "answer" },
      make("input", {
        type: "radio",
        name: `vote-${quality}`,
        value: answer,
        on: { change: () => pick(quality, answer) },
      }),
      make("span", {}, t(`vote.${answer}`)),
    );
  const row = (quality) =>
    make(
      "fieldset",
      {},
      make("legend", {}, t(`vote.${quality}`)),
      ANSWERS.map((answer) => option(quality, answer)),
    );
  const form = make("div", { class: "ballot" }, make("h3", {}, t("vote.head")), QUALITIES.map(row), send);
  return form;
}

const paired = (one, two) => [one.id, two.id].sort().join(" ");

/** Open a vote between two variations of one request that have not been voted on; says so where there are none. */
export async function openVote(cards) {
  const done = new Set(kept("voted", []));
  const groups = new Map();
  for (const card of cards) {
    if (card.kind !== "job" || card.status !== "completed") continue;
    const key = JSON.stringify([card.mode, card.prompt, card.negative_prompt, card.size, card.parents]);
    groups.set(key, [...(groups.get(key) ?? []), card]);
  }
  for (const group of groups.values()) {
    for (const [one, two] of pairs(group)) {
      if (done.has(paired(one, two)) || !(await sameButSeed(one, two))) continue;
      const [left, right] = Math.random() < 0.5 ? [one, two] : [two, one];
      return openCompare(left.id, right.id, () => openVote(cards));
    }
  }
  say(t("vote.none"));
}

function* pairs(group) {
  for (let first = 0; first < group.length; first++) {
    for (let second = first + 1; second < group.length; second++) yield [group[first], group[second]];
  }
}

async function sameButSeed(one, two) {
  const found = await trying(() =>
    Promise.all([one, two].map(({ id }) => get(`/studio/clips/${encodeURIComponent(id)}`))),
  );
  if (!found) return false;
  const [left, right] = found.map(({ request }) => JSON.stringify({ ...request, seed: 0 }));
  return left === right && found[0].request?.seed !== found[1].request?.seed;
}
