// One clock drives every player. When stopped, players are set to the middle of a frame. When running, they play on their
// own and are corrected: small drift by the playback rate, large drift (a loop, a stall) by a seek. together.js draws.
const element = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const viewer = element("viewer");
const scores = JSON.parse(element("scores").textContent);

const clock = { position: 0.5, playing: false, loop: true, last: 0, frames: 1, fps: 24 }; // position in frames
const near = new Set(); // players on or near the screen; only these are loaded and driven
const followers = []; // functions that are called with the new frame number when it changes
const NUDGE = 0.5, JUMP = 4; // drift in frames corrected by the playback rate, by a seek
const speed = () => Number(element("speed").value);
const frameOf = (position) => Math.min(Math.floor(position), clock.frames - 1);

function timing(video) {
  const box = video.closest("[data-fps]");
  return { fps: Number(box.dataset.fps), frames: Number(box.dataset.frames) };
}

function active() {
  return [...near].filter((video) => !viewer.open || viewer.contains(video));
}

// Position of a player in frames: from the last presented frame if the browser reports it, else from currentTime.
function positionOf(video, fps, now) {
  const shown = video.presented;
  if (!shown || video.paused) return video.currentTime * fps;
  return shown.time * fps + ((now - shown.at) / 1000) * fps * video.playbackRate;
}

// Position of a stopped player in frames. After a seek to its last frame, a browser may report the end of the clip.
function placeOf(video) {
  const { fps, frames } = timing(video);
  return Math.min(video.currentTime * fps, frames - 0.5);
}

function set(video, position) { // move a player to a position in frames, at most its end
  const { fps, frames } = timing(video);
  hold(boxOf(video));
  video.presented = null;
  video.currentTime = Math.min(position, frames - 0.01) / fps;
}

// Stopped: show the middle of the clock's frame.
function show(video) {
  const middle = Math.min(frameOf(clock.position), timing(video).frames - 1) + 0.5;
  if (!video.paused) video.pause();
  if (video.readyState > 0 && !video.seeking && Math.abs(placeOf(video) - middle) > 0.01) set(video, middle);
}

// Running: keep a player at the clock.
function follow(video, now) {
  const { fps, frames } = timing(video);
  if (video.readyState < 2 || video.seeking) return;
  const target = Math.min(clock.position, frames - 0.01);
  const drift = positionOf(video, fps, now) - target;
  if (Math.abs(drift) > JUMP || video.ended || (video.paused && Math.abs(drift) > NUDGE)) set(video, target);
  const correction = Math.abs(drift) > NUDGE ? Math.min(Math.max(1 - drift / 8, 0.5), 1.5) : 1;
  const rate = Math.max(speed() * correction, 0.0625); // the slowest rate that browsers support
  if (Math.abs(video.playbackRate - rate) > 0.01) video.playbackRate = rate;
  if (video.paused && clock.position < frames - 0.5) start(video);
}

function start(video) {
  hold(boxOf(video));
  video.play().catch((reason) => {
    if (reason.name !== "AbortError") throw reason; // a pause came first
  });
}

function notify() {
  const frame = frameOf(clock.position);
  for (const follower of followers) follower(frame);
}

function refresh() {
  if (!clock.playing) active().forEach(show);
  paintAll();
  notify();
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
  paintAll();
  if (frameOf(clock.position) !== before) notify();
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
  const handled = event.key === " " ? "select, input, summary, a, button" : "select, input, summary, a";
  const typed = event.target.closest(handled); // the element handles this key itself
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
      forget(target);
    }
  }
  refresh();
}, { rootMargin: "200px" });

for (const video of all("video")) {
  video.controls = false;
  video.loop = false;
  const catchUp = () => clock.playing || !near.has(video) || show(video); // a step during a seek
  video.addEventListener("loadeddata", catchUp);
  video.addEventListener("seeked", catchUp);
  cover(video);
  watcher.observe(video);
}

const boxes = all("[data-frames]");
clock.frames = Math.max(1, ...boxes.map((box) => Number(box.dataset.frames)));
if (boxes.length) clock.fps = Number(boxes[0].dataset.fps);
if (clock.frames > 2 * clock.fps) element("speed").value = "1"; // short clips start slowly
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
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) addEventListener("load", () => setPlaying(true));
