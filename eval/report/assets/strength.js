// The strength slider: shows every example at one strength, which the curves mark. Also the checkbox of the mask overlay.
const level = element("strength-level");

function scrub() {
  const strength = level.dataset.levels.split(" ")[level.value];
  const entry = scores.strength.find(({ s }) => s === Number(strength)), figure = entry.metrics[level.dataset.metric];
  const span = figure.low === null ? "" : ` (${figure.low.toFixed(3)} to ${figure.high.toFixed(3)})`;
  element("strength-figure").value = `${strength}: ${level.dataset.name} ${figure.mean.toFixed(3)}${span}`;
  level.setAttribute("aria-valuetext", `strength ${strength}`);
  for (const tile of all(".tile:has([data-level])")) {
    for (const video of all("[data-level]", tile)) video.hidden = video.dataset.level !== strength;
    tile.querySelector(".level").textContent = `strength ${strength}`;
  }
  for (const chart of all("svg.strength")) {
    const x = all("circle", chart)[level.value].getAttribute("cx"), cursor = chart.querySelector(".cursor");
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
}

if (level) {
  level.oninput = scrub;
  document.querySelector(".scrubber").hidden = false;
  const loader = new IntersectionObserver((entries) => { // preload all strengths of a tile
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) for (const video of all("video", target)) video.preload = "auto";
    }
  });
  all(".tile:has([data-level])").forEach((tile) => loader.observe(tile));
  scrub();
}
const overlay = element("overlay");
if (overlay) {
  overlay.closest("label").hidden = false;
  overlay.onchange = () => all("svg.overlay").forEach((svg) => svg.classList.toggle("away", !overlay.checked));
}
