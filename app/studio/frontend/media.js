// Media elements: muted videos that loop while they are visible, and images.

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
  if (!reducedMotion.matches) video.play().catch(() => {}); // a browser in power saving mode may refuse
}

/** Make the element of a completed clip or image; a video plays while visible, or on hover with reduced motion. */
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

/** Release the videos in an element that was removed. */
export function releaseMedia(element) {
  for (const video of element.querySelectorAll("video")) {
    observer.unobserve(video);
    video.pause();
    video.removeAttribute("src");
    video.load();
  }
}

/** Make the thumbnail of a clip by its id. */
export function thumbnail(id, label = "") {
  return make("img", {
    class: "thumb",
    src: `/studio/clips/${encodeURIComponent(id)}/poster`,
    alt: label,
    loading: "lazy",
  });
}

/** Replace an image once the new one is loaded, without flicker. */
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
