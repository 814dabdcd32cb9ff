"use strict";
// One clock moves every player: a frame number is set, never played towards, so players cannot drift apart.
const element = (id) => document.getElementById(id);
const rows = [...document.querySelectorAll(".window")];
const seen = new Set();
let frame = 0, playing = false, loop = true, last = 0;
const frames = Math.max(...rows.map((row) => Number(row.dataset.frames)));

function show(row) {
  const count = Number(row.dataset.frames), at = (Math.min(frame, count - 1) + 0.5) / Number(row.dataset.fps);
  for (const video of row.querySelectorAll("video")) {
    if (video.readyState > 0 && !video.seeking && Math.abs(video.currentTime - at) > 1e-4) video.currentTime = at;
  }
}

function refresh() {
  seen.forEach(show);
  element("frame").value = `frame ${frame + 1} of ${frames}`;
}

function step(by) {
  const next = frame + by;
  frame = loop ? (next + frames) % frames : Math.min(Math.max(next, 0), frames - 1);
  if (!loop && next >= frames) setPlaying(false);
  refresh();
}

function setPlaying(on) {
  playing = on;
  element("play").textContent = on ? "Pause" : "Play";
  element("play").setAttribute("aria-pressed", on);
  if (on) {
    last = performance.now();
    requestAnimationFrame(tick);
  }
}

function tick(now) {
  if (!playing) return;
  const wait = 1000 / (Number(rows[0].dataset.fps) * Number(element("speed").value));
  if (now - last >= wait) {
    last = Math.max(last + wait, now - wait);
    step(1);
  }
  requestAnimationFrame(tick);
}

function setLoop(on) {
  loop = on;
  element("loop").setAttribute("aria-pressed", on);
}

function sort() {
  const option = element("sort").selectedOptions[0], metric = option.value;
  const sign = option.dataset.worst === "high" ? -1 : 1;
  const value = (row) => sign * Number(row.getAttribute(`data-${metric}`));
  element("rows").append(...(metric ? [...rows].sort((a, b) => value(a) - value(b)) : rows));
}

function key(event) {
  const actions = {
    " ": () => setPlaying(!playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1), l: () => setLoop(!loop),
  };
  const busy = event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, button, a");
  if (!busy && event.key in actions) {
    event.preventDefault();
    actions[event.key]();
  }
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) seen.add(entry.target);
    else seen.delete(entry.target);
  }
  refresh();
}, { rootMargin: "200px" });

for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  const catchUp = () => show(video.closest(".window")); // a step that came while it was seeking
  video.addEventListener("loadeddata", catchUp);
  video.addEventListener("seeked", catchUp);
}
rows.forEach((row) => watcher.observe(row));
element("play").onclick = () => setPlaying(!playing);
element("back").onclick = () => step(-1);
element("forward").onclick = () => step(1);
element("loop").onclick = () => setLoop(!loop);
element("sort").onchange = sort;
document.addEventListener("keydown", key);
document.querySelector(".controls").hidden = false;
const download = element("download");
download.href = URL.createObjectURL(new Blob([element("scores").textContent], { type: "application/json" }));
download.download = "scores.json";
download.hidden = false;
sort();
refresh();
