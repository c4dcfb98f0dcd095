// Elements are made from words as text: nothing that a person or a server wrote is read as HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const button = (words, onclick, className = "") =>
  element("button", { type: "button", className, onclick }, words);

const addresses = new WeakMap();

export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

export function release(blob) {
  if (addresses.has(blob)) URL.revokeObjectURL(addresses.get(blob));
  addresses.delete(blob);
}

const SMALL = 160; // pixels of a side, up to which a picture is shown with sharp pixels

export function sharp(image) {
  image.onload = () => image.classList.toggle("small", image.naturalHeight <= SMALL);
  return image;
}

export const picture = (blob, alt, className = "") =>
  sharp(element("img", { alt, className, src: addressOf(blob) }));
