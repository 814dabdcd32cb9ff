// Comparison with another scores.json that the reader selects: paired over the windows that both contain. Metrics that
// eval.compare does not pair are left out, and the note says why.
const JUDGED = "adapter+reference" in scores.windows ? "adapter+reference" : "adapter";

function pairs(other, metric) { // [this, other] of every window that both measured
  const index = new Map(other.clips.map((clip, i) => [clip.key, i]));
  const values = scores.windows[JUDGED][metric], others = other.windows[JUDGED][metric];
  return scores.clips.map((clip, i) => [values[i], others[index.get(clip.key)]]).filter(([a, b]) => a != null && b != null);
}

const { redefined, measuredBy } = element("another").dataset; // JSON: tables of eval.metrics
const MEASURED_BY = JSON.parse(measuredBy), REDEFINED = JSON.parse(redefined);

const sorted = (facts) => JSON.stringify(Object.entries(facts).sort());
const scale = ({ controls = {} }) =>
  sorted(Object.fromEntries(Object.entries(controls).map(([name, own]) => [name, [own.metric, own.floor, own.ceiling]])));

function redefinedBetween(first, second) { // metrics whose definition changed between two numbers of definitions
  const [old, recent] = [first ?? 1, second ?? 1].sort((a, b) => a - b);
  return Object.entries(REDEFINED).filter(([number]) => old < number && number <= recent).flatMap(([, metrics]) => metrics);
}

function ofOtherWeights(first = {}, second = {}) { // metrics that two evaluations measured with different networks
  const names = Object.keys(first).filter((name) => name in second && first[name] !== second[name]);
  return names.flatMap((name) => MEASURED_BY[name] ?? [name]);
}

function obstacles(other) { // [what differs, whether this makes a metric incomparable], the widest first
  const here = scores.provenance, there = other.provenance;
  const redefinedMetrics = redefinedBetween(here.definitions, there.definitions);
  const others = ofOtherWeights(here.weights, there.weights);
  const readersDiffer = scores.readers && other.readers && sorted(scores.readers) !== sorted(other.readers);
  const differs = (metric, fact) => scores.metrics[metric][fact] !== other.metrics[metric][fact];
  return [
    ["other targets", () => here.shards.pairs !== there.shards.pairs],
    ["another protocol", () => here.protocol !== there.protocol],
    ["another title or unit", (metric) => ["title", "unit", "better"].some((fact) => differs(metric, fact))],
    ["another definition", (metric) => redefinedMetrics.includes(metric)],
    ["other weights of its network", (metric) => others.includes(metric)],
    ["another reader of the control", (metric) => readersDiffer && scores.metrics[metric].group === "structure"],
    ["another common scale of the controls", (metric) => metric === "agreement" && scale(scores) !== scale(other)],
  ];
}

function comparable(other) { // {metrics, note}: those to pair, and which others are left out for what reason
  const row = scores.windows[JUDGED], shared = Object.keys(row).filter((metric) => metric in other.windows[JUDGED]);
  const left = new Map(), metrics = [], checks = obstacles(other);
  for (const metric of shared) {
    const reason = checks.find(([, holds]) => holds(metric))?.[0];
    if (reason) left.set(reason, [...(left.get(reason) ?? []), scores.metrics[metric].title]);
    else metrics.push(metric);
  }
  const texts = [...left].map(([reason, titles]) => `${titles.length === shared.length ? "all metrics" : titles.join(", ")} (${reason})`);
  return { metrics, note: texts.length ? `; left out: ${texts.join("; ")}` : "" };
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
    const { metrics, note: leftOut } = comparable(other);
    note.value = `${other.task}: ${other.adapter.path}${leftOut}`;
    if (!metrics.length) return;
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
