// What the page says, in the language of the browser or in the one that was chosen.

import { keep, kept } from "./memory.js";

let words = {};
let language = "en";

/** Take the words of every language, and the language that was chosen, or else the browser's. */
export function learn(all) {
  words = all;
  const wanted = kept("language", "") || navigator.languages?.find((one) => one.slice(0, 2) in all) || "en";
  speak(wanted.slice(0, 2) in all ? wanted.slice(0, 2) : "en");
}

/** Speak another language from now on. */
function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : chosen;
}

/** Choose a language, and keep to it. */
export function choose(chosen) {
  keep("language", chosen);
  speak(chosen);
}

export function spoken() {
  return language;
}

/** Say something by its name, the gaps in it filled. */
export function t(name, gaps = {}) {
  const told = words[language][name] ?? words.en[name] ?? name;
  return told.replace(/\{(\w+)\}/g, (gap, key) => (key in gaps ? String(gaps[key]) : gap));
}

/** Say whether there are words of that name. */
export function has(name) {
  return name in words.en;
}

/** Say how long something takes. */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { seconds: whole });
  if (whole < 3600) return t("time.minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
  return t("time.hours", { hours: Math.floor(whole / 3600), minutes: Math.round((whole % 3600) / 60) });
}

/** Say how long a clip is, to a tenth of a second. */
export function clipSeconds(seconds) {
  return t("time.clip", { seconds: Number(Number(seconds).toFixed(1)) });
}

/** Say when something was made. */
export function moment(epoch) {
  return new Date(epoch * 1000).toLocaleString(document.documentElement.lang, {
    dateStyle: "medium",
    timeStyle: "short",
  });
}
