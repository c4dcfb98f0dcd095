// The form: what is asked for, as an object that the history keeps and puts back.

import { ask } from "./api.js";
import { byId, element, picture } from "./dom.js";
import { LightChoice } from "./light.js";

const NUMBERS = ["count", "guidance", "i_guidance", "t_guidance", "steps"];
const WORDS = ["text", "task", "size", "format", "negative_prompt"];
// The names that the server has for fields of the form, where they differ.
const FIELDS = { prompt: "text", n: "count", output_format: "format", image: "file" };

export class Form {
  reference = null; // a Blob
  model = null;

  constructor(catalogue) {
    this.form = byId("form");
    this.catalogue = catalogue;
    this.light = new LightChoice(catalogue, () => this.#show());
    byId("text").placeholder = catalogue.examples[0]?.prompt ?? "";
    byId("task").append(...catalogue.tasks.map(({ name }) => new Option(name, name)));
    const enhance = byId("enhance");
    enhance.disabled = catalogue.enhanced_by === null;
    enhance.checked = !enhance.disabled;
    byId("enhance-note").textContent = enhance.disabled
      ? "This server has no key for a vision model."
      : `by ${catalogue.enhanced_by}, which looks at the reference`;
    this.form.addEventListener("input", () => this.#show());
    byId("task").addEventListener("change", () => this.#openLight());
    this.#takePictures();
    this.#show();
  }

  offer(model) {
    this.model = model;
    byId("model").textContent = model.id;
    byId("size").replaceChildren(...model.sizes.map((size) => new Option(size.replace("x", " × "), size)));
    byId("count").max = model.max_images;
    byId("steps").max = model.max_steps;
    byId("reference-box").hidden = !model.edits;
    byId("loras").replaceChildren(...Object.entries(model.loras).map(([name, scale], number) => {
      const input = element("input", { id: `lora-${number}`, type: "range", min: -1, max: 2, step: 0.05 });
      input.value = input.dataset.standard = scale;
      input.dataset.lora = name;
      return element("label", { className: "slider", htmlFor: input.id }, `LoRA ${name} `, element("output"), input);
    }));
    this.#show();
  }

  get #loras() {
    return [...byId("loras").querySelectorAll("input")];
  }

  read() {
    const value = (name) => byId(name).value;
    return {
      ...Object.fromEntries(WORDS.map((name) => [name, value(name).trim()])),
      ...Object.fromEntries(NUMBERS.map((name) => [name, Number(value(name))])),
      seed: value("seed") === "" ? null : Number(value("seed")),
      enhance: byId("enhance").checked,
      light: this.light.names,
      loras: Object.fromEntries(this.#loras.map((input) => [input.dataset.lora, Number(input.value)])),
    };
  }

  // Puts settings back. Scales of LoRAs that are not among them are the server's; null is none.
  async write(settings, reference) {
    for (const name of [...WORDS, ...NUMBERS]) if (name in settings) byId(name).value = settings[name];
    byId("seed").value = settings.seed ?? "";
    byId("enhance").checked = Boolean(settings.enhance) && !byId("enhance").disabled;
    for (const input of this.#loras) {
      const own = settings.loras === null ? 0 : settings.loras[input.dataset.lora];
      input.value = own ?? input.dataset.standard;
    }
    this.setReference(reference);
    this.#openLight();
    await this.light.set(settings.light ?? {});
  }

  setReference(blob) {
    this.reference = blob;
    const shown = byId("reference");
    byId("remove").hidden = shown.hidden = blob === null;
    byId("drop").classList.toggle("filled", blob !== null);
    byId("file").value = "";
    byId("file").ariaInvalid = null;
    if (blob !== null) {
      const made = picture(blob, shown.alt);
      made.id = shown.id;
      made.addEventListener("error", () => { // not a picture that browsers read; the server may
        byId("drop").classList.add("unseen");
        made.alt = `${blob.name ?? "The picture"} (this browser cannot show it)`;
      });
      byId("drop").classList.remove("unseen");
      shown.replaceWith(made);
    }
    this.#show();
  }

  // The text that is sent: the person's words, and those of the light.
  prompt() {
    return this.light.added(byId("text").value.trim());
  }

  // The fields of a request, by their names on the wire.
  fields(settings, prompt) {
    const edit = this.reference !== null;
    const guided = edit && this.model.true_guidance;
    return {
      prompt, n: settings.count, size: settings.size, output_format: settings.format,
      steps: settings.steps, guidance: settings.guidance,
      ...(guided ? {
        i_guidance: settings.i_guidance, t_guidance: settings.t_guidance,
        negative_prompt: settings.negative_prompt,
      } : {}),
      ...(settings.seed === null ? {} : { seed: settings.seed }),
      ...(settings.task ? { task: settings.task } : {}),
      ...(edit ? { save_frames: true } : {}),
      ...this.#chosenLoras(settings),
      stream: true, partial_images: 3,
    };
  }

  // Scales are sent if the person changed one, since a task may have a LoRA of its own.
  #chosenLoras(settings) {
    const changed = this.#loras.some((input) => Number(input.value) !== Number(input.dataset.standard));
    return changed ? { lora: settings.loras } : {};
  }

  // A message of the server in the words of the form: "prompt is missing" is about the text.
  worded(message, parameter) {
    const label = this.form.querySelector(`label[for="${FIELDS[parameter] ?? parameter}"]`);
    const own = parameter && label && message.startsWith(`${parameter} `);
    return own ? label.firstChild.textContent.trim() + message.slice(parameter.length) : message;
  }

  wrong(parameter) {
    const field = byId(FIELDS[parameter] ?? parameter);
    if (field === null || !this.form.contains(field)) return;
    field.closest("details")?.setAttribute("open", "");
    field.ariaInvalid = "true";
    field.focus();
    field.addEventListener("input", () => { field.ariaInvalid = null; }, { once: true });
  }

  get #task() {
    return this.catalogue.tasks.find(({ name }) => name === byId("task").value);
  }

  #openLight() {
    if (this.#task?.lights) byId("light").open = true;
  }

  #show() {
    for (const label of this.form.querySelectorAll(".slider")) {
      label.querySelector("output").value = label.querySelector("input").value;
    }
    const edit = this.reference !== null;
    const guided = this.model === null || this.model.true_guidance;
    for (const name of ["i_guidance", "t_guidance", "negative_prompt"]) {
      byId(name).disabled = !edit || !guided || (name !== "i_guidance" && byId("i_guidance").value <= 1);
    }
    byId("guidance-note").textContent = !guided
      ? "This server has no image guidance."
      : !edit ? "Image and text guidance need a reference."
        : byId("i_guidance").value > 1 ? "An image guidance above 1 takes about three times as long."
          : "Text guidance counts once image guidance is above 1.";
    const about = this.#task ? `${this.#task.about.replace(/^./, (x) => x.toUpperCase())}.` : "";
    byId("task-note").textContent = about && !edit ? `${about} It needs a reference.` : about;
    const sent = byId("sent");
    sent.hidden = this.light.light === null;
    sent.textContent = `Sent: ${this.prompt()}`;
    const count = Number(byId("count").value);
    byId("run").textContent = count === 1 ? "Make 1 image" : `Make ${count || ""} images`;
  }

  #takePictures() {
    const drop = byId("drop");
    const take = (files) => {
      const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
      if (file) this.setReference(file);
    };
    byId("file").addEventListener("change", (event) => take(event.target.files));
    byId("remove").addEventListener("click", () => { this.setReference(null); byId("file").focus(); });
    for (const name of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", name === "dragover");
        if (name === "drop") take(event.dataTransfer.files);
      });
    }
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) take(event.clipboardData.files);
    });
  }

  // Sends the request; resolves with the stream of its answer.
  send(fields, signal) {
    if (this.reference === null) {
      const headers = { "content-type": "application/json" };
      return ask("/v1/images/generations", { method: "POST", headers, body: JSON.stringify(fields), signal });
    }
    const body = new FormData();
    body.append("image", this.reference, "reference");
    for (const [name, value] of Object.entries(fields)) {
      if (name !== "lora") body.append(name, value);
      else for (const [lora, scale] of Object.entries(value)) body.append(`lora[${lora}]`, scale);
    }
    return ask("/v1/images/edits", { method: "POST", body, signal });
  }
}
