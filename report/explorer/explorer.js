// The page: what is switched on, the figures of loss and progress, the tables, and the runs behind any number.
"use strict";

const element = (id) => document.getElementById(id);
const DATA = JSON.parse(element("payload").textContent);
const TABLES = Object.fromEntries(Object.entries(DATA.tables).map(([name, table]) => [name, objectsOf(table)]));
const EXPERIMENT = DATA.experiment ?? { commands: [], factor: 100, unit: "%" };
const FACTOR = EXPERIMENT.factor; // from a share to percent, or 1
const ROWS = TABLES.rows ?? [], RUNS = TABLES.runs ?? [], SCORES = TABLES.scores ?? [];
const rowNamed = new Map(ROWS.map((row) => [row.row, row]));
const runsOf = Map.groupBy(RUNS, (run) => run.row), scoresOf = Map.groupBy(SCORES, (line) => line.row);
const baseline = rowNamed.get(EXPERIMENT.baseline), floor = rowNamed.get(EXPERIMENT.floor);
const baselineName = baseline?.label ?? "the baseline";
const points = (share) => (FACTOR * share).toFixed(2);

const LOOKS = new Map(DATA.methods.map((method) => [method.label, method]));
const look = (label) => LOOKS.get(label) ?? { colour: "#777777", shape: 0 };
const chosen = new Set(DATA.methods.filter((method) => method.on).map((method) => method.label));
const SPEED_ROWS = (method) => (method.rows ?? []).map((name) => rowNamed.get(name)).filter(Boolean);

/** Whether the row's method, length and rule are switched on. */
function isShown(row) {
  const length = element("length").value, rule = element("rule").value;
  return chosen.has(row.label) && (!length || row.num_steps === Number(length)) && (!rule || row.rule === rule);
}

// ---- loss -------------------------------------------------------------------------------------------------------

const AGAINST = {
  link_models: "models on each link", models_sent: "models sent by each worker", ratio: "compression ratio",
  num_steps: "steps of the run", learning_rate: "learning rate",
};
const relative = () => element("relative").value === "relative";

function textOf(row) {
  const score = `${points(row.mean)} ${EXPERIMENT.unit}`, low = row.difference_low;
  if (row.mean === null) return "no score";
  const gap = row.difference === null || row === baseline ? "" : `, ${points(row.difference)} points against ${baselineName}` +
    (low === null ? "" : ` (${points(low)} to ${points(row.difference_high)})`);
  return score + gap;
}

/** Ends of the score axis around the baseline's place: so many margins, the floor, or null for all that there is. */
function depthOf(top) {
  const worst = { margins: -4 * (EXPERIMENT.margin ?? 0), floor: floor ? floor.mean - baseline.mean : 0 }[element("depth").value];
  return worst ? [top + 1.05 * FACTOR * worst, top - 0.25 * FACTOR * worst] : null;
}

/** A row's place on the score axis, relative or absolute, with the axis' ends and reference lines. */
function scoreOf(row) {
  const isRelative = relative(), less = isRelative ? baseline?.mean ?? 0 : 0;
  const [y, low, high] = isRelative ? [row.difference ?? (row === baseline ? 0 : null), row.difference_low, row.difference_high] : [row.mean, row.mean_low, row.mean_high];
  const out = (share) => (share === null || share === undefined ? undefined : FACTOR * share);
  const margin = EXPERIMENT.margin ?? 0;
  const references = baseline ? [{ axis: "y", at: FACTOR * (baseline.mean - less), label: baselineName }] : [];
  if (baseline && margin) references.push({ axis: "y", at: FACTOR * (baseline.mean - less), to: FACTOR * (baseline.mean - less - margin), label: "" },
    { axis: "y", at: FACTOR * (baseline.mean - less - margin), label: `the margin, ${points(margin)} points` });
  if (floor) references.push({ axis: "y", at: FACTOR * (floor.mean - less), label: floor.label });
  const domain = baseline ? depthOf(FACTOR * (baseline.mean - less)) : null;
  return { y: out(y) ?? NaN, low: out(low), high: out(high), score: row.mean === null ? null : Number(points(row.mean)), references, domain, text: textOf(row) };
}

