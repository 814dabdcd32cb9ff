"use strict";
const cards = [...document.querySelectorAll(".card")];
const buttons = [...document.querySelectorAll("button[data-show]")];
let current = -1; // index of the card with the keyboard focus

function show() {
  const pressed = buttons.filter((button) => button.getAttribute("aria-pressed") === "true");
  const verdicts = new Set(pressed.map((button) => button.dataset.show));
  for (const card of cards) card.hidden = !verdicts.has(card.dataset.verdict);
  const visible = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = `${visible} of ${cards.length} shown`;
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
    for (const filter of buttons) filter.setAttribute("aria-pressed", "true");
    show();
  }
});

document.querySelector(".controls").hidden = false;
show();
