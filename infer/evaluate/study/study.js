"use strict";
// A study in the browser of a rater. `data` holds the items under random ids; which method made which
// picture is known to the key alone, which is not here.
const { study, delivery, inline, small } = JSON.parse(document.getElementById("data").textContent);
const RETRY_MS = 5000;
const element = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const named = query.get("rater") || query.get("PROLIFIC_PID") || query.get("workerId");
const preview = query.get("assignmentId") === "ASSIGNMENT_ID_NOT_AVAILABLE"; // of a HIT nobody has accepted
const turk = delivery.turk.find((origin) => (query.get("turkSubmitTo") || "").replace(/\/$/, "") === origin);
const questions = study.questions.questions;
const store = `dsd-study-${study.id}`;
let shownAt = 0;
let clock = 0;
let times = {};
let sending = false;

function random() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((x) => x.toString(16).padStart(2, "0")).join("");
}

function clean(text) {
  return text.replace(/[^A-Za-z0-9._@-]/g, "-").slice(0, 100);
}

// Storage may be turned off; the study then runs without it, until the page is closed.
function load(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

function save(name, text) {
  try { localStorage.setItem(name, text); } catch { state.kept = false; }
}

function chooseList(rater) {
  const asked = Number(query.get("list") ?? NaN);
  if (Number.isInteger(asked) && asked >= 0 && asked < study.lists.length) return asked;
  let hash = 2166136261; // FNV-1a
  for (const letter of rater) hash = Math.imul(hash ^ letter.charCodeAt(0), 16777619) >>> 0;
  return hash % study.lists.length;
}

function begin() {
  const rater = named ? clean(named) : load(store) || random();
  const kept = load(`${store}:${rater}`);
  if (kept) return JSON.parse(kept);
  // The session tells one person's answers from those of another person with the same name.
  const session = clean(query.get("SESSION_ID") || query.get("assignmentId") || random());
  return { rater, session, list: chooseList(rater), answered: [], sent: 0, started: false, kept: true };
}

let state = begin();
const items = study.lists[state.list];

function keep() {
  save(`${store}:${state.rater}`, JSON.stringify(state));
  if (!named) save(store, state.rater);
}

function address(name) {
  return inline ? inline[name] : `pictures/${name}`;
}

function preload(number) {
  const item = items[number];
  for (const name of item ? [item.reference, ...item.pictures] : []) new Image().src = address(name);
}

function notice(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function figure(name, words) {
  const image = make("img", { src: address(name), alt: words, className: small ? "small" : "" });
  const button = make("button", { type: "button", title: "enlarge" }, image);
  button.addEventListener("click", () => {
    const large = element("zoom").querySelector("img");
    large.src = image.src;
    large.className = image.className;
    element("zoom").showModal();
  });
  return make("figure", {}, button, make("figcaption", { textContent: words }));
}

function names() {
  return { pair: ["A", "B"], likert: ["new picture"], same: ["second picture"] }[study.mode];
}

function fieldset(question) {
  const choices = question.answers.map((choice) => {
    const input = make("input", { type: "radio", name: question.id, value: choice.value, required: true });
    input.addEventListener("change", () => { times[question.id] = performance.now() - clock; });
    const meaning = make("span", { textContent: choice.meaning });
    return make("label", {}, input, make("b", { textContent: choice.label }), meaning);
  });
  return make("fieldset", {}, make("legend", { textContent: question.text }), ...choices);
}

function show() {
  const number = state.answered.length;
  const done = number >= items.length;
  element("intro").hidden = state.started;
  element("item").hidden = !state.started || done;
  element("end").hidden = !done;
  element("progress").hidden = !state.started;
  const bar = element("progress").querySelector("progress");
  [bar.max, bar.value] = [items.length, number];
  element("progress").querySelector("span").textContent = `${number} of ${items.length}`;
  if (!state.started) return;
  if (done) {
    finish();
    return;
  }
  const item = items[number];
  const first = study.mode === "same" ? "first picture" : "reference";
  const shown = item.pictures.map((name, place) => figure(name, names()[place]));
  element("pictures").className = study.mode;
  element("pictures").replaceChildren(figure(item.reference, first), ...shown);
  element("prompt").textContent = item.prompt;
  element("questions").replaceChildren(...questions.map(fieldset));
  if (!matchMedia("(pointer: coarse)").matches) { // a ring on a phone would look like an answer
    element("questions").querySelector("input").focus({ preventScroll: true, focusVisible: true });
  }
  window.scrollTo(0, 0);
  times = {};
  shownAt = Date.now();
  clock = performance.now();
  preload(number + 1);
}

function sideOf(answer) {
  return { a: "left", b: "right" }[study.mode === "pair" ? answer : ""] || "";
}

function next() {
  const chosen = new FormData(element("item"));
  state.answered.push(questions.map(({ id }) => ({
    study: study.id,
    rater: state.rater,
    session: state.session,
    item: items[state.answered.length].id,
    question: id,
    answer: chosen.get(id),
    side: sideOf(chosen.get(id)),
    t_ms: Math.round(times[id] ?? performance.now() - clock),
    shown_at: shownAt,
    screen: `${innerWidth}x${innerHeight}@${Math.round(devicePixelRatio * 100) / 100}`,
  })));
  keep();
  show();
  send();
}

function allSent() {
  return state.sent >= state.answered.length;
}

// Sends what was not sent before, an item at a time. An answer that arrives twice counts once.
async function send() {
  if (!delivery.post || sending || state.refused) return;
  sending = true;
  try {
    while (!allSent()) {
      const response = await fetch(delivery.post, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ answers: state.answered[state.sent] }),
      });
      if (response.status >= 400 && response.status < 500 && response.status !== 429) {
        state.refused = (await response.text()).slice(0, 300);
        break;
      }
      if (!response.ok) throw new Error(response.status);
      state.sent += 1;
      keep();
    }
    notice("");
  } catch {
    notice("Your last answers are not saved on the server yet. Keep this page open; it tries again.");
    setTimeout(send, RETRY_MS);
  }
  sending = false;
  if (state.refused) notice(`The server does not take your answers: ${state.refused}`);
  if (state.answered.length >= items.length) finish();
}