function drawLoss() {
  const by = element("against").value, rows = ROWS.filter((row) => isShown(row) && row.mean !== null && row[by] > 0), title = AGAINST[by];
  element("loss-title").textContent = relative() ? `What each method loses against ${baselineName}` : "Score of each method";
  const marks = rows.map((row) => ({ ...scoreOf(row), x: row[by], ...look(row.label), open: () => openRows([row]),
    name: `${row.label}, ratio ${digits(row.ratio)}, ${digits(row.num_steps)} steps: ${scoreOf(row).text}` })).filter((mark) => Number.isFinite(mark.y));
  const groups = Map.groupBy(rows.filter((row) => !row.is_bound), (row) => `${row.label}|${by === "num_steps" ? row.ratio : row.num_steps}`);
  const lines = [...groups.values()].map((group) => ({ tag: group[0].label, ...look(group[0].label),
    points: sorted(group.map((row) => ({ x: row[by], y: scoreOf(row).y })), "x", false).map((p) => [p.x, p.y]) }));
  rows.filter((row) => row.is_bound && row !== baseline && row !== floor).forEach((row) => lines.push({ tag: row.label, ...look(row.label), points: [[row[by], scoreOf(row).y]] }));
  const { references, domain } = scoreOf(baseline ?? rows[0] ?? {});
  drawChart(document.querySelector("[data-chart=loss]"), { label: `Score against ${title}`, x: { label: title, log: true },
    y: { label: relative() ? `points against ${baselineName}` : `${EXPERIMENT.metric} (${EXPERIMENT.unit})`, domain }, marks, lines, references });
}

// ---- progress ---------------------------------------------------------------------------------------------------

const MEASURES = { score: `score (${EXPERIMENT.unit})`, train_loss: "training loss", error_norm: "norm of the error", worker_distance: "distance of workers" };

function curvesOf(row) {
  const measure = element("measure").value, by = element("progress-by").value, factor = measure === "score" ? FACTOR : 1;
  const groups = element("each-seed").checked ? Map.groupBy(scoresOf.get(row.row) ?? [], (line) => line.seed) : new Map([["", scoresOf.get(row.row) ?? []]]);
  const mean = (lines, of) => lines.reduce((sum, line) => sum + of(line), 0) / lines.length;
  return [...groups].map(([seed, lines]) => ({ seed, points: [...Map.groupBy(lines.filter((l) => l[measure] !== null), (line) => line.step)]
    .map(([step, at]) => ({ step, x: mean(at, (l) => l[by]), y: factor * mean(at, (l) => l[measure]) })) }));
}

function drawProgress() {
  const measure = element("measure").value, less = element("less-baseline").checked && baseline;
  const base = new Map(less ? [...Map.groupBy(SCORES.filter((l) => l.row === baseline.row), (l) => l.step)]
    .map(([step, at]) => [step, (measure === "score" ? FACTOR : 1) * at.reduce((sum, l) => sum + l[measure], 0) / at.length]) : []);
  const marks = [], lines = [];
  const ratio = element("ratio").value, fits = (row) => isShown(row) && (!ratio || row.is_bound || row.ratio === Number(ratio));
  for (const row of ROWS.filter((each) => fits(each) && !(less && each === baseline))) for (const { seed, points: found } of curvesOf(row)) {
    const kept = found.filter((p) => !less || base.has(p.step)).map((p) => ({ ...p, y: p.y - (less ? base.get(p.step) : 0) }));
    const name = row.is_bound || ratio ? row.label : `${row.label} ${digits(row.ratio)}`;
    lines.push({ points: kept.map((p) => [p.x, p.y]), ...look(row.label), tag: seed === "" ? name : "" });
    for (const p of kept) marks.push({ ...p, ...look(row.label), open: () => openRows([row]),
      name: `${name}${seed === "" ? "" : `, seed ${seed}`}, step ${digits(p.step)}: ${digits(p.y)} ${MEASURES[measure]}` });
  }
  const view = less && measure === "score" ? { domain: depthOf(0), references: [{ axis: "y", at: 0, label: baselineName }] } : { domain: null, references: [] };
  drawChart(document.querySelector("[data-chart=progress]"), { label: "Progress of the runs", tagsRight: true, references: view.references, marks: marks.filter((m) => Number.isFinite(m.y)), lines,
    x: { label: element("progress-by").selectedOptions[0].text }, y: { label: MEASURES[measure] + (less ? `, less ${baselineName}'s` : ""), domain: view.domain } });
}

