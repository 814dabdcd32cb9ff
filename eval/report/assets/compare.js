// The viewer: any two columns of a window as a wipe, difference, blink, or side by side, with zoom.
const stage = element("stage"), picture = element("picture");
const [under, over, upper] = [element("under"), element("over"), element("upper")];
const MODES = ["wipe", "difference", "blink", "side"];
const BLINK = 500; // milliseconds; more than three flashes a second can trigger seizures
const view = { row: null, zoom: 1, x: 0, y: 0, timer: 0 };
const figures = (row) => all("[data-column]", row);
const shownRows = () => [...element("rows").children].filter((row) => !row.hidden);

function choices(row) {
  const titles = figures(row).map((figure) => figure.dataset.column);
  const judged = titles.includes("adapter + reference") ? "adapter + reference" : "adapter";
  for (const [id, fallback] of [["first", judged], ["second", "target"]]) {
    const select = element(id), previous = select.value;
    select.replaceChildren(...titles.map((title) => new Option(title, title)));
    select.value = titles.includes(previous) ? previous : titles.includes(fallback) ? fallback : titles[0];
  }
}

function load() {
  for (const [id, video] of [["first", under], ["second", over]]) {
    const figure = figures(view.row).find((candidate) => candidate.dataset.column === element(id).value);
    const { src } = figure.querySelector("video");
    if (video.src !== src) video.src = src;
    video.setAttribute("aria-label", element(id).value);
  }
  refresh();
}

function open(row) {
  view.row = row;
  stage.dataset.fps = row.dataset.fps;
  stage.dataset.frames = row.dataset.frames;
  element("viewer-title").textContent = row.querySelector("h3").dataset.key;
  choices(row);
  load();
  if (!viewer.open) viewer.showModal();
  draw();
}

function draw() {
  const mode = element("mode").value, edge = element("wipe").value;
  stage.dataset.mode = mode;
  element("wipe-label").hidden = mode !== "wipe";
  element("gain-label").hidden = mode !== "difference";
  upper.style.clipPath = mode === "wipe" ? `inset(0 0 0 ${edge}%)` : "";
  picture.style.setProperty("--edge", `${edge}%`);
  picture.style.filter = mode === "difference" ? `brightness(${element("gain").value})` : "";
  picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  element("zoom").value = `${Math.round(view.zoom * 100)} %`;
  clearInterval(view.timer);
  upper.classList.remove("away");
  if (mode === "blink" && viewer.open) view.timer = setInterval(() => upper.classList.toggle("away"), BLINK);
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) { // keeps the point (x, y) of the stage fixed
  const next = Math.min(Math.max(view.zoom * factor, 1), 16), by = next / view.zoom;
  const [left, top] = [x - picture.offsetLeft, y - picture.offsetTop];
  Object.assign(view, { zoom: next, x: left - (left - view.x) * by, y: top - (top - view.y) * by });
  if (next === 1) Object.assign(view, { x: 0, y: 0 });
  draw();
}

function drag(event) {
  if (event.buttons !== 1) return;
  if (element("mode").value === "wipe" && !event.shiftKey) {
    const box = picture.getBoundingClientRect();
    element("wipe").value = ((event.clientX - box.left) / box.width) * 100;
  } else if (view.zoom > 1) {
    view.x += event.movementX;
    view.y += event.movementY;
  }
  draw();
}

function exchange() {
  const [first, second] = [element("first"), element("second")];
  [first.value, second.value] = [second.value, first.value];
  load();
}

function turn(by) { // to another visible window
  const visible = shownRows(), next = visible[visible.indexOf(view.row) + by];
  if (next) open(next);
}

function choose(mode) {
  element("mode").value = mode;
  draw();
}

const onScreen = (row) => row.getBoundingClientRect().bottom > innerHeight / 4;
const inViewer = (action) => (event) => viewer.open && action(event);
MODES.forEach((mode, i) => { keys[i + 1] = inViewer(() => choose(mode)); });
Object.assign(keys, {
  x: inViewer(exchange),
  "+": inViewer(() => zoom(1.5)),
  "=": inViewer(() => zoom(1.5)),
  "-": inViewer(() => zoom(1 / 1.5)),
  0: inViewer(() => zoom(0)), ArrowUp: inViewer(() => turn(-1)), ArrowDown: inViewer(() => turn(1)),
  c: () => viewer.open || open(shownRows().find(onScreen) ?? shownRows()[0]),
});
for (const id of ["first", "second"]) element(id).onchange = load;
for (const id of ["mode", "wipe", "gain"]) element(id).oninput = draw;
element("exchange").onclick = exchange;
element("in").onclick = () => zoom(1.5);
element("out").onclick = () => zoom(1 / 1.5);
element("previous").onclick = () => turn(-1);
element("next").onclick = () => turn(1);
element("close").onclick = () => viewer.close();
viewer.onclose = () => {
  draw();
  refresh();
};
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  drag(event);
});
stage.addEventListener("pointermove", drag);
stage.addEventListener("wheel", (event) => {
  const box = stage.getBoundingClientRect();
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
for (const row of rows) {
  const button = row.querySelector(".compare");
  button.hidden = false;
  button.onclick = () => open(row);
}
