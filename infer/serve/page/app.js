// The page: from a form to images, and back.

import { ask, blobOf, events, json, LOST, Refused } from "./api.js";
import { byId, element, picture } from "./dom.js";
import { Form } from "./form.js";
import { Running, say, showEntry, showError, showIdle } from "./stage.js";
import { Store } from "./store.js";

const PATIENCE = 2000; // milliseconds between questions whether the server is ready
const CLOCK = 1000; // milliseconds between questions about the place in the queue

const store = new Store();
let form;
let request = null; // the AbortController of the request under way, and its job
let shown = null; // the entry on the stage

async function waitUntilReady() {
  for (;;) {
    const answer = await fetch("/ready").then((found) => found.json(), () => ({ status: "not reachable" }));
    const ready = answer.status === "ok";
    byId("state").textContent = ready ? "ready" : answer.status;
    byId("state").dataset.ready = ready;
    byId("run").disabled = !ready || request !== null;
    if (ready) return;
    await new Promise((resolve) => { setTimeout(resolve, PATIENCE); });
  }
}

function busy(now) {
  request = now;
  byId("run").hidden = now !== null;
  byId("cancel").hidden = now === null;
  byId("run").disabled = now !== null;
  document.body.classList.toggle("busy", now !== null);
  for (const made of document.querySelectorAll(".entry, .example")) made.ariaDisabled = String(now !== null);
}

const titleOf = (error) => ({
  0: "No connection", 400: "This cannot be made", 409: "Cancelled", 413: "The picture is too large",
  429: "The server is busy", 503: "The server is not ready",
}[error.status] ?? "Something went wrong");

