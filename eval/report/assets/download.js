// Download links for scores.json and scores.csv, built from the data in the page.
function csv() {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const table = [["condition", "window", "recording", "metric", "value"]];
  for (const [row, metrics] of Object.entries(scores.windows)) {
    for (const [metric, values] of Object.entries(metrics)) {
      values.forEach((value, i) => {
        const { key, source } = scores.clips[i];
        table.push([quoted(row), quoted(key), quoted(source), metric, value ?? ""]);
      });
    }
  }
  return table.map((line) => line.join(",")).join("\r\n") + "\r\n";
}

const offer = (id, text, type) => { element(id).href = URL.createObjectURL(new Blob([text], { type })); };
offer("download-json", element("scores").textContent, "application/json");
offer("download-csv", csv(), "text/csv");
document.querySelector(".downloads").hidden = false;
refresh();