// ---- the runs behind a number -----------------------------------------------------------------------------------

const RUN_COLUMNS = ["run_id", "seed", "status", "score", "train_loss", "test_loss", "bits", "wall_seconds"];
const HIDDEN = new Set(["row", "label", "is_bound", "mean_low", "mean_high", "difference_low", "difference_high"]);
const known = (value) => value !== null && value !== undefined && value !== "";

function runsHtml(runs, caption) {
  const columns = RUN_COLUMNS.filter((name) => runs.some((run) => known(run[name])));
  const commands = [...new Set(runs.map((run) => run.command).filter(known))], again = commands.length ? commands : EXPERIMENT.commands;
  return `<div class="scroll" tabindex="0" role="region" aria-label="${escaped(caption)}">${tableHtml(runs, columns, { caption, all: true })}</div>
    <p>To repeat ${runs.length === 1 ? "it" : "them"}, in a folder of results that has none of these runs:</p><pre tabindex="0">${again.map(escaped).join("\n")}</pre>`;
}

const listHtml = (pairs) => `<dl>${pairs.filter(([, value]) => known(value)).map(([name, value]) =>
  `<div><dt>${escaped(String(name).replaceAll("_", " "))}</dt><dd>${escaped(digits(value, true))}</dd></div>`).join("")}</dl>`;

function openDetails(title, html) {
  element("details-title").textContent = title;
  element("details-body").innerHTML = html;
  element("details").showModal();
  element("details").scrollTop = 0;
}

/** Open rows with their settings and runs; of some runs alone if their ids are given. */
function openRows(rows, ids = null, before = "") {
  const parts = rows.map((row) => {
    const runs = (runsOf.get(row.row) ?? []).filter((run) => !ids || ids.includes(run.run_id));
    return `<h3>${escaped(row.row)}</h3><p>${escaped(textOf(row))}.</p>${runsHtml(runs, `Runs of ${row.row}`)}
      <h4>Settings</h4>${listHtml(Object.entries(row).filter(([name]) => !HIDDEN.has(name)))}`;
  });
  openDetails(rows.map((row) => row.label).join(" and ") || "Nothing behind this", before + parts.join(""));
}

function openTiming(method, model) {
  const facts = [["workload", model.name], ["period", method.period], ["encoding and update (s)", method.codec_seconds],
    ["messages in a step", method.messages.filter((m) => m.every === 1).length], ["messages once a period", method.messages.filter((m) => m.every > 1).length]];
  const timed = (TABLES.timings ?? []).filter((line) => line.method === method.name && line.workload === model.name);
  const columns = Object.keys(timed[0] ?? {}).filter((name) => !["method", "workload", "label"].includes(name) && timed.some((line) => known(line[name])));
  const clock = timed.length ? `<div class="scroll" tabindex="0" role="region" aria-label="Timed steps">${tableHtml(timed, columns, { caption: "Timed steps", all: false })}</div>` : "";
  openRows(SPEED_ROWS(method), null, `<h3>${escaped(method.label)}: how its step is modelled</h3>${listHtml(facts)}${clock}<p>To time it again:</p><pre tabindex="0">${
    model.commands.map(escaped).join("\n")}</pre>`);
  element("details-title").textContent = method.label;
}

const RULES = { held_out: "held-out score", training_loss: "training loss", sensitivity: "neighbouring rates" };

// ---- putting it together ----------------------------------------------------------------------------------------

const TITLES = { rows: "Rows", contrasts: "Declared contrasts", runs: "Runs", tuning: "Trials", pairs: "Pairs", scores: "Scores by step", timings: "Timed steps" };

function panels() {
  const openLine = (name) => (line) => {
    if (name === "tuning") return openDetails(`Trial of ${line.row}`, `${listHtml(Object.entries(line))}${runsHtml([line], "The trial's run")}`);
    if (name === "timings") return openTimed(line);
    const rows = [line.row, line.reference].map((each) => rowNamed.get(each)).filter(Boolean);
    return openRows(rows, line.run_id ? [line.run_id] : null, name === "rows" ? "" : listHtml(Object.entries(line)));
  };
  const shown = (line) => [line.row, line.reference].filter(known).every((name) => rowNamed.has(name) && isShown(rowNamed.get(name)));
  return Object.keys(TITLES).filter((name) => TABLES[name]?.length).map((name) => ({ name, title: TITLES[name], lines: TABLES[name],
    columns: Object.keys(TABLES[name][0]), open: openLine(name), shown }));
}

