// The page put together: the runs behind any number, what the tables are, and what happens when something is chosen.
"use strict";

const RUN_COLUMNS = ["run_id", "seed", "status", "score", "train_loss", "test_loss", "bits", "wall_seconds"];
const HIDDEN = ["row", "label", "is_bound", "mean_low", "mean_high", "gap_low", "gap_high"];
const TITLES = {
  rows: "Rows", contrasts: "Comparisons", runs: "Runs", tuning: "Trials", pairs: "Pairs", scores: "Scores by step",
  timings: "Timed steps",
};
const RULES = { held_out: "validation score", training_loss: "training loss", sensitivity: "neighbouring learning rates" };

const scrolled = (html, name) => `<div class="scroll" tabindex="0" role="region" aria-label="${escaped(name)}">${html}</div>`;
const codeHtml = (lines) => `<pre tabindex="0">${lines.map(escaped).join("\n")}</pre>`;
const listHtml = (pairs) => `<dl>${pairs.filter(([, value]) => known(value)).map(([name, value]) =>
  `<div><dt>${escaped(name.replaceAll("_", " "))}</dt><dd>${escaped(digits(value, true))}</dd></div>`).join("")}</dl>`;

/** The commands that repeat runs of this experiment and no others: one a row, with its seeds. */
function commandsOf(runs) {
  const [run] = EXPERIMENT.commands;
  if (!known(run)) return [];
  const rows = [...Map.groupBy(runs, (run) => run.trial ?? run.row)];
  return rows.map(([row, of]) => {
    const seeds = [...new Set(of.map((each) => each.seed))].sort((a, b) => a - b);
    const tuning = known(of[0].trial) && !run.includes("--tuning") ? " --tuning" : "";
    return `${run}${tuning} --rows ${row} --seeds ${seeds.join(" ")}`;
  });
}

/** How long runs took, one after the other, in words; empty where it is not known. */
function tookText(runs) {
  const seconds = runs.reduce((sum, run) => sum + (run.wall_seconds ?? 0), 0);
  if (!seconds) return "";
  if (seconds < 90) return ` (${Math.ceil(seconds)} s here)`;
  return seconds < 5400 ? ` (${Math.round(seconds / 60)} minutes here)` : ` (${(seconds / 3600).toFixed(1)} hours here)`;
}

function runsHtml(runs, caption) {
  const columns = RUN_COLUMNS.filter((name) => runs.some((run) => known(run[name])));
  return `${scrolled(tableHtml(runs, columns, { caption, all: true }), caption)}
    <p>To repeat ${runs.length === 1 ? "it" : "them"}${tookText(runs)}, in a folder of results that has none of these runs:</p>
    ${codeHtml(commandsOf(runs))}`;
}

function openDetails(title, html) {
  element("details-title").textContent = title;
  element("details-body").innerHTML = html;
  element("details").showModal();
  element("details").scrollTop = 0;
}

/** Open rows with their settings and runs, after what `before` says; of some runs alone if their ids are given. */
function openRows(rows, { ids = null, before = "", title = null } = {}) {
  const parts = rows.map((row) => {
    const runs = (runsOf.get(row.row) ?? []).filter((run) => !ids || ids.includes(run.run_id));
    const settings = Object.entries(row).filter(([name]) => !HIDDEN.includes(name));
    return `<h3>${escaped(row.row)}</h3><p>${escaped(textOf(row))}.</p>${runsHtml(runs, `Runs of ${row.row}`)}
      <h4>Settings</h4>${listHtml(settings)}`;
  });
  openDetails(title ?? rows.map((row) => row.label).join(" and "), before + parts.join(""));
}

/** Open what is known of a method's step: how it is modelled, the timed steps, and the rows that it trains. */
function openTiming(method, model) {
  const count = (fits) => method.messages.filter(fits).length;
  const facts = [["workload", model.name], ["period", method.period], ["encoding and update (s)", method.codec_seconds || null],
    ["messages in a step", count((m) => m.every === 1)], ["messages once a period", count((m) => m.every > 1)]];
  const timed = (TABLES.timings ?? []).filter((line) => line.method === method.name && line.workload === model.name);
  const columns = Object.keys(timed[0] ?? {}).filter((name) =>
    !["method", "workload", "label"].includes(name) && timed.some((line) => known(line[name])));
  const clock = timed.length ? scrolled(tableHtml(timed, columns, { caption: "Timed steps" }), "Timed steps") : "";
  const before = `<h3>How its step is modelled</h3>${listHtml(facts)}${clock}<p>To time it again:</p>${codeHtml(model.commands)}`;
  openRows(rowsOfMethod(method), { before, title: method.label });
}

