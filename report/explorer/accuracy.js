// The figures of an experiment: how its rows score, and how their runs went.
"use strict";

const AGAINST = {
  link_models: "models on each link", models_sent: "models sent by each worker", ratio: "compression ratio",
  num_steps: "steps of the run", learning_rate: "learning rate",
};
const MEASURES = {
  score: `${EXPERIMENT.metric} (${EXPERIMENT.unit})`, train_loss: "training loss", error_norm: "norm of the error",
  worker_distance: "distance of workers",
};
const BY = { step: "step", epoch: "epoch", bits_sent: "bits sent by each worker" };
const relative = () => element("relative").value === "relative";
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const points = (share) => (FACTOR * share).toFixed(FACTOR === 1 ? 4 : 2);
const onAxis = (score) => (known(score) ? SIGN * FACTOR * score : undefined);
const turned = (v) => digits(v ? -v : 0); // the numbers of an axis that is drawn downwards
const GAP = EXPERIMENT.gap; // "accuracy drop", "loss gap": positive where a row is worse than the baseline

function textOf(row) {
  if (!known(row.mean)) return "no score";
  const score = `${points(row.mean)} ${EXPERIMENT.unit}`;
  if (!known(row.gap) || row === baseline) return score;
  const verdict = known(row.verdict) ? `: ${row.verdict}` : "";
  const interval = known(row.gap_low) ? ` (95 % CI ${points(row.gap_low)} to ${points(row.gap_high)})` : "";
  return `${score}, ${GAP} ${points(row.gap)} ${EXPERIMENT.gap_unit} against ${baselineName}${interval}${verdict}`;
}

/** Ends of the score axis about the baseline's place: as deep as chosen, or as far as there is something; null for all. */
function depthOf(top, places, above = 0.25) {
  const depth = { margins: -4 * (EXPERIMENT.margin ?? 0), floor: floor ? SIGN * (floor.mean - baseline.mean) : 0 };
  const worst = FACTOR * (depth[element("depth").value] ?? 0);
  if (!worst) return null;
  const lowest = top + 1.05 * worst, highest = top - above * worst, seen = places.filter((y) => y >= lowest && y <= highest);
  const margin = FACTOR * (EXPERIMENT.margin ?? 0);
  return [Math.min(top - 1.2 * margin, ...seen), Math.max(top + 0.2 * margin, ...seen)];
}

/**
 * Choose the least depth at which most of the declared rows are within the axis, or where none was declared of those shown,
 * so that a page opens on what was found. A few may lie beyond, where they are drawn hollow at its end.
 */
function chooseDepth() {
  if (!baseline || !known(baseline.mean)) return;
  const declared = new Set((TABLES.contrasts ?? []).flatMap((line) => [line.row, line.reference]));
  const shown = ROWS.filter((row) => isShown(row) && row !== baseline && row !== floor && Number.isFinite(scoreOf(row).y));
  const asked = shown.filter((row) => declared.has(row.row)), wanted = asked.length ? asked : shown;
  const least = 0.75 * wanted.length, top = relative() ? 0 : onAxis(baseline.mean);
  const places = wanted.map((row) => scoreOf(row).y);
  for (const depth of ["margins", "floor", "all"]) {
    element("depth").value = depth;
    const ends = depthOf(top, places) ?? [-Infinity, Infinity];
    if (places.filter((y) => y >= ends[0] && y <= ends[1]).length >= least) return;
  }
}

/** The score axis as it is chosen, relative or absolute: its ends, and lines at the baseline, the margin and floor. */
function scoreAxis(marks) {
  if (!baseline || !known(baseline.mean)) return { domain: null, references: [] };
  const top = relative() ? 0 : onAxis(baseline.mean), margin = FACTOR * (EXPERIMENT.margin ?? 0);
  const references = [{ axis: "y", at: top, label: baselineName }];
  if (margin) references.push({ axis: "y", at: top, to: top - margin, label: "" });
  if (margin) references.push({ axis: "y", at: top - margin, label: `the margin, ${points(EXPERIMENT.margin)} ${EXPERIMENT.gap_unit}` });
  if (floor) references.push({ axis: "y", at: top + onAxis(floor.mean) - onAxis(baseline.mean), label: floor.label });
  return { domain: depthOf(top, marks.flatMap((mark) => [mark.low, mark.y, mark.high])), references };
}

/** What that axis says: gaps are drawn downwards, and its numbers are positive where a row is worse. */
function scoreLabel(absolute) {
  if (relative()) return { label: `${GAP} against ${baselineName} (${EXPERIMENT.gap_unit})`, format: turned };
  return SIGN < 0 ? { label: absolute, format: turned } : { label: absolute };
}

