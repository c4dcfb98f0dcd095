// The choice of a light: presets, words for each aspect, and a ball that is lit so.

import { json } from "./api.js";
import { byId, element } from "./dom.js";
import { say } from "./stage.js";

const TITLES = { temperature: "colour" };

function toScreen(linear) { // linear light to the values of sRGB, 0 to 255
  const value = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
}

function ball(look) {
  const made = element("i", { className: "ball", ariaHidden: "true" });
  const [right, down, near] = look.towards;
  const bright = 0.75 * 2 ** look.exposure;
  const style = {
    "--x": `${50 + 38 * right}%`,
    "--y": `${50 + 38 * down}%`,
    "--colour": `rgb(${look.colour.map((part) => toScreen(bright * part)).join(" ")})`,
    "--reach": `${(near < -0.2 ? 45 : 95) - 25 * look.hardness}%`,
  };
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  made.classList.toggle("behind", near < -0.2);
  return made;
}

export class LightChoice {
  names = {};
  light = null; // the light in words and numbers, as the server has it
  settled = Promise.resolve(); // once `light` is that of `names`

  constructor(catalogue, onChange) {
    this.onChange = onChange;
    this.selects = Object.entries(catalogue.lights).map(([aspect, entries]) => {
      const options = Object.entries(entries).map(([name, words]) => new Option(words, name));
      const select = element("select", { id: `light-${aspect}`, onchange: () => this.#read() });
      select.append(new Option("any", ""), ...options);
      const title = (TITLES[aspect] ?? aspect).replace(/^./, (letter) => letter.toUpperCase());
      byId("light-aspects").append(
        element("label", { className: "field", htmlFor: select.id }, title, select));
      return [aspect, select];
    });
    this.presets = catalogue.light_presets.map((light) => {
      const words = light.description.replace(/^lit /, "");
      const made = element("button", { type: "button", className: "preset", ariaPressed: "false" },
        ball(light.look), element("span", {}, words));
      made.onclick = () => this.set(made.ariaPressed === "true" ? {} : light.names);
      byId("light-presets").append(made);
      return [JSON.stringify(Object.entries(light.names).sort()), made];
    });
  }

  #read() {
    const chosen = this.selects.filter(([, select]) => select.value);
    this.set(Object.fromEntries(chosen.map(([aspect, select]) => [aspect, select.value])));
  }

  set(names) {
    this.settled = this.#set(names);
    return this.settled;
  }

  // A light that the server does not tell is not chosen.
  async #set(names) {
    this.names = names;
    for (const [aspect, select] of this.selects) select.value = names[aspect] ?? "";
    const key = JSON.stringify(Object.entries(names).sort());
    for (const [own, made] of this.presets) made.ariaPressed = String(own === key);
    const empty = Object.keys(names).length === 0;
    let found = null;
    try {
      if (!empty) found = await json(`/v1/light?${new URLSearchParams(names)}`);
    } catch (error) {
      if (this.names === names) await this.#set({});
      say(error.message, true);
      return;
    }
    if (this.names !== names) return; // another choice was made meanwhile
    this.light = found;
    byId("light-words").replaceChildren(...(found ? [ball(found.look)] : []));
    if (found) byId("light-words").append(found.description.replace(/^lit /, ""));
    this.onChange();
  }

  // A light alone is an order; beside a text it describes the picture.
  added(text) {
    if (this.light === null) return text;
    return text ? text + this.light.addition : this.light.instruction;
  }
}