function openLine(name, line) {
  const told = listHtml(Object.entries(line));
  if (name === "tuning") {
    return openDetails(`Trial of ${line.row}`, told + runsHtml([line], "The trial's run"));
  }
  if (name === "timings") {
    const model = DATA.models.find((each) => each.name === line.workload);
    const method = model?.methods.find((each) => each.name === line.method);
    return method ? openTiming(method, model) : openDetails(line.label, told);
  }
  const rows = [line.row, line.reference].map((each) => rowNamed.get(each)).filter(Boolean);
  return openRows(rows, { ids: line.run_id ? [line.run_id] : null, before: name === "rows" ? "" : told });
}

function tables() {
  const shown = (line) => [line.row, line.reference].filter(known).every((row) => rowNamed.has(row) && isShown(rowNamed.get(row)));
  return Object.keys(TITLES).filter((name) => TABLES[name]?.length).map((name) => ({
    name, title: TITLES[name], lines: TABLES[name], columns: Object.keys(TABLES[name][0]), shown,
    open: (line) => openLine(name, line),
  }));
}

function fillChoices() {
  const option = ([value, text]) => `<option value="${escaped(value)}">${escaped(text)}</option>`;
  const fill = (id, pairs, value) => {
    element(id).innerHTML = pairs.map(option).join("");
    if (known(value)) element(id).value = value;
  };
  const used = (names, lines) => Object.entries(names).filter(([name]) => lines.some((line) => known(line[name])));
  const compared = ROWS.filter((row) => !row.is_bound && row.rule === ROWS[0].rule);
  const values = (name) => [...Map.groupBy(compared, (row) => row[name])].sort(([a], [b]) => a - b);
  fill("ratio", [["", "all"], ...values("ratio").map(([ratio]) => [ratio, digits(ratio)])], DATA.main_ratio);
  fill("length", [["", "all"], ...values("num_steps").map(([steps]) => [steps, digits(steps)])], baseline?.num_steps);
  fill("rule", [["", "any rule"], ...Object.entries(RULES).filter(([rule]) => ROWS.some((row) => row.rule === rule))], ROWS[0]?.rule);
  fill("relative", [...(baseline ? [["relative", `${GAP} against ${baselineName}`]] : []), ["absolute", "as they are"]]);
  fill("against", used(AGAINST, ROWS));
  fill("measure", used(MEASURES, SCORES));
  fill("progress-by", used(BY, SCORES));
  document.querySelector("#methods .checks").innerHTML = DATA.methods.map((m) => `<label style="--c:${m.colour}">
    <input type="checkbox" value="${escaped(m.label)}" ${m.on ? "checked" : ""}><svg class="swatch" width="14" height="14"
    viewBox="-7 -7 14 14" aria-hidden="true"><path d="${SHAPES[m.shape]}"/></svg>${escaped(m.label)}</label>`).join("");
}

/** What there are no numbers for is hidden, as the progress of runs with one score, and steps come first where none has more. */
function arrange() {
  element("about").textContent = DATA.about;
  element("loss").hidden = !ROWS.length;
  const hasProgress = new Set(SCORES.map((line) => line.step)).size > 1;
  element("progress").hidden = !hasProgress;
  for (const label of document.querySelectorAll("#choice details > label")) label.hidden = !ROWS.length;
  if (!ROWS.length || !hasProgress) element("main").prepend(element("speed"));
  if (innerWidth < 700) document.querySelector("#choice details").open = false;
}

function turnTheme() {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
}

function start() {
  arrange();
  fillChoices();
  const drawSpeed = speedSection(DATA.models);
  const drawTables = tablePanel(tables());
  const draw = () => {
    if (ROWS.length) drawScores();
    if (!element("progress").hidden) drawProgress();
    drawSpeed();
  };
  const drawAll = () => { draw(); drawTables(); };
  element("methods").addEventListener("change", (event) => { switchMethod(event.target.value, event.target.checked); drawAll(); });
  element("methods").addEventListener("click", (event) => {
    if (!("all" in event.target.dataset)) return;
    for (const box of document.querySelectorAll("#methods input")) {
      box.checked = Boolean(event.target.dataset.all);
      switchMethod(box.value, box.checked);
    }
    drawAll();
  });
  for (const id of ["rule", "length"]) element(id).addEventListener("change", drawAll);
  for (const id of ["relative", "against", "depth", "ratio", "measure", "progress-by", "less-baseline", "each-seed"])
    element(id).addEventListener("change", draw);
  element("theme").addEventListener("click", turnTheme);
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw();
  }).observe(document.body);
  chooseDepth();
  draw();
  keepInAddress();
}

start();
