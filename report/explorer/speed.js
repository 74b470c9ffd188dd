// Step times at any rate and compute time: the report's cost model, with each message's seconds on a grid of rates.
"use strict";

/** Value at x of a curve through points, straight between them in logarithms; beyond the ends as at the ends. */
function between(xs, ys, x) {
  const at = Math.min(Math.max(x, xs[0]), xs.at(-1));
  let i = xs.findIndex((each) => each >= at);
  if (i <= 0) i = 1;
  if (ys[i - 1] <= 0 || ys[i] <= 0) return ys[i];
  const share = Math.log(at / xs[i - 1]) / Math.log(xs[i] / xs[i - 1]);
  return Math.exp(Math.log(ys[i - 1]) * (1 - share) + Math.log(ys[i]) * share);
}

/** Messages queue on one link as they get ready; the codec comes after the passes and the last message. */
function queuedSeconds(messages, rates, rate, forward, backward, codec) {
  const sending = messages.map((message) => between(rates, message.seconds, rate));
  const drawn = messages.map((m) => m.ready.length).filter((count) => count > 1);
  const draws = drawn.length ? Math.min(...drawn) : 1;
  let sum = 0;
  for (let draw = 0; draw < draws; draw += 1) {
    const queue = messages.map((m, i) => [m.ready.length > 1 ? m.ready[draw] : m.ready[0], sending[i]]).sort((a, b) => a[0] - b[0]);
    let free = 0;
    for (const [share, seconds] of queue) free = Math.max(free, forward + share * backward) + seconds;
    sum += Math.max(forward + backward, free) + codec;
  }
  return sum / draws;
}

/** Mean seconds of a method's step over its period, on links of `rate` bits a second, with passes of `compute` seconds. */
function stepSeconds(model, method, rate, compute) {
  const share = model.forward_seconds / (model.forward_seconds + model.backward_seconds);
  const of = (messages) => queuedSeconds(messages, model.rates, rate, share * compute, (1 - share) * compute, method.codec_seconds);
  return ((method.period - 1) * of(method.messages.filter((m) => m.every === 1)) + of(method.messages)) / method.period;
}

const rateText = (bits) => (bits >= 1e9 ? `${digits(Number((bits / 1e9).toPrecision(3)))} Gb/s` : `${digits(Number((bits / 1e6).toPrecision(3)))} Mb/s`);
const secondsText = (s) => (s >= 1 ? `${digits(Number(s.toPrecision(3)))} s` : `${digits(Number((1e3 * s).toPrecision(3)))} ms`);

