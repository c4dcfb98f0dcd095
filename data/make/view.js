"use strict";
const PER_PAGE = 20;
const cards = [...document.querySelectorAll("article")];
const element = (id) => document.getElementById(id);
const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
let page = 0;

function show() {
  const [task, verdict, reason] = ["task", "verdict", "reason"].map((id) => element(id).value);
  const words = element("text").value.toLowerCase();
  let pairs = 0;
  const fitting = cards.filter((card) => {
    let own = 0;
    for (const pair of card.querySelectorAll(".pair")) {
      const fits = (!verdict || pair.dataset.verdict === verdict) &&
        (!reason || pair.dataset.reason === reason);
      pair.hidden = !fits;
      own += fits;
    }
    const fits = own && (!task || card.dataset.task === task) && texts.get(card).includes(words);
    pairs += fits ? own : 0;
    return fits;
  });
  const pages = Math.max(1, Math.ceil(fitting.length / PER_PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const visible = new Set(fitting.slice(page * PER_PAGE, (page + 1) * PER_PAGE));
  for (const card of cards) card.hidden = !visible.has(card);
  element("none").hidden = fitting.length > 0;
  element("shown").textContent = `${count(fitting.length, "grid")}, ${count(pairs, "row")}`;
  element("page").textContent = `page ${page + 1} of ${pages}`;
  element("before").disabled = page === 0;
  element("after").disabled = page === pages - 1;
}

function turn(step) {
  page += step;
  show();
  window.scrollTo(0, 0);
}

for (const id of ["task", "verdict", "reason", "text"]) {
  element(id).addEventListener("input", () => turn(-page));
}
element("before").addEventListener("click", () => turn(-1));
element("after").addEventListener("click", () => turn(1));
show();
