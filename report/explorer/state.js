// What the page knows and what is switched on: the payload's tables, and the methods, length and rule that are shown.
"use strict";

const element = (id) => document.getElementById(id);
const known = (value) => value !== null && value !== undefined && value !== "";
const DATA = JSON.parse(element("payload").textContent);
const TABLES = Object.fromEntries(Object.entries(DATA.tables).map(([name, table]) => [name, objectsOf(table)]));
const EXPERIMENT = DATA.experiment ?? { commands: [], factor: 100, unit: "%", gap: "accuracy drop", gap_unit: "points" };
const FACTOR = EXPERIMENT.factor; // from a share to percent, or 1
const SIGN = EXPERIMENT.sign ?? 1; // -1 of a test loss, of which less is better: it is drawn downwards
const ROWS = TABLES.rows ?? [], RUNS = TABLES.runs ?? [], SCORES = TABLES.scores ?? [];
const rowNamed = new Map(ROWS.map((row) => [row.row, row]));
const runsOf = Map.groupBy(RUNS, (run) => run.row), scoresOf = Map.groupBy(SCORES, (line) => line.row);
const baseline = rowNamed.get(EXPERIMENT.baseline), floor = rowNamed.get(EXPERIMENT.floor);
const baselineName = baseline?.label ?? "the baseline";

const LOOKS = new Map(DATA.methods.map((method) => [method.label, method]));
const look = (label) => ({ colour: LOOKS.get(label)?.colour ?? "#777777", shape: LOOKS.get(label)?.shape ?? 0 });
const chosen = new Set(DATA.methods.filter((method) => method.on).map((method) => method.label));
const rowsOfMethod = (method) => method.rows.map((name) => rowNamed.get(name)).filter(Boolean);

function switchMethod(label, on) {
  if (on) chosen.add(label);
  else chosen.delete(label);
}

/** Whether the row's method, length and rule are switched on. */
function isShown(row) {
  const length = element("length").value, rule = element("rule").value;
  return chosen.has(row.label) && (!length || row.num_steps === Number(length)) && (!rule || row.rule === rule);
}
