// The grid of windows: sorting, filtering, columns, and the per-frame lines.
const rows = all(".window");

function value(row) {
  const option = element("sort").selectedOptions[0], text = row.getAttribute(`data-${option.value}`);
  return text === null ? Infinity : (option.dataset.worst === "high" ? -1 : 1) * Number(text); // unmeasured: last
}

function arrange() {
  const metric = element("sort").value, few = Number(element("filter").value);
  const number = (row) => Number(row.id.slice("window-".length));
  const ordered = [...rows].sort((a, b) => (metric ? value(a) - value(b) : 0) || number(a) - number(b));
  const named = metric ? Math.min(5, Math.floor(rows.length / 2)) : 0;
  ordered.forEach((row, place) => {
    const last = ordered.length - 1 - place, rank = row.querySelector(".rank");
    row.hidden = few > 0 && place >= few && last >= few;
    rank.textContent = place < named ? `worst ${place + 1}` : last < named ? `best ${last + 1}` : "";
    rank.classList.toggle("best", place >= named);
  });
  element("rows").append(...ordered);
  element("count").value = `${ordered.filter((row) => !row.hidden).length} of ${ordered.length} windows`;
}

function reveal() { // follow a link to a window that the filter hides
  const row = document.querySelector(".window:target");
  if (row && row.hidden) {
    element("filter").value = "";
    arrange();
    row.scrollIntoView();
  }
}

const lines = all("svg.frames").map((svg) => ({
  svg,
  cursor: svg.querySelector(".cursor"),
  values: svg.dataset.values.split(" ").map(Number),
  width: svg.viewBox.baseVal.width,
}));

for (const { svg, values } of lines) {
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    seek(Math.floor(((event.clientX - box.left) / box.width) * values.length));
  });
  svg.classList.add("live");
}
followers.push((frame) => {
  for (const { cursor, values, width } of lines) {
    const x = ((Math.min(frame, values.length - 1) + 0.5) / values.length) * width;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
});

for (const box of all("input[name=column]")) {
  box.onchange = () => {
    for (const figure of all(`[data-column="${CSS.escape(box.value)}"]`)) figure.hidden = !box.checked;
  };
}
for (const id of ["sort", "filter"]) element(id).onchange = arrange;
addEventListener("hashchange", reveal);
document.querySelector(".grid-controls").hidden = false;
arrange();
reveal();