/** A row's place on that axis, with its interval; y is NaN where it has no score. */
function scoreOf(row) {
  const score = known(row.mean) ? Number(points(row.mean)) : null, text = textOf(row);
  if (!relative()) {
    const ends = [onAxis(row.mean_low), onAxis(row.mean_high)].filter(known).sort((a, b) => a - b);
    return { y: onAxis(row.mean) ?? NaN, low: ends[0], high: ends.at(-1), score, text };
  }
  // Gaps are drawn downwards, so that what is better stands above on every axis of scores.
  const down = (gap) => (known(gap) ? -FACTOR * gap : undefined);
  const y = row === baseline ? 0 : down(row.gap) ?? NaN;
  return { y, low: down(row.gap_high), high: down(row.gap_low), score, text };
}

function drawScores() {
  const by = element("against").value, title = AGAINST[by];
  const rows = ROWS.filter((row) => isShown(row) && row[by] > 0 && Number.isFinite(scoreOf(row).y));
  element("loss-title").textContent = relative() ? `${capital(GAP)} against ${baselineName}` : "Score of each method";
  const marks = rows.map((row) => ({
    ...scoreOf(row), ...look(row.label), x: row[by], open: () => openRows([row]),
    name: `${row.label}, ratio ${digits(row.ratio)}, ${digits(row.num_steps)} steps: ${textOf(row)}`,
  }));
  const groupOf = (row) => (row.is_bound ? row.row : `${row.label}|${by === "num_steps" ? row.ratio : row.num_steps}`);
  const groups = Map.groupBy(rows.filter((row) => row !== baseline && row !== floor), groupOf);
  const lines = [...groups.values()].map((group) => ({
    ...look(group[0].label), tag: group[0].label, points: sorted(group, by, false).map((row) => [row[by], scoreOf(row).y]),
  }));
  const axis = scoreAxis(marks), y = scoreLabel(`${EXPERIMENT.metric} (${EXPERIMENT.unit})`);
  drawChart(document.querySelector("[data-chart=loss]"), {
    label: `Score against ${title}`, x: { label: title, log: true }, y: { ...y, domain: axis.domain },
    marks, lines, references: axis.references,
  });
}

/** Mean of some lines' measure at each step, as points {step, x, y}. */
function curveOf(lines, measure, by) {
  const factor = measure === "score" ? SIGN * FACTOR : 1;
  const mean = (at, column) => at.reduce((sum, line) => sum + line[column], 0) / at.length;
  const steps = Map.groupBy(lines.filter((line) => known(line[measure])), (line) => line.step);
  return [...steps].map(([step, at]) => ({ step, x: mean(at, by), y: factor * mean(at, measure) }));
}

function drawProgress() {
  const measure = element("measure").value, by = element("progress-by").value, ratio = element("ratio").value;
  const less = element("less-baseline").checked && Boolean(baseline);
  const base = new Map((less ? curveOf(scoresOf.get(baseline.row) ?? [], measure, by) : []).map((p) => [p.step, p.y]));
  const rows = ROWS.filter((row) => isShown(row) && (!ratio || row.is_bound || row.ratio === Number(ratio)));
  const marks = [], lines = [], near = less && measure === "score";
  const label = near ? `${GAP} against ${baselineName} (${EXPERIMENT.gap_unit})`
    : MEASURES[measure] + (less ? `, less ${baselineName}'s` : "");
  const absolute = measure === "score" && SIGN < 0 ? turned : digits, format = near ? turned : absolute;
  const nameOf = (y) => (near ? `${GAP} ${turned(y)} ${EXPERIMENT.gap_unit} against ${baselineName}`
    : `${format(y)}, ${label}`);
  for (const row of rows.filter((each) => !(less && each === baseline))) {
    const own = scoresOf.get(row.row) ?? [], title = row.is_bound || ratio ? row.label : `${row.label} ${digits(row.ratio)}`;
    const curves = element("each-seed").checked ? [...Map.groupBy(own, (line) => line.seed)] : [[null, own]];
    for (const [seed, scores] of curves) {
      const curve = curveOf(scores, measure, by).filter((p) => !less || base.has(p.step))
        .map((p) => ({ ...p, y: p.y - (less ? base.get(p.step) : 0) }));
      const name = seed === null ? title : `${title}, seed ${seed}`;
      lines.push({ ...look(row.label), points: curve.map((p) => [p.x, p.y]), tag: seed === null ? title : "" });
      for (const p of curve.filter((each) => Number.isFinite(each.y)))
        marks.push({ ...p, ...look(row.label), open: () => openRows([row]),
          name: `${name}, step ${digits(p.step)}: ${nameOf(p.y)}` });
    }
  }
  drawChart(document.querySelector("[data-chart=progress]"), {
    label: "Progress of the runs", marks, lines, tagsRight: true, x: { label: BY[by] },
    y: { label, format, domain: near ? depthOf(0, marks.map((mark) => mark.y), 1) : null },
    references: near ? [{ axis: "y", at: 0, label: baselineName }] : [],
  });
}
