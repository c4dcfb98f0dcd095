// The history, in this browser's database; in memory alone where the browser has none.

import { release } from "./dom.js";

const MOST = 60; // entries; the oldest go first
const TABLE = "entries";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function opened() {
  try {
    const request = indexedDB.open("dsd", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    return await done(request);
  } catch {
    return null;
  }
}

function forget(entry) {
  for (const { blob, frames } of entry.images) [blob, frames].forEach(release);
}

export class Store {
  entries = []; // the newest first
  #database = null;

  async open() {
    this.#database = await opened();
    const kept = await this.#run("readonly", (table) => table.getAll());
    this.entries = (kept ?? []).sort((a, b) => b.at - a.at);
  }

  async add(entry) {
    this.entries.unshift(entry);
    await this.#run("readwrite", (table) => table.put(entry));
    for (const old of this.entries.slice(MOST)) await this.remove(old);
  }

  async remove(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    forget(entry);
    await this.#run("readwrite", (table) => table.delete(entry.id));
  }

  async clear() {
    this.entries.forEach(forget);
    this.entries = [];
    await this.#run("readwrite", (table) => table.clear());
  }

  // A database that is full or turned off leaves the history in memory.
  async #run(mode, work) {
    if (this.#database === null) return null;
    try {
      return await done(work(this.#database.transaction(TABLE, mode).objectStore(TABLE)));
    } catch {
      return null;
    }
  }
}
