"use strict";
// All players of a group (a row, a tile) show the same frame. Videos that play on their own are often a frame apart, so
// every frame that a video presents is kept with its number, and drawn on a canvas over the video when all players of
// its group have it. Stopped, the canvases stay until all players of the group stand at the clock's frame; then the
// videos are shown. Browsers that do not report frames always show the videos.
const KEPT = 8; // frames kept of each player
const EARLY = 10, MARGIN = 2; // milliseconds by which a picture must be taken before the next frame
const STARVED = 400; // milliseconds without a common frame before all players of a group are sent to the same one
const reportsFrames = "requestVideoFrameCallback" in HTMLVideoElement.prototype;
const boxOf = (video) => video.closest("[data-fps]");

function cover(video) { // put a canvas over a player
  Object.assign(video, { kept: [], spare: [], waiting: null });
  if (!reportsFrames) return;
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true"); // the video has the label
  video.after(canvas);
  video.cover = canvas;
  video.addEventListener("emptied", () => { // another clip
    forget(video);
    boxOf(video).drawn = null;
  });
  const record = (now, meta) => {
    video.requestVideoFrameCallback(record); // first, so that the next frame is not missed
    video.presented = { time: meta.mediaTime, at: meta.expectedDisplayTime, number: numberOf(video, meta.mediaTime) };
    if (!video.paused) runs(video, meta);
  };
  video.requestVideoFrameCallback(record);
  video.addEventListener("seeked", () => paint(boxOf(video)));
}

function forget(video) {
  Object.assign(video, { kept: [], spare: [], waiting: null, presented: null });
}

const numberOf = (video, time) => Math.round(time * timing(video).fps);

// Stopped: the canvases of a group are hidden (data-still) while its players stand at the same frame.
function standsAt(video, frame) {
  return video.paused && !video.seeking && video.readyState > 1 && Math.floor(placeOf(video)) === frame;
}

function hold(box) { // before a player moves: the canvases show the present frame until there is another common one
  if (!box.hasAttribute("data-still")) return;
  box.removeAttribute("data-still");
  for (const video of members(box)) {
    const picture = snapshot(video);
    if (!picture) continue;
    drawCover(video, picture);
    video.spare.push(picture);
  }
}

// Running: on a busy machine the next frame may be there already when the report of a frame is read, and its picture
// would get the wrong number. A picture counts if it was taken long before the next frame was due, or if that frame came
// later than the picture, which its own report tells.
function runs(video, meta) {
  const waiting = video.waiting, { number } = video.presented;
  video.waiting = null;
  if (waiting && meta.presentedFrames === waiting.count + 1 && meta.presentationTime > waiting.taken + MARGIN) {
    keep(video, waiting.number, waiting.picture);
  } else if (waiting) video.spare.push(waiting.picture);
  const picture = video.kept.some((frame) => frame.number === number) ? null : snapshot(video);
  if (!picture) {
    paint(boxOf(video));
    return;
  }
  const taken = performance.now(), interval = 1000 / (timing(video).fps * video.playbackRate);
  if (taken < meta.presentationTime + interval / 2 - EARLY) keep(video, number, picture);
  else video.waiting = { number, picture, taken, count: meta.presentedFrames };
}

function snapshot(video) { // the picture that the video shows now, as large as it is needed
  if (!near.has(video) || !video.cover.clientWidth || !video.videoWidth) return null;
  const picture = video.spare.pop() ?? document.createElement("canvas");
  const inViewer = viewer.contains(video), shown = Math.ceil(video.cover.clientWidth * devicePixelRatio);
  const width = inViewer ? video.videoWidth : Math.min(video.videoWidth, shown);
  const height = Math.round((width * video.videoHeight) / video.videoWidth);
  if (picture.width !== width || picture.height !== height) Object.assign(picture, { width, height });
  picture.getContext("2d").drawImage(video, 0, 0, width, height);
  return picture;
}

function keep(video, number, picture) {
  if (video.kept.some((frame) => frame.number === number)) video.spare.push(picture);
  else video.kept.push({ number, picture });
  if (video.kept.length > KEPT) video.spare.push(video.kept.shift().picture);
  paint(boxOf(video));
}

function members(box) { // the players whose frames must be equal
  return all("video", box).filter((video) => video.cover && near.has(video) && !video.hidden && !video.error);
}

function paint(box) { // running: draw the common frame that is nearest to the clock
  const videos = members(box);
  if (!videos.length) return;
  const current = Math.min(frameOf(clock.position), Number(box.dataset.frames) - 1);
  if (!clock.playing) {
    if (videos.every((video) => standsAt(video, current))) box.setAttribute("data-still", "");
    return;
  }
  const common = videos[0].kept.map((frame) => frame.number)
    .filter((number) => videos.every((video) => video.kept.some((frame) => frame.number === number)));
  const nearest = common.sort((a, b) => Math.abs(a - current) - Math.abs(b - current))[0];
  if (nearest === undefined) return;
  hold(box);
  box.drawnAt = performance.now();
  const drawn = `${nearest} ${videos.map((video) => video.currentSrc.slice(-80)).join(" ")}`;
  if (box.drawn === drawn) return;
  box.drawn = drawn;
  for (const video of videos) drawCover(video, video.kept.find((frame) => frame.number === nearest).picture, nearest);
}

function drawCover(video, picture, frame) {
  const { cover } = video, { width, height } = picture;
  if (cover.width !== width || cover.height !== height) Object.assign(cover, { width, height });
  cover.getContext("2d").drawImage(picture, 0, 0);
  if (frame !== undefined) cover.frame = frame;
}

function rescue(box, now) { // a busy machine presents other frames in each player: send all to one
  box.drawnAt ??= now;
  if (now - box.drawnAt < STARVED) return;
  box.drawnAt = now;
  for (const video of members(box)) if (video.readyState > 1 && !video.seeking) set(video, clock.position);
}

function paintAll() {
  const boxes = new Set(active().filter((video) => video.cover).map(boxOf));
  for (const box of boxes) {
    paint(box);
    if (clock.playing) rescue(box, performance.now());
  }
}
