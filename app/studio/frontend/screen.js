// Screens: clips that loop without a sound while they can be seen, and pictures.

import { make } from "./dom.js";
import { t } from "./words.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

const watch = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? start(target) : target.pause();
  },
  { rootMargin: "80px" },
);

function start(film) {
  if (!film.src) film.src = film.dataset.source;
  if (!calm.matches) film.play().catch(() => {}); // a browser that saves power may not want to
}

/** Make the screen of a finished clip or picture; it plays while it is in view, or, where motion is unwanted, under the pointer. */
export function screen(card, { eager = false } = {}) {
  const label = card.prompt || t("gallery.sent");
  if (card.still)
    return make("img", {
      class: "film",
      src: card.content,
      alt: label,
      loading: eager ? "eager" : "lazy",
      draggable: "false",
    });
  const film = make("video", {
    class: "film",
    poster: card.poster,
    preload: "none",
    muted: true,
    loop: true,
    playsInline: true,
    "aria-label": label,
    data: { source: card.content },
  });
  if (calm.matches) {
    film.addEventListener("pointerenter", () => (start(film), film.play().catch(() => {})));
    film.addEventListener("pointerleave", () => film.pause());
  }
  if (eager) start(film);
  else watch.observe(film);
  return film;
}

/** Forget a screen that left the page. */
export function darken(element) {
  for (const film of element.querySelectorAll("video")) {
    watch.unobserve(film);
    film.pause();
    film.removeAttribute("src");
    film.load();
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
export function develop(image, address) {
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
