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
    const ready = messages.map((m) => (m.ready.length > 1 ? m.ready[draw] : m.ready[0]));
    const queue = ready.map((share, i) => [share, sending[i]]).sort((a, b) => a[0] - b[0]);
    let free = 0;
    for (const [share, seconds] of queue) free = Math.max(free, forward + share * backward) + seconds;
    sum += Math.max(forward + backward, free) + codec;
  }
  return sum / draws;
}

/** Mean seconds of a method's step over its period, on links of `rate` bits a second, with passes of `compute` seconds. */
function stepSeconds(model, method, rate, compute) {
  const share = model.forward_seconds / (model.forward_seconds + model.backward_seconds);
  const passes = [share * compute, (1 - share) * compute];
  const of = (messages) => queuedSeconds(messages, model.rates, rate, ...passes, method.codec_seconds);
  return ((method.period - 1) * of(method.messages.filter((m) => m.every === 1)) + of(method.messages)) / method.period;
}

const short = (value) => digits(Number(value.toPrecision(3)));
const rateText = (bits) => (bits >= 1e9 ? `${short(bits / 1e9)} Gb/s` : `${short(bits / 1e6)} Mb/s`);
const secondsText = (s) => (s >= 1 ? `${short(s)} s` : `${short(1e3 * s)} ms`);

const COMPUTES = [1e-3, 1]; // ends of the slider, in seconds
const SHOWN = [1e9, 100e9]; // ends of the speed-ups' axis, in bits a second
const fromShare = ([low, high], share) => Number((low * (high / low) ** share).toPrecision(3));
const toShare = ([low, high], value) => Math.log(value / low) / Math.log(high / low);

/** Points that no faster one equals or beats; a thousandth of a step is no faster. */
function frontierOf(places) {
  const best = [];
  for (const p of sorted(places, "x", false)) {
    if (best.length && p.y <= best.at(-1).y) continue;
    if (best.length && p.x < 1.001 * best.at(-1).x) best.pop();
    best.push(p);
  }
  return best;
}

function drawSpeedups(lines, baseSeconds, picked, { model, rate, compute }) {
  const rates = Array.from({ length: 49 }, (_, i) => SHOWN[0] * (SHOWN[1] / SHOWN[0]) ** (i / 48)), bases = rates.map(baseSeconds);
  const curve = (method) => rates.map((r, i) => [r, bases[i] / stepSeconds(model, method, r, compute)]);
  const isSeen = rate >= SHOWN[0] && rate <= SHOWN[1];
  drawChart(document.querySelector("[data-chart=speedup]"), {
    label: `Speed-up over ${picked} against the links' rate`, y: { label: "speed-up" }, tagsRight: true,
    x: { label: "rate of each link (Gb/s)", log: true, format: (v) => digits(v / 1e9) },
    lines: lines.map((l) => ({ points: curve(l.method), colour: l.colour, shape: l.shape, tag: l.method.label })),
    marks: isSeen ? lines.map((l) => ({ ...l, x: rate, y: l.speedup, low: undefined, high: undefined,
      name: `${l.method.label}: ${short(l.speedup)} times as fast as ${picked}, ${secondsText(l.seconds)} a step` })) : [],
    references: [{ axis: "y", at: 1, label: "as fast as the baseline" }, ...(isSeen ? [{ axis: "x", at: rate }] : [])],
  });
}

/** Draw score against step time; returns the methods on the frontier. */
function drawFrontier(scored) {
  if (!scored.length) return [];
  const best = frontierOf(scored), axis = scoreAxis(scored);
  drawChart(document.querySelector("[data-chart=frontier]"), {
    label: "Score against step time", x: { label: "modelled step (ms, log scale)", log: true, format: (v) => digits(1e3 * v) },
    y: { ...scoreLabel(`score (${EXPERIMENT.unit})`), domain: axis.domain },
    marks: scored.map((l) => ({ ...l, tag: l.method.label, strong: best.includes(l) })), references: axis.references,
    lines: [{ points: best.map((p) => [p.x, p.y]), colour: "var(--text)", dash: "5 3", kind: "frontier" }],
  });
  return best.map((each) => each.method);
}