function openTimed(line) {
  const model = DATA.models.find((each) => each.name === line.workload), method = model?.methods.find((each) => each.name === line.method);
  return method ? openTiming(method, model) : openDetails(line.label ?? line.method, listHtml(Object.entries(line)));
}

function options(id, pairs, value) {
  element(id).innerHTML = pairs.map(([key, text]) => `<option value="${escaped(key)}">${escaped(text)}</option>`).join("");
  if (value !== undefined) element(id).value = value;
}

function start() {
  const count = (name) => Map.groupBy(ROWS.filter((row) => !row.is_bound && row.rule === ROWS[0].rule), (row) => row[name]);
  const values = (name) => [...count(name)].sort(([a], [b]) => a - b).map(([value, rows]) => [value, `${digits(value)} (${rows.length} rows)`]);
  element("about").textContent = DATA.about;
  options("ratio", [["", "all"], ...values("ratio").map(([value]) => [value, digits(value)])], String(DATA.main_ratio ?? ""));
  options("rule", [["", "any rule"], ...Object.entries(RULES).filter(([name]) => ROWS.some((row) => row.rule === name))], ROWS[0]?.rule);
  options("length", [["", "all"], ...values("num_steps")], baseline ? String(baseline.num_steps) : "");
  options("relative", [...(baseline ? [["relative", `less ${baselineName}'s`]] : []), ["absolute", "as they are"]]);
  options("against", Object.entries(AGAINST).filter(([name]) => ROWS.some((row) => row[name] > 0)));
  options("measure", Object.entries(MEASURES).filter(([name]) => SCORES.some((line) => known(line[name]))));
  options("progress-by", [["step", "step"], ["epoch", "epoch"], ["bits_sent", "bits sent by each worker"]].filter(([name]) => SCORES.some((line) => known(line[name]))));
  if (!SCORES.length) element("main").prepend(element("speed"));
  element("loss").hidden = !ROWS.length;
  element("progress").hidden = !SCORES.length;
  for (const label of document.querySelectorAll("#choice details > label")) label.hidden = !ROWS.length;
  document.querySelector("#methods .checks").innerHTML = DATA.methods.map((m) => `<label style="--c:${m.colour}"><input type="checkbox" value="${escaped(m.label)}" ${
    m.on ? "checked" : ""}><svg class="swatch" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><path d="${SHAPES[m.shape % SHAPES.length]}"/></svg>${escaped(m.label)}</label>`).join("");
  const drawSpeed = speedSection(DATA.models, element, { look: (m) => look(m.look ?? m.label), relative, scoreOf, baselineName, open: openTiming,
    rowOf: (method) => SPEED_ROWS(method)[0], isOn: (m) => !LOOKS.has(m.look ?? m.label) || chosen.has(m.look ?? m.label) });
  const drawTables = tablePanel(panels(), element);
  const draw = () => { if (ROWS.length) drawLoss(); if (SCORES.length) drawProgress(); drawSpeed(); };
  element("methods").addEventListener("change", (event) => { chosen[event.target.checked ? "add" : "delete"](event.target.value); draw(); drawTables(); });
  element("methods").addEventListener("click", (event) => {
    if (!("all" in event.target.dataset)) return;
    for (const box of document.querySelectorAll("#methods input")) { box.checked = Boolean(event.target.dataset.all); chosen[box.checked ? "add" : "delete"](box.value); }
    draw(); drawTables();
  });
  if (innerWidth < 700) document.querySelector("#choice details").open = false;
  for (const id of ["rule", "length"]) element(id).addEventListener("change", () => { draw(); drawTables(); });
  for (const id of ["relative", "against", "depth", "ratio", "measure", "progress-by", "less-baseline", "each-seed"]) element(id).addEventListener("change", draw);
  element("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  let width = 0;
  new ResizeObserver(() => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; draw(); } }).observe(document.body);
  draw();
}

start();
