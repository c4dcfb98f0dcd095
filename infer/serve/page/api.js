// Requests to the server that the page comes from, with the key if it asks for one.

import { byId } from "./dom.js";

const STORED = "dsd-key"; // forgotten when the tab is closed

export class Refused extends Error {
  constructor(status, { message, param = null }) {
    super(message);
    Object.assign(this, { status, param });
  }
}

// Resolves once a key was given; several requests may wait for the same one.
let asking = null;
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const box = byId("key-box");
    byId("key-note").textContent = wrong
      ? "That key is wrong. Try another one."
      : "It is kept until you close this tab.";
    box.addEventListener("close", () => {
      sessionStorage.setItem(STORED, byId("key").value.trim());
      byId("key").value = "";
      asking = null;
      resolve();
    }, { once: true });
    box.showModal();
  });
  return asking;
}

async function refusal(response) {
  const given = await response.json().catch(() => ({}));
  const error = given.error ?? { message: `the server answered ${response.status}` };
  return new Refused(response.status, error);
}

export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(STORED);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, { message: "The server does not answer. Is it still running?" });
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    await askForKey(key !== null);
  }
}

export const json = async (path, options) => (await ask(path, options)).json();

export const LOST = { message: "The connection ended before the images came." };

// Server-sent events: {comment} for lines that begin with a colon, else {event, data}.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => { throw new Refused(0, LOST); });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "", data: "" };
      for (const line of block.split("\n")) {
        const [, name, text] = line.match(/^(\w*): ?(.*)$/);
        if (name === "") yield { comment: text };
        else fields[name] = text;
      }
      if (fields.data) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

export function blobOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
