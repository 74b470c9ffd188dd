// The figures of an experiment: what its rows lose, and how their runs went.
"use strict";

const AGAINST = {
  link_models: "models on each link", models_sent: "models sent by each worker", ratio: "compression ratio",
  num_steps: "steps of the run", learning_rate: "learning rate",
};
const MEASURES = {
  score: `score (${EXPERIMENT.unit})`, train_loss: "training loss", error_norm: "norm of the error",
  worker_distance: "distance of workers",
};
const BY = { step: "step", epoch: "epoch", bits_sent: "bits sent by each worker" };
const relative = () => element("relative").value === "relative";
const points = (share) => (FACTOR * share).toFixed(FACTOR === 1 ? 4 : 2);
const scaled = (share) => (known(share) ? FACTOR * share : undefined);

function textOf(row) {
  if (!known(row.mean)) return "no score";
  const score = `${points(row.mean)} ${EXPERIMENT.unit}`;
  if (!known(row.difference) || row === baseline) return score;
  const interval = known(row.difference_low) ? ` (${points(row.difference_low)} to ${points(row.difference_high)})` : "";
  return `${score}, ${points(row.difference)} ${EXPERIMENT.difference} against ${baselineName}${interval}`;
}

/** Ends of the score axis about the baseline's place: as deep as chosen, or as far as there is something; null for all. */
function depthOf(top, places, above = 0.25) {
  const depth = { margins: -4 * (EXPERIMENT.margin ?? 0), floor: floor ? floor.mean - baseline.mean : 0 };
  const worst = FACTOR * (depth[element("depth").value] ?? 0);
  if (!worst) return null;
  const lowest = top + 1.05 * worst, highest = top - above * worst, seen = places.filter((y) => y >= lowest && y <= highest);
  const margin = FACTOR * (EXPERIMENT.margin ?? 0);
  return [Math.min(top - 1.2 * margin, ...seen), Math.max(top + 0.2 * margin, ...seen)];
}

/** The score axis as it is chosen, relative or absolute: its ends, and lines at the baseline, the margin and floor. */
function scoreAxis(marks) {
  if (!baseline || !known(baseline.mean)) return { domain: null, references: [] };
  const top = relative() ? 0 : FACTOR * baseline.mean, margin = FACTOR * (EXPERIMENT.margin ?? 0);
  const references = [{ axis: "y", at: top, label: baselineName }];
  if (margin) references.push({ axis: "y", at: top, to: top - margin, label: "" });
  if (margin) references.push({ axis: "y", at: top - margin, label: `the margin, ${points(EXPERIMENT.margin)} ${EXPERIMENT.difference}` });
  if (floor) references.push({ axis: "y", at: top + FACTOR * (floor.mean - baseline.mean), label: floor.label });
  return { domain: depthOf(top, marks.flatMap((mark) => [mark.low, mark.y, mark.high])), references };
}

/** A row's place on that axis, with its interval; y is NaN where it has no score. */
function scoreOf(row) {
  const score = known(row.mean) ? Number(points(row.mean)) : null, text = textOf(row);
  if (!relative()) return { y: scaled(row.mean) ?? NaN, low: scaled(row.mean_low), high: scaled(row.mean_high), score, text };
  const y = row === baseline ? 0 : scaled(row.difference) ?? NaN;
  return { y, low: scaled(row.difference_low), high: scaled(row.difference_high), score, text };
}

function drawLoss() {
  const by = element("against").value, title = AGAINST[by];
  const rows = ROWS.filter((row) => isShown(row) && row[by] > 0 && Number.isFinite(scoreOf(row).y));
  element("loss-title").textContent = relative() ? `Each method against ${baselineName}: below it is worse` : "Score of each method";
  const marks = rows.map((row) => ({
    ...scoreOf(row), ...look(row.label), x: row[by], open: () => openRows([row]),
    name: `${row.label}, ratio ${digits(row.ratio)}, ${digits(row.num_steps)} steps: ${textOf(row)}`,
  }));
  const groupOf = (row) => (row.is_bound ? row.row : `${row.label}|${by === "num_steps" ? row.ratio : row.num_steps}`);
  const groups = Map.groupBy(rows.filter((row) => row !== baseline && row !== floor), groupOf);
  const lines = [...groups.values()].map((group) => ({
    ...look(group[0].label), tag: group[0].label, points: sorted(group, by, false).map((row) => [row[by], scoreOf(row).y]),
  }));
  const axis = scoreAxis(marks), name = relative() ? `${EXPERIMENT.difference} against ${baselineName}` : `${EXPERIMENT.metric} (${EXPERIMENT.unit})`;
  drawChart(document.querySelector("[data-chart=loss]"), {
    label: `Score against ${title}`, x: { label: title, log: true }, y: { label: name, domain: axis.domain },
    marks, lines, references: axis.references,
  });
}

/** Mean of some lines' measure at each step, as points {step, x, y}. */
function curveOf(lines, measure, by) {
  const factor = measure === "score" ? FACTOR : 1;
  const mean = (at, column) => at.reduce((sum, line) => sum + line[column], 0) / at.length;
  const steps = Map.groupBy(lines.filter((line) => known(line[measure])), (line) => line.step);
  return [...steps].map(([step, at]) => ({ step, x: mean(at, by), y: factor * mean(at, measure) }));
}

function drawProgress() {
  const measure = element("measure").value, by = element("progress-by").value, ratio = element("ratio").value;
  const less = element("less-baseline").checked && Boolean(baseline);
  const base = new Map((less ? curveOf(scoresOf.get(baseline.row) ?? [], measure, by) : []).map((p) => [p.step, p.y]));
  const rows = ROWS.filter((row) => isShown(row) && (!ratio || row.is_bound || row.ratio === Number(ratio)));
  const marks = [], lines = [];
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
          name: `${name}, step ${digits(p.step)}: ${digits(p.y)}, ${MEASURES[measure]}` });
    }
  }
  const near = less && measure === "score";
  drawChart(document.querySelector("[data-chart=progress]"), {
    label: "Progress of the runs", marks, lines, tagsRight: true, x: { label: BY[by] },
    y: { label: MEASURES[measure] + (less ? `, less ${baselineName}'s` : ""), domain: near ? depthOf(0, marks.map((mark) => mark.y), 1) : null },
    references: near ? [{ axis: "y", at: 0, label: baselineName }] : [],
  });
}