function rows() {
  return state.answered.flat();
}

function finish() {
  const waiting = Boolean(delivery.post) && !allSent();
  element("retry").hidden = !waiting || Boolean(state.refused);
  element("download").hidden = Boolean(delivery.post) && !waiting;
  element("complete").hidden = waiting || !delivery.completion;
  element("complete").href = delivery.completion || "#";
  element("another").hidden = Boolean(named) || waiting;
  if (waiting) element("thanks").textContent = "You have answered everything. Saving your answers …";
  else if (delivery.post) element("thanks").textContent = "Thank you. All your answers are saved.";
  else if (!turk) {
    element("thanks").textContent =
      "Thank you. Download your answers and send the file to the person who invited you.";
  }
  if (turk) submitToTurk();
}

function submitToTurk() {
  const form = element("submit");
  form.action = `${turk}/mturk/externalSubmit`;
  form.replaceChildren(
    make("input", { type: "hidden", name: "assignmentId", value: query.get("assignmentId") }),
    make("input", { type: "hidden", name: "answers", value: JSON.stringify(rows()) }),
    make("button", { className: "main", textContent: "Submit to Mechanical Turk" }),
  );
  form.hidden = false;
}

function download() {
  const text = rows().map((row) => `${JSON.stringify(row)}\n`).join("");
  const link = make("a", {
    href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })),
    download: `answers-${state.rater}.jsonl`,
  });
  link.click();
}

// A digit answers the question that has the focus, and leads to the first one without an answer.
function digit(event) {
  const place = Number(event.key) - 1;
  if (element("item").hidden || element("zoom").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!Number.isInteger(place)) return;
  const sets = [...document.querySelectorAll("fieldset")];
  const open = (set) => !set.querySelector(":checked");
  const current = document.activeElement.closest("fieldset") || sets.find(open) || sets[0];
  const input = current.querySelectorAll("input")[place];
  if (!input) return;
  input.checked = true;
  input.dispatchEvent(new Event("change"));
  const following = sets.find(open);
  (following ? following.querySelector("input") : element("next")).focus({ focusVisible: true });
}

element("instructions").replaceChildren(
  ...study.questions.instructions.map((text) => make("p", { textContent: text })),
);
element("minutes").textContent = `${Math.ceil(items.length * study.questions.seconds / 60)} minutes`;
element("last").textContent = Math.max(...questions.map((question) => question.answers.length));
element("start").disabled = preview;
if (preview) notice("This is a preview. Accept the task to start.");
element("start").addEventListener("click", () => {
  state.started = true;
  keep();
  show();
});
element("item").addEventListener("submit", (event) => {
  event.preventDefault();
  next();
});
element("retry").addEventListener("click", send);
element("download").addEventListener("click", download);
element("another").addEventListener("click", () => {
  try { localStorage.removeItem(store); } catch { /* nothing was kept */ }
  location.replace(location.pathname);
});
element("zoom").addEventListener("click", () => element("zoom").close());
document.addEventListener("keydown", digit);
window.addEventListener("beforeunload", (event) => {
  const lost = !state.kept || (delivery.post && !allSent());
  if (state.answered.length && lost && !state.refused) event.preventDefault();
});
preload(state.answered.length);
show();
if (state.answered.length) send();