/** The section on speed; `rowOf` finds the scored row of a method, `look` its colour and shape. Returns what draws it. */
function speedSection(models, element, { rowOf, look, isOn, open, relative, scoreOf, baselineName }) {
  const section = element("speed");
  section.hidden = models.length === 0;
  if (!models.length) return () => {};
  const computes = [1e-3, 1], now = { model: models[0], rate: 10e9, compute: 0, baseline: null };
  const onLog = ([low, high], share) => Number((low * (high / low) ** share).toPrecision(3));
  const offLog = ([low, high], value) => Math.log(value / low) / Math.log(high / low);
  const ends = () => [now.model.rates[0], now.model.rates.at(-1)];
  element("workload").innerHTML = models.map((m, i) => `<option value="${i}">${escaped(m.name)}</option>`).join("");
  const choose = (index) => {
    now.model = models[index];
    now.compute = now.model.forward_seconds + now.model.backward_seconds;
    const baselines = now.model.methods.filter((m) => m.baseline);
    element("speed-baseline").innerHTML = [...(baselines.length ? [["best", "the best baseline"]] : []), ...now.model.methods.map((m) => [m.name, m.label])]
      .map(([value, text]) => `<option value="${escaped(value)}">${escaped(text)}</option>`).join("");
    element("rate").value = offLog(ends(), now.rate);
    element("compute").value = offLog(computes, now.compute);
  };
  const baseSeconds = (rate) => {
    const wanted = element("speed-baseline").value;
    const among = now.model.methods.filter((m) => (wanted === "best" ? m.baseline : m.name === wanted));
    return Math.min(...among.map((m) => stepSeconds(now.model, m, rate, now.compute)));
  };
  const frontierOf = (points) => {
    const best = [];
    for (const p of sorted(points, "x", false)) if (!best.length || p.y > best.at(-1).y) best.push(p);
    return best;
  };
  const draw = () => {
    const { model, rate, compute } = now, shown = model.methods.filter((m) => m.baseline || isOn(m)), base = baseSeconds(rate);
    const picked = element("speed-baseline").selectedOptions[0].text;
    element("rate-text").textContent = rateText(rate);
    element("compute-text").textContent = secondsText(compute);
    for (const [id, text] of [["rate", rateText(rate)], ["compute", secondsText(compute)]]) element(id).setAttribute("aria-valuetext", text);
    element("speed-badge").textContent = `Modelled: ${model.badge}`;
    const lines = shown.map((method) => ({ method, ...look(method), seconds: stepSeconds(model, method, rate, compute), row: rowOf(method) }))
      .map((l) => ({ ...l, speedup: base / l.seconds, open: () => open(l.method, model) }));
    const rates = Array.from({ length: 49 }, (_, i) => 1e9 * 100 ** (i / 48)), bases = rates.map(baseSeconds);
    const few = lines.filter((l) => !l.method.baseline || l.method.name === element("speed-baseline").value);
    drawChart(section.querySelector("[data-chart=speedup]"), {
      label: `Speed-up over ${picked} against the links' rate`, x: { label: "rate of each link (Gb/s)", log: true, format: (v) => digits(v / 1e9) },
      y: { label: "speed-up" },
      lines: few.map((l) => ({ points: rates.map((r, i) => [r, bases[i] / stepSeconds(model, l.method, r, compute)]), colour: l.colour, tag: l.method.label })), tagsRight: true,
      marks: few.map((l) => ({ x: rate, y: l.speedup, colour: l.colour, shape: l.shape, open: l.open,
        name: `${l.method.label}: ${digits(Number(l.speedup.toPrecision(3)))} times as fast as ${picked}, ${secondsText(l.seconds)} a step` })).filter((m) => m.x >= 1e9 && m.x <= 100e9),
      references: [{ axis: "y", at: 1, label: "as fast as the baseline" }, { axis: "x", at: Math.min(Math.max(rate, 1e9), 100e9) }],
    });
    const scored = lines.filter((l) => l.row && Number.isFinite(scoreOf(l.row).y))
      .map((l) => ({ ...l, ...scoreOf(l.row), x: l.seconds, name: `${l.method.label}: ${scoreOf(l.row).text}, ${secondsText(l.seconds)} a step` }));
    const best = frontierOf(scored);
    element("frontier-title").parentElement.hidden = !scored.length;
    if (scored.length) drawChart(section.querySelector("[data-chart=frontier]"), {
      label: "Score against step time", x: { label: "modelled step (ms)", log: true, format: (v) => digits(1e3 * v) },
      y: { label: relative() ? `points less than ${baselineName}` : "score", domain: scored[0].domain },
      marks: scored.map((l) => ({ ...l, tag: l.method.label, strong: best.includes(l) })),
      lines: [{ points: best.map((p) => [p.x, p.y]), colour: "var(--text)", dash: "5 3", kind: "frontier" }], references: scored[0].references,
    });
    const columns = ["method", "step (ms)", "speed-up", ...(scored.length ? ["score", "on the frontier"] : [])];
    const table = sorted(lines, "seconds", false).map((l) => ({ method: l.method.label, "step (ms)": Number((1e3 * l.seconds).toPrecision(4)),
      "speed-up": Number(l.speedup.toPrecision(4)), score: l.row ? scoreOf(l.row).score : null,
      "on the frontier": best.some((b) => b.method === l.method) ? "yes" : "", open: l.open }));
    element("speed-table").innerHTML = tableHtml(table, columns, { caption: `At ${rateText(rate)} and ${secondsText(compute)} of passes, over ${picked}`, opens: true });
    element("speed-table").onclick = (event) => { const line = event.target.closest("[data-line]"); if (line) table[Number(line.dataset.line)].open(); };
  };
  element("workload").addEventListener("change", (event) => { choose(Number(event.target.value)); draw(); });
  element("speed-baseline").addEventListener("change", draw);
  element("rate").addEventListener("input", (event) => { now.rate = onLog(ends(), Number(event.target.value)); draw(); });
  element("compute").addEventListener("input", (event) => { now.compute = onLog(computes, Number(event.target.value)); draw(); });
  choose(0);
  return draw;
}
