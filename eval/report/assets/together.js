"use strict";
// All players of a group (a row, a tile) show the same frame. Videos that play on their own are often a frame apart, so
// every frame that a video presents is kept with its number, and drawn on a canvas over the video when all players of
// its group have it. Browsers that do not report frames show the videos themselves.
const KEPT = 8; // frames kept of each player
const STARVED = 400; // milliseconds without a common frame before all players of a group are sent to the same one
const reportsFrames = "requestVideoFrameCallback" in HTMLVideoElement.prototype;
const boxOf = (video) => video.closest("[data-fps]");

function cover(video) { // put a canvas over a player
  video.kept = [];
  if (!reportsFrames) return;
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true"); // the video has the label
  video.after(canvas);
  video.cover = canvas;
  video.addEventListener("emptied", () => { // another clip
    video.kept = [];
    boxOf(video).drawn = null;
  });
  const record = (now, meta) => {
    video.presented = { time: meta.mediaTime, at: meta.expectedDisplayTime };
    keep(video, Math.round(meta.mediaTime * timing(video).fps));
    video.requestVideoFrameCallback(record);
  };
  video.requestVideoFrameCallback(record);
}

function keep(video, number) { // the frame that the video presents now
  if (!near.has(video) || !video.cover.clientWidth) return;
  if (!video.kept.some((frame) => frame.number === number)) {
    const picture = video.kept.length < KEPT ? document.createElement("canvas") : video.kept.shift().picture;
    const inViewer = viewer.contains(video), shown = Math.ceil(video.cover.clientWidth * devicePixelRatio);
    const width = inViewer ? video.videoWidth : Math.min(video.videoWidth, shown);
    const height = Math.round((width * video.videoHeight) / video.videoWidth);
    if (picture.width !== width || picture.height !== height) Object.assign(picture, { width, height });
    picture.getContext("2d").drawImage(video, 0, 0, width, height);
    video.kept.push({ number, picture });
  }
  paint(boxOf(video));
}

function members(box) { // the players whose frames must be equal
  return all("video", box).filter((video) => video.cover && near.has(video) && !video.hidden && !video.error);
}

function paint(box) { // draw the common frame that is nearest to the clock
  const videos = members(box);
  if (!videos.length) return;
  const wanted = Math.min(frameOf(clock.position), Number(box.dataset.frames) - 1);
  const common = videos[0].kept.map((frame) => frame.number)
    .filter((number) => videos.every((video) => video.kept.some((frame) => frame.number === number)));
  const nearest = common.sort((a, b) => Math.abs(a - wanted) - Math.abs(b - wanted))[0];
  if (nearest === undefined || (!clock.playing && nearest !== wanted)) return;
  box.drawnAt = performance.now();
  const drawn = `${nearest} ${videos.map((video) => video.currentSrc.slice(-80)).join(" ")}`;
  if (box.drawn === drawn) return;
  box.drawn = drawn;
  for (const video of videos) {
    const { picture } = video.kept.find((frame) => frame.number === nearest), { cover } = video;
    if (cover.width !== picture.width || cover.height !== picture.height) {
      Object.assign(cover, { width: picture.width, height: picture.height });
    }
    cover.getContext("2d").drawImage(picture, 0, 0);
    cover.frame = nearest;
  }
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
