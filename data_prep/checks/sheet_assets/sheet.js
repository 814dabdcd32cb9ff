"use strict";
const cards = [...document.querySelectorAll(".card")];
const buttons = [...document.querySelectorAll("button[data-show]")];
let current = -1; // number of the card that the keyboard is at

function show() {
  const wanted = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.show));
  for (const card of cards) card.hidden = !wanted.has(card.dataset.verdict);
  const seen = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = `${seen} of ${cards.length} shown`;
}

function toggle(button) {
  if (button.disabled) return;
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  show();
}

function go(step) {
  let next = current + step;
  while (cards[next] && cards[next].hidden) next += step;
  if (!cards[next]) return;
  current = next;
  cards[current].focus({ preventScroll: true });
  cards[current].scrollIntoView({ block: "start" });
}

function enlarge(card) {
  if (card) card.classList.toggle("wide");
}

for (const button of buttons) button.addEventListener("click", () => toggle(button));
cards.forEach((card, number) => {
  card.addEventListener("focus", () => { current = number; });
  card.querySelector("img").addEventListener("click", () => { current = number; enlarge(card); });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const button = buttons[Number(event.key) - 1];
  if (button) toggle(button);
  else if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "z") enlarge(cards[current]);
  else if (event.key === "a") {
    for (const each of buttons) each.setAttribute("aria-pressed", "true");
    show();
  }
});

document.querySelector(".controls").hidden = false;
show();
