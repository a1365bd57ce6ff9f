// What the page says, in the language of the browser or in the one that was chosen.

import { store, load } from "./storage.js";

let translations = {};
let language = "en";

/** Take the words of every language, and the language that was chosen, or else the browser's. */
export function loadTranslations(all) {
  translations = all;
  const wanted = load("language", "") || navigator.languages?.find((one) => one.slice(0, 2) in all) || "en";
  applyLanguage(wanted.slice(0, 2) in all ? wanted.slice(0, 2) : "en");
}

/** Speak another language from now on. */
function applyLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : chosen;
}

/** Choose a language, and keep to it. */
export function setLanguage(chosen) {
  store("language", chosen);
  applyLanguage(chosen);
}

export function currentLanguage() {
  return language;
}

/** Say something by its name, the gaps in it filled. */
export function t(name, values = {}) {
  const text = translations[language][name] ?? translations.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (placeholder, key) => (key in values ? String(values[key]) : placeholder));
}

/** Say whether there are words of that name. */
export function hasText(name) {
  return name in translations.en;
}

/** Say how long something takes. */
export function formatDuration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { seconds: whole });
  if (whole < 3600) return t("time.minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
  return t("time.hours", { hours: Math.floor(whole / 3600), minutes: Math.round((whole % 3600) / 60) });
}

/** Say how long a clip is, to a tenth of a second. */
export function formatSeconds(seconds) {
  return t("time.clip", { seconds: Number(Number(seconds).toFixed(1)) });
}

/** Say when something was made. */
export function formatDate(epoch) {
  return new Date(epoch * 1000).toLocaleString(document.documentElement.lang, {
    dateStyle: "medium",
    timeStyle: "short",
  });
}
