"use strict";
// One clock moves every player. Stopped, players are set to the middle of a frame. Running, they play by themselves and
// are held to the clock: small drift by the playback rate, large drift (a loop, a stall) by a seek.
const element = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const viewer = element("viewer");
const scores = JSON.parse(element("scores").textContent);

const clock = { position: 0.5, playing: false, loop: true, last: 0, frames: 1, fps: 24 }; // position in frames
const near = new Set(); // players on the screen or close to it: only these are loaded and moved
const followers = []; // functions of the frame number, called when it changes
const NUDGE = 0.5, JUMP = 4; // drift in frames that is corrected by the rate, by a seek
const speed = () => Number(element("speed").value);
const frameOf = (position) => Math.min(Math.floor(position), clock.frames - 1);

function timing(video) {
  const box = video.closest("[data-fps]");
  return { fps: Number(box.dataset.fps), frames: Number(box.dataset.frames) };
}

function active() {
  return [...near].filter((video) => !viewer.open || viewer.contains(video));
}

// Where a player is, in frames: by the frame it last presented where the browser tells that, else by its own clock.
function positionOf(video, fps, now) {
  const shown = video.presented;
  if (!shown || video.paused) return video.currentTime * fps;
  return shown.time * fps + ((now - shown.at) / 1000) * fps * video.playbackRate;
}

function note(video) {
  if (!("requestVideoFrameCallback" in video)) return;
  const keep = (now, meta) => {
    video.presented = { time: meta.mediaTime, at: meta.expectedDisplayTime };
    video.requestVideoFrameCallback(keep);
  };
  video.requestVideoFrameCallback(keep);
}

function set(video, position) { // a player to a position in frames, at most its last moment
  const { fps, frames } = timing(video);
  video.presented = null;
  video.currentTime = Math.min(position, frames - 0.01) / fps;
}

// A stopped player: the middle of the clock's frame.
function show(video) {
  const { fps, frames } = timing(video);
  const at = Math.min(frameOf(clock.position), frames - 1) + 0.5;
  if (!video.paused) video.pause();
  if (video.readyState > 0 && !video.seeking && Math.abs(video.currentTime * fps - at) > 0.01) set(video, at);
}

// A running player: what keeps it at the clock.
function follow(video, now) {
  const { fps, frames } = timing(video);
  if (video.readyState < 2 || video.seeking) return;
  const wanted = Math.min(clock.position, frames - 0.01);
  const drift = positionOf(video, fps, now) - wanted;
  if (Math.abs(drift) > JUMP || video.ended || (video.paused && Math.abs(drift) > NUDGE)) set(video, wanted);
  const correction = Math.abs(drift) > NUDGE ? Math.min(Math.max(1 - drift / 8, 0.5), 1.5) : 1;
  const rate = Math.max(speed() * correction, 0.0625); // the slowest that browsers play
  if (Math.abs(video.playbackRate - rate) > 0.01) video.playbackRate = rate;
  if (video.paused && clock.position < frames - 0.5) start(video);
}

function start(video) {
  video.play().catch((reason) => {
    if (reason.name !== "AbortError") throw reason; // a pause came first
  });
}

function told() {
  const frame = frameOf(clock.position);
  for (const follower of followers) follower(frame);
}

function refresh() {
  if (!clock.playing) active().forEach(show);
  told();
}

function seek(frame) {
  clock.position = Math.min(Math.max(frame, 0), clock.frames - 1) + (clock.playing ? 0 : 0.5);
  if (clock.playing) for (const video of active()) set(video, clock.position);
  refresh();
}

function step(by) {
  setPlaying(false);
  const next = frameOf(clock.position) + by;
  seek(clock.loop ? (next + clock.frames) % clock.frames : next);
}

function setPlaying(on) {
  clock.playing = on;
  for (const id of ["play", "viewer-play"]) {
    element(id).textContent = on ? "Pause" : "Play";
    element(id).setAttribute("aria-pressed", on);
  }
  if (on) {
    if (!clock.loop && frameOf(clock.position) === clock.frames - 1) clock.position = 0;
    clock.last = performance.now();
    requestAnimationFrame(tick);
  } else {
    clock.position = frameOf(clock.position) + 0.5;
    near.forEach((video) => video.pause());
    refresh();
  }
}

function tick(now) {
  if (!clock.playing) return;
  const before = frameOf(clock.position);
  clock.position += (Math.max(now - clock.last, 0) / 1000) * clock.fps * speed();
  clock.last = now;
  if (clock.position >= clock.frames) {
    if (!clock.loop) {
      clock.position = clock.frames - 0.5;
      setPlaying(false);
      return;
    }
    clock.position %= clock.frames;
    for (const video of active()) if (video.readyState > 1) set(video, clock.position);
  }
  for (const video of active()) follow(video, now);
  if (frameOf(clock.position) !== before) told();
  requestAnimationFrame(tick);
}

function setLoop(on) {
  clock.loop = on;
  element("loop").setAttribute("aria-pressed", on);
}

const keys = {
  " ": () => setPlaying(!clock.playing),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  l: () => setLoop(!clock.loop),
};

function pressed(event) {
  const taken = event.key === " " ? "select, input, summary, a, button" : "select, input, summary, a";
  const typed = event.target.closest(taken); // what the element itself does with the key
  if (event.ctrlKey || event.metaKey || event.altKey || typed || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key](event);
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      target.preload = "auto";
      near.add(target);
    } else {
      target.pause();
      near.delete(target);
    }
  }
  refresh();
}, { rootMargin: "200px" });

for (const video of all("video")) {
  video.controls = false;
  video.loop = false;
  const catchUp = () => clock.playing || !near.has(video) || show(video); // a step that came while it was seeking
  video.addEventListener("loadeddata", catchUp);
  video.addEventListener("seeked", catchUp);
  note(video);
  watcher.observe(video);
}

const boxes = all("[data-frames]");
clock.frames = Math.max(1, ...boxes.map((box) => Number(box.dataset.frames)));
if (boxes.length) clock.fps = Number(boxes[0].dataset.fps);
if (clock.frames > 2 * clock.fps) element("speed").value = "1"; // shorter clips are slow at first
for (const prefix of ["", "viewer-"]) {
  const [slider, output] = [element(`${prefix}seek`), element(`${prefix}frame`)];
  slider.max = clock.frames - 1;
  slider.oninput = () => seek(Number(slider.value));
  followers.push((frame) => {
    slider.value = frame;
    output.value = `frame ${frame + 1} of ${clock.frames}`;
  });
  element(`${prefix}play`).onclick = () => setPlaying(!clock.playing);
}
element("back").onclick = () => step(-1);
element("forward").onclick = () => step(1);
element("loop").onclick = () => setLoop(!clock.loop);
document.addEventListener("keydown", pressed);
document.querySelector(".controls").hidden = false;
