"use strict";
// One pair at a time. Answers are kept in localStorage, so that a closed page goes on where it was.
const { study, pairs } = JSON.parse(document.body.dataset.study);
const byId = (id) => document.getElementById(id);
const key = `study-${study}`;
let state = { study, rater: "", answers: {}, at: 0 };
let shown = 0;

function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(key));
    if (stored && stored.study === study) state = stored;
  } catch { /* a page from disk may have no storage */ }
}

function store() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { /* kept in memory only */ }
}

function videos() { return [...document.querySelectorAll(`[id="${pairs[state.at]}"] video`)]; }

function show() {
  for (const id of pairs) {
    const isCurrent = id === pairs[state.at];
    const section = byId(id);
    section.hidden = !isCurrent;
    if (!isCurrent) section.querySelectorAll("video").forEach((video) => video.pause());
  }
  const done = state.at >= pairs.length;
  byId("start").hidden = true;
  byId("choices").hidden = done;
  byId("end").hidden = !done;
  byId("progress").textContent = done ? "All pairs are answered." : `Pair ${state.at + 1} of ${pairs.length}`;
  if (done) return offer();
  const answer = state.answers[pairs[state.at]];
  document.querySelectorAll("[data-choice]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Boolean(answer) && answer.choice === button.dataset.choice));
  });
  byId("back").disabled = state.at === 0;
  shown = performance.now();
  videos().forEach((video) => { video.currentTime = 0; video.play().catch(() => {}); });
}

// The left clip is the clock: the others are set to its time when they drift. A shorter reference waits at its end.
function align() {
  if (state.at < pairs.length && !byId("choices").hidden) {
    const clock = document.querySelector(`[id="${pairs[state.at]}"] .left video`);
    for (const video of videos().filter((other) => other !== clock)) {
      const end = (video.duration || Infinity) - 0.04;
      const isOver = clock.currentTime >= end && video.duration < clock.duration - 0.04;
      if (!clock.paused && isOver !== video.paused) isOver ? video.pause() : video.play().catch(() => {});
      const time = isOver ? end : clock.currentTime;
      if (Math.abs(video.currentTime - time) > 0.08) video.currentTime = time;
    }
  }
  requestAnimationFrame(align);
}

function choose(choice) {
  if (byId("choices").hidden) return;
  const seconds = Math.round((performance.now() - shown) / 100) / 10;
  state.answers[pairs[state.at]] = { choice, seconds };
  state.at += 1;
  store();
  show();
}

function offer() {
  const answers = pairs.map((id) => ({ pair: id, ...state.answers[id] }));
  const text = JSON.stringify({ study, rater: state.rater, answers }, null, 1);
  const link = byId("save");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `answers-${state.rater.replace(/[^A-Za-z0-9]+/g, "-") || "anonymous"}.json`;
}

byId("begin").addEventListener("click", () => {
  state.rater = byId("rater").value.trim();
  store();
  show();
});
byId("back").addEventListener("click", () => { state.at -= 1; store(); show(); });
document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => choose(button.dataset.choice));
});
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") return;
  const choice = { 1: "left", 2: "same", 3: "right" }[event.key];
  if (choice) choose(choice);
});
load();
byId("rater").value = state.rater;
if (state.at > 0) show();
align();
