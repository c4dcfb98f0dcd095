// The stage: a request under way with its previews, its images, or what went wrong.

import { addressOf, button, byId, element, picture, sharp } from "./dom.js";

const VIEWS = { compare: "Compare", image: "Image", frames: "Both frames" };
const UNITS = { s: 1, min: 60, h: 3600 };

function lasting(seconds) {
  const [unit, size] = Object.entries(UNITS).findLast(([, size]) => seconds >= size) ?? ["s", 1];
  return `${Math.max(1, Math.round(seconds / size))}\u00a0${unit}`;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export function showIdle() {
  byId("stage").replaceChildren(element("div", { className: "idle" },
    element("i", { className: "logo big", ariaHidden: "true" }),
    element("h2", {}, "This subject, in that scene"),
    element("p", {}, "Choose a picture of a subject and say where it should be, or pick an example.")));
}

// The line beside the button, which is always in sight. Steps are not read out, mistakes are.
export function say(words, wrong = false) {
  const line = byId("say");
  line.ariaLive = wrong ? "assertive" : "off";
  line.classList.toggle("wrong", wrong);
  line.textContent = words;
}

export function showError(title, message, again) {
  say(message, true);
  byId("stage").replaceChildren(element("div", { className: "error" },
    element("h2", {}, title), element("p", {}, message),
    again ? element("p", {}, button("Try again", again, "main")) : ""));
}

// A request under way.
export class Running {
  constructor(count, size, prompt) {
    const [width, height] = size.split("x").map(Number);
    this.bar = element("progress", { max: 1, ariaLabel: "Progress" });
    this.bar.removeAttribute("value");
    this.words = element("p");
    this.cards = Array.from({ length: count }, (_, number) =>
      element("figure", { className: "waiting" }, element("figcaption", {}, `image ${number + 1}`)));
    this.prompt = element("p", { className: "prompt", dir: "auto" }, prompt);
    const grid = element("div", { className: "previews" }, ...this.cards);
    grid.style.setProperty("--ratio", `${width} / ${height}`);
    byId("stage").replaceChildren(element("div", { className: "running" },
      this.bar, this.words, grid, this.prompt));
    this.say("Sending");
  }

  say(words) {
    this.words.textContent = words;
    say(words);
  }

  place({ status, position, seconds_left: left }) {
    this.left = left;
    if (status !== "queued") return;
    const before = position ? `, ${plural(position, "image")} of others first` : "";
    this.say(`Waiting for a place${before}${this.#remaining()}`);
  }

  step(done, steps) {
    Object.assign(this.bar, { value: done, max: steps });
    this.say(done === steps ? "Finishing" : `Step ${done} of ${steps}${this.#remaining()}`);
  }

  preview(number, address) {
    const card = this.cards[number];
    const shown = sharp(element("img", { alt: `Preview of image ${number + 1}`, src: address }));
    card.querySelector("img")?.remove();
    card.classList.remove("waiting");
    card.prepend(shown);
  }

  #remaining() {
    return this.left ? `, about ${lasting(this.left)} left` : "";
  }
}

function nameOf(entry, image, ending) {
  const words = entry.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["image"];
  return `dsd-${words.slice(0, 6).join("-").slice(0, 60)}-${image.seed}${ending}.${entry.settings.format}`;
}

const saved = (words, blob, name, className = "") =>
  element("a", { className: `button ${className}`, href: addressOf(blob), download: name }, words);

function compare(entry, image) {
  const slider = element("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Before and after" });
  const before = picture(image.frames, "Before: the reference", "before");
  const box = element("div", { className: "slide" }, picture(image.blob, "After", "after"), before,
    element("span", { className: "handle" }), element("b", { className: "left" }, "before"),
    element("b", { className: "right" }, "after"), slider);
  slider.oninput = () => box.style.setProperty("--at", `${slider.value}%`);
  return box;
}

function view(entry, image, kind) {
  if (kind === "compare") return compare(entry, image);
  const shown = kind === "frames" ? image.frames : image.blob;
  return picture(shown, kind === "frames" ? "Both frames: the reference and the image" : entry.prompt);
}

function radios(name, choices, chosen, onchange, label) {
  const made = Object.entries(choices).map(([value, words]) => {
    const input = element("input", { type: "radio", name, value, checked: value === String(chosen) });
    input.onchange = () => onchange(value);
    return element("label", {}, input, words);
  });
  return element("div", { className: name, role: "radiogroup", ariaLabel: label }, ...made);
}

function facts(entry, image) {
  const { settings } = entry;
  const guided = image.frames && settings.i_guidance > 1;
  const told = {
    Text: entry.prompt,
    ...(entry.notice ? { Note: entry.notice } : {}),
    ...(settings.task ? { Task: settings.task } : {}),
    Seed: image.seed,
    Size: settings.size.replace("x", " × "),
    Steps: settings.steps,
    Guidance: settings.guidance,
    ...(guided ? { "Image guidance": settings.i_guidance, "Text guidance": settings.t_guidance } : {}),
    ...(guided && settings.negative_prompt ? { "Negative text": settings.negative_prompt } : {}),
    Made: `${new Date(entry.at).toLocaleString()}, in ${lasting(entry.seconds)}`,
  };
  return element("dl", {}, ...Object.entries(told).flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", { dir: "auto" }, String(value))]));
}

let chosenView = "compare";

// Images that are done. `actions`: reuse, refer and remove, called with the entry and the image.
export function showEntry(entry, actions, number = 0) {
  const image = entry.images[number];
  const [width, height] = entry.settings.size.split("x").map(Number);
  const kind = image.frames ? chosenView : "image";
  const show = (next) => {
    chosenView = next;
    showEntry(entry, actions, number);
    byId("stage").querySelector(`[value=${next}]`).focus();
  };
  const choose = (next) => {
    showEntry(entry, actions, Number(next));
    byId("stage").querySelector(`[name=strip][value="${next}"]`).focus();
  };
  const frame = element("div", { className: `view ${kind}` }, view(entry, image, kind));
  frame.style.setProperty("--ratio", kind === "frames" ? 2 * width / height : width / height);
  const strip = radios("strip", Object.fromEntries(entry.images.map((_, i) => [i, ""])), number, choose, "Images");
  [...strip.children].forEach((label, i) =>
    label.append(picture(entry.images[i].blob, `Image ${i + 1}, seed ${entry.images[i].seed}`)));
  byId("stage").replaceChildren(element("div", { className: "result" },
    image.frames ? radios("views", VIEWS, kind, show, "View") : "",
    frame,
    entry.images.length > 1 ? strip : "",
    element("p", { className: "buttons" },
      saved("Download", image.blob, nameOf(entry, image, ""), "main"),
      image.frames ? saved("Download both frames", image.frames, nameOf(entry, image, "-frames")) : "",
      button("Reuse settings", () => actions.reuse(entry, image)),
      button("Use as reference", () => actions.refer(entry, image)),
      button("Delete", () => actions.remove(entry), "plain")),
    facts(entry, image)));
}
