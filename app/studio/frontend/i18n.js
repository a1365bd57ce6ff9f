// The texts of the page, in the chosen language or the browser's.

import { store, load } from "./storage.js";

let translations = {};
let language = "en";

/** Store the translations, and select the chosen language or the browser's. */
export function loadTranslations(all) {
  translations = all;
  const wanted = load("language", "") || navigator.languages?.find((one) => one.slice(0, 2) in all) || "en";
  applyLanguage(wanted.slice(0, 2) in all ? wanted.slice(0, 2) : "en");
}

/** Apply a language to the page. */
function applyLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : chosen;
}

/** Choose a language and store the choice. */
export function setLanguage(chosen) {
  store("language", chosen);
  applyLanguage(chosen);
}

export function currentLanguage() {
  return language;
}

/** Return the text of a key, with its placeholders filled. */
export function t(name, values = {}) {
  const text = translations[language][name] ?? translations.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (placeholder, key) => (key in values ? String(values[key]) : placeholder));
}

/** Return whether a key has a text. */
export function hasText(name) {
  return name in translations.en;
}

/** Format a waiting time. */
export function formatDuration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { seconds: whole });
  if (whole < 3600) return t("time.minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
  return t("time.hours", { hours: Math.floor(whole / 3600), minutes: Math.round((whole % 3600) / 60) });
}

/** Format the duration of a clip, to a tenth of a second. */
export function formatSeconds(seconds) {
  return t("time.clip", { seconds: Number(Number(seconds).toFixed(1)) });
}

/** Format a time in seconds since 1970. */
export function formatDate(epoch) {
  return new Date(epoch * 1000).toLocaleString(document.documentElement.lang, {
    dateStyle: "medium",
    timeStyle: "short",
  });
}
