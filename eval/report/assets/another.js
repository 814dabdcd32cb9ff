// Comparison with another scores.json that the reader selects: paired over the windows that both contain.
const ADAPTER_REFERENCE = "adapter+reference";

function pairs(other, metric) { // [this, other] of every window that both measured
  const index = new Map(other.clips.map((clip, i) => [clip.key, i]));
  const values = scores.windows[ADAPTER_REFERENCE][metric], others = other.windows[ADAPTER_REFERENCE][metric];
  return scores.clips.map((clip, i) => [values[i], others[index.get(clip.key)]]).filter(([a, b]) => a != null && b != null);
}

function line(metric, other) {
  const { title, unit, better } = scores.metrics[metric], both = pairs(other, metric), digits = unit ? 2 : 3;
  const mean = (values) => (values.reduce((sum, value) => sum + value, 0) / values.length).toFixed(digits);
  const sign = better === "low" ? -1 : 1, wins = both.filter(([a, b]) => sign * (a - b) > 0).length;
  const differences = both.map(([a, b]) => a - b);
  const columns = [both.map(([a]) => a), both.map(([, b]) => b), differences];
  const figures = columns.map((column) => (column.length ? mean(column) : "–"));
  return [unit ? `${title}, ${unit}` : title, ...figures, better ? `${wins} of ${both.length}` : "–"];
}

function rowOf(texts, kind, head) {
  const row = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(i === 0 || kind === "th" ? "th" : "td");
    if (cell.tagName === "TH") cell.scope = head;
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

async function compareWith(file) {
  const table = element("another-table"), note = element("another-note");
  table.replaceChildren();
  try {
    const other = JSON.parse(await file.text());
    if (other.schema !== scores.schema) throw new SyntaxError(`schema ${other.schema}`);
    const metrics = Object.keys(scores.windows[ADAPTER_REFERENCE]).filter((metric) => metric in other.windows[ADAPTER_REFERENCE]);
    note.value = `${other.task}: ${other.adapter.path}`;
    const head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(rowOf(["metric", "this", "other", "this - other, paired", "windows better here"], "th", "col"));
    body.append(...metrics.map((metric) => rowOf(line(metric, other), "td", "row")));
    table.append(head, body);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    note.value = `${file.name} is not a scores.json of schema ${scores.schema} (${error.message})`;
  }
}

element("another-file").onchange = ({ target }) => target.files.length && compareWith(target.files[0]);
element("another").hidden = false;
