// Screens: clips that loop without a sound while they can be seen, and pictures.

import { make } from "./dom.js";
import { t } from "./i18n.js";

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? start(target) : target.pause();
  },
  { rootMargin: "80px" },
);

function start(video) {
  if (!video.src) video.src = video.dataset.source;
  if (!reducedMotion.matches) video.play().catch(() => {}); // a browser that saves power may not want to
}

/** Make the screen of a finished clip or picture; it plays while it is in view, or, where motion is unwanted, under the pointer. */
export function mediaElement(card, { eager = false } = {}) {
  const label = card.prompt || t("gallery.sent");
  if (card.still)
    return make("img", {
      class: "video",
      src: card.content,
      alt: label,
      loading: eager ? "eager" : "lazy",
      draggable: "false",
    });
  const video = make("video", {
    class: "video",
    poster: card.poster,
    preload: "none",
    muted: true,
    loop: true,
    playsInline: true,
    "aria-label": label,
    data: { source: card.content },
  });
  if (reducedMotion.matches) {
    video.addEventListener("pointerenter", () => (start(video), video.play().catch(() => {})));
    video.addEventListener("pointerleave", () => video.pause());
  }
  if (eager) start(video);
  else observer.observe(video);
  return video;
}

/** Forget a screen that left the page. */
export function releaseMedia(element) {
  for (const video of element.querySelectorAll("video")) {
    observer.unobserve(video);
    video.pause();
    video.removeAttribute("src");
    video.load();
  }
}

/** Show a small picture of a clip that is named by its id. */
export function thumbnail(id, label = "") {
  return make("img", {
    class: "thumb",
    src: `/studio/clips/${encodeURIComponent(id)}/poster`,
    alt: label,
    loading: "lazy",
  });
}

/** Show another picture without a blink: only once it is there. */
export function swapImage(image, address) {
  if (image.dataset.address === address) return;
  image.dataset.address = address;
  const next = new Image();
  next.onload = () => {
    if (image.dataset.address !== address) return;
    image.src = address;
    image.hidden = false;
  };
  next.src = address;
}