function sentence(words) {
  const first = words.replace(/^./, (letter) => letter.toUpperCase());
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

function fail(error) {
  if (!(error instanceof Refused)) console.error(error);
  const words = error instanceof Refused ? form.worded(error.message, error.param) : "The page made a mistake; reload it.";
  const final = [400, 409, 413].includes(error.status); // the same request would be refused again
  showError(titleOf(error), sentence(words), final ? null : run);
  if (error.param) form.wrong(error.param);
}

async function enhancedPrompt(prompt, signal) {
  const body = new FormData();
  body.append("prompt", prompt);
  body.append("image", form.reference, "reference");
  return json("/v1/prompts/enhance", { method: "POST", body, signal });
}

// Asks for the place in the queue and the time left, until the signal says that it is over.
async function watch(job, running, signal) {
  while (!signal.aborted) {
    const body = await json(`/v1/jobs/${job}`, { signal }).catch(() => null);
    if (body === null || body.result) return;
    if (!signal.aborted) running.place(body);
    await new Promise((resolve) => { setTimeout(resolve, CLOCK); });
  }
}

async function follow(answer, running, format) {
  const images = [];
  for await (const { comment, event, data } of events(answer)) {
    const step = comment?.match(/^step (\d+) of (\d+)/);
    if (step) running.step(Number(step[1]), Number(step[2]));
    if (event === "error") throw new Refused(500, data.error);
    if (event?.endsWith(".partial_image")) running.preview(data.image, `data:image/${format};base64,${data.b64_json}`);
    if (event?.endsWith(".completed")) {
      const frames = data.frames_b64_json ? blobOf(data.frames_b64_json, format) : null;
      images[data.image] = { blob: blobOf(data.b64_json, format), frames, seed: data.seed };
    }
  }
  if (!images.length) throw new Refused(0, LOST);
  return images;
}

async function run() {
  if (request !== null || byId("run").disabled) return;
  const stop = new AbortController();
  const over = new AbortController();
  const began = performance.now();
  busy({ stop, job: null });
  await form.light.settled;
  const settings = form.read();
  const count = Math.min(settings.count || 1, form.model.max_images); // the server refuses more
  const running = new Running(count, settings.size, form.prompt());
  byId("stage").scrollIntoView();
  try {
    let prompt = form.prompt();
    let notice = null;
    if (settings.enhance && form.reference !== null) {
      running.say("Enhancing the text");
      ({ prompt, notice } = await enhancedPrompt(prompt, stop.signal));
      running.prompt.textContent = prompt;
    }
    const { reference } = form;
    const answer = await form.send(form.fields(settings, prompt), stop.signal);
    request.job = answer.headers.get("x-job-id");
    watch(request.job, running, over.signal);
    const images = await follow(answer, running, settings.format);
    const seconds = (performance.now() - began) / 1000;
    const entry = { id: request.job, at: Date.now(), settings, prompt, notice, reference, images, seconds };
    await store.add(entry);
    show(entry);
    say("");
    byId("stage").focus({ preventScroll: true });
    byId("stage").scrollIntoView();
  } catch (error) {
    fail(stop.signal.aborted ? new Refused(409, { message: "Nothing was made." }) : error);
  } finally {
    over.abort();
    busy(null);
    waitUntilReady();
  }
}

function cancel() {
  if (request === null) return;
  if (request.job) ask(`/v1/jobs/${request.job}`, { method: "DELETE" }).catch(() => {});
  request.stop.abort();
}

async function clear() {
  const count = store.entries.length;
  if (!confirm(count === 1 ? "Delete the entry?" : `Delete all ${count} entries?`)) return;
  await store.clear();
  if (request === null) show(null);
  else showHistory();
}

const actions = {
  reuse(entry, image) {
    form.write({ ...entry.settings, seed: image.seed }, entry.reference);
    byId("text").focus();
  },
  refer(entry, image) {
    form.setReference(image.blob);
    byId("text").focus();
  },
  async remove(entry) {
    await store.remove(entry);
    show(null);
  },
};

function show(entry) {
  shown = entry;
  if (entry === null) showIdle();
  else showEntry(entry, actions);
  showHistory();
}

function showHistory() {
  byId("history").hidden = store.entries.length === 0;
  byId("entries").replaceChildren(...store.entries.map((entry) => {
    const made = element("button", { type: "button", className: "entry", title: entry.prompt },
      picture(entry.images[0].blob, ""), element("span", {}, entry.prompt),
      entry.images.length > 1 ? element("b", {}, String(entry.images.length)) : "");
    made.ariaCurrent = String(entry === shown);
    made.onclick = () => {
      if (request !== null) return;
      show(entry);
      byId("stage").focus({ preventScroll: true });
      byId("stage").scrollIntoView();
    };
    return made;
  }));
}

function showExamples(examples) {
  byId("example-box").hidden = examples.length === 0;
  byId("examples").replaceChildren(...examples.map((example) => {
    const reference = example.b64_json && blobOf(example.b64_json, "png");
    const made = element("button", { type: "button", className: "example", title: example.prompt },
      reference ? picture(reference, "") : "",
      element("span", {}, example.title),
      reference ? "" : element("small", {}, example.prompt));
    made.onclick = async () => {
      if (request !== null) return;
      const own = { text: example.prompt, task: example.task ?? "", light: example.light, loras: example.edit ? {} : null };
      await form.write({ ...form.read(), ...own }, reference ?? (example.edit ? form.reference : null));
      if (example.edit && form.reference === null) byId("file").focus();
      else run();
    };
    return made;
  }));
}

async function start() {
  showIdle();
  const [catalogue, models] = await Promise.all([json("/v1/catalogue"), json("/v1/models"), store.open()]);
  form = new Form(catalogue);
  form.offer(models.data[0]);
  showExamples(catalogue.examples);
  showHistory();
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  byId("cancel").addEventListener("click", cancel);
  byId("form").addEventListener("input", () => { if (request === null) say(""); });
  byId("clear").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
    if (event.key === "Escape" && !byId("key-box").open) cancel();
  });
  waitUntilReady();
}

start().catch((error) => showError("The page cannot start", sentence(error.message), () => location.reload()));