function drawStepTable(lines, best, caption) {
  const hasScores = lines.some((l) => known(l.score));
  const columns = ["method", "step (ms)", "speed-up", ...(hasScores ? ["score", "on the frontier"] : [])];
  const ordered = sorted(lines, "seconds", false), cells = ordered.map((l) => ({
    method: l.method.label, "step (ms)": Number((1e3 * l.seconds).toPrecision(4)), "speed-up": Number(l.speedup.toPrecision(4)),
    score: l.score, "on the frontier": best.includes(l.method) ? "yes" : "",
  }));
  element("speed-table").innerHTML = tableHtml(cells, columns, { caption, opens: true });
  element("speed-table").onclick = (event) => {
    const line = event.target.closest("[data-line]");
    if (line) ordered[Number(line.dataset.line)].open();
  };
}

/** The section on speed; returns what draws it. */
function speedSection(models) {
  element("speed").hidden = models.length === 0;
  if (!models.length) return () => {};
  const now = { model: models[0], rate: 10e9, compute: 0 };
  const ends = () => [now.model.rates[0], now.model.rates.at(-1)];
  const option = (value, text) => `<option value="${escaped(value)}">${escaped(text)}</option>`;
  const choose = (index) => {
    now.model = models[index];
    now.compute = now.model.forward_seconds + now.model.backward_seconds;
    const best = now.model.methods.some((m) => m.baseline) ? option("best", "the best baseline") : "";
    element("speed-baseline").innerHTML = best + now.model.methods.map((m) => option(m.name, m.label)).join("");
    element("rate").value = toShare(ends(), now.rate);
    element("compute").value = toShare(COMPUTES, now.compute);
  };
  const draw = () => {
    const { model, rate, compute } = now, wanted = element("speed-baseline").value;
    const picked = element("speed-baseline").selectedOptions[0].text;
    const compared = model.methods.filter((m) => (wanted === "best" ? m.baseline : m.name === wanted));
    const baseSeconds = (at) => Math.min(...compared.map((m) => stepSeconds(model, m, at, compute)));
    const base = baseSeconds(rate), isShown = (m) => !LOOKS.has(m.label) || chosen.has(m.label);
    for (const [id, text] of [["rate", rateText(rate)], ["compute", secondsText(compute)]]) {
      element(`${id}-text`).textContent = text;
      element(id).setAttribute("aria-valuetext", text);
    }
    element("speed-badge").textContent = `Modelled: ${model.badge}`;
    const lines = model.methods.filter(isShown).map((method) => {
      const seconds = stepSeconds(model, method, rate, compute), row = rowsOfMethod(method)[0];
      return { ...look(method.label), ...(row ? scoreOf(row) : {}), method, seconds, row, speedup: base / seconds,
        open: () => openTiming(method, model) };
    });
    const scored = lines.filter((l) => l.row && Number.isFinite(l.y)).map((l) => ({ ...l, x: l.seconds,
      name: `${l.method.label}: ${l.text}, ${secondsText(l.seconds)} a step` }));
    element("frontier-title").parentElement.hidden = !scored.length;
    drawSpeedups(lines.filter((l) => !l.method.baseline || l.method.name === wanted), baseSeconds, picked, now);
    const best = drawFrontier(scored);
    drawStepTable(lines, best, `At ${rateText(rate)} and ${secondsText(compute)} of passes, over ${picked}`);
  };
  element("workload").innerHTML = models.map((m, i) => option(i, m.name)).join("");
  element("workload").addEventListener("change", (event) => { choose(Number(event.target.value)); draw(); });
  element("speed-baseline").addEventListener("change", draw);
  const slide = (id, limits) => element(id).addEventListener("input", (event) => {
    now[id] = fromShare(limits(), Number(event.target.value));
    draw();
  });
  slide("rate", ends);
  slide("compute", () => COMPUTES);
  choose(0);
  return draw;
}
