// Charts as SVG: axes, marks with intervals, lines, reference lines, and labels that never overlap.
"use strict";

const escaped = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const SHAPES = [
  "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", "M-4 -4h8v8h-8z", "M0 -5.2L5 4H-5z", "M0 -5.6L5.6 0L0 5.6L-5.6 0z",
  "M0 5.2L5 -4H-5z", "M-5 -1.8h3.2v-3.2h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2z",
];

/** Text of a number: four significant digits, or the fifteen that a sum in binary leaves sure. */
function digits(value, all = false) {
  if (value === null || value === undefined || value === "") return "";
  if (typeof value !== "number") return value === "inf" ? "∞" : String(value);
  if (all) return String(Number.isInteger(value) ? value : Number(value.toPrecision(15)));
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en") : value.toExponential(3);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

/** About `most` round numbers from low to high. */
function ticks(low, high, log, most) {
  if (log) {
    const decades = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d += 1) decades.push(d);
    const tries = [[1, 2, 5], [1, 3], [1]].map((steps) =>
      decades.flatMap((d) => steps.map((s) => s * 10 ** d)).filter((t) => t >= low * 0.999 && t <= high * 1.001));
    return tries.find((found) => found.length <= most) ?? tries[2].filter((_, i) => i % 2 === 0);
  }
  const rough = (high - low) / most, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((s) => s * unit >= rough * 0.999) * unit, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

const PEN = document.createElement("canvas").getContext("2d");
PEN.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
const widthOf = (text) => PEN.measureText(text).width + 6;
const n = (v) => v.toFixed(1);

/** A scale: share(v) is 0 at its low end and 1 at its high end. */
function axisOf(values, { log = false, domain = null, padding = 0.04 }) {
  const known = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
  const to = log ? Math.log : (v) => v, from = log ? Math.exp : (v) => v;
  let [low, high] = (domain ?? [Math.min(...known), Math.max(...known)]).map(to);
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const pad = padding * (high - low);
  [low, high] = [low - pad, high + pad];
  return { low: from(low), high: from(high), log, share: (v) => (to(v) - low) / (high - low) };
}

/** Where labels go: never on a mark or on another label, and off lines where they can be. */
function placer(box, width) {
  const taken = [], crossed = [];
  const apart = (a, others) => !others.some((b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h);
  const free = (at) => at.x >= box.left && at.x + at.w <= width && at.y >= 0 && at.y + at.h <= box.bottom && apart(at, taken);
  const take = (spots) => {
    const open = spots.filter(free), spot = open.find((at) => apart(at, crossed)) ?? open[0];
    if (spot) taken.push(spot);
    return spot;
  };
  const around = (text, [x, y]) => {
    const w = widthOf(text), gap = 7, [left, right, middle] = [x - gap - w, x + gap, x - w / 2];
    const corners = [[right, y - 7], [left, y - 7], [middle, y - gap - 14], [middle, y + gap],
      [right, y - 21], [left, y - 21], [right, y + 7], [left, y + 7]];
    return corners.map(([cx, cy]) => ({ x: cx, y: cy, w, h: 14 }));
  };
  const cross = ([x1, y1], [x2, y2]) => {
    const count = Math.ceil(Math.hypot(x2 - x1, y2 - y1) / 8);
    for (let i = 0; i <= count; i += 1)
      crossed.push({ x: x1 + ((x2 - x1) * i) / count - 1, y: y1 + ((y2 - y1) * i) / count - 1, w: 2, h: 2 });
  };
  return { take, around, cross, keepOff: (x, y) => taken.push({ x: x - 5, y: y - 5, w: 10, h: 10 }) };
}

const textSvg = (kind, x, y, text, more = "") => `<text class="${kind}" x="${n(x)}" y="${n(y)}" ${more}>${escaped(text)}</text>`;
const lineSvg = (kind, x1, x2, y1, y2) => `<line class="${kind}" x1="${n(x1)}" x2="${n(x2)}" y1="${n(y1)}" y2="${n(y2)}"/>`;
const tagSvg = (text, at, colour) => textSvg("tag", at.x + 2, at.y + 11, text, `style="--c:${colour}"`);

const heightTicks = (ay, height) => ticks(ay.low, ay.high, ay.log, Math.floor(height / 50));

function axesSvg({ x, y, ax, ay, px, py, box, width, height }) {
  const parts = [], middle = (box.top + box.bottom) / 2;
  for (const t of ticks(ax.low, ax.high, ax.log, Math.floor(width / 75))) {
    parts.push(lineSvg("grid", px(t), px(t), box.top, box.bottom));
    const text = (x.format ?? digits)(t), middle = Math.min(px(t), width - widthOf(text) / 2); // whole at the right edge
    parts.push(textSvg("", middle, box.bottom + 16, text, 'text-anchor="middle"'));
  }
  for (const t of heightTicks(ay, height)) {
    parts.push(lineSvg("grid", box.left, box.right, py(t), py(t)));
    parts.push(textSvg("", box.left - 6, py(t) + 4, (y.format ?? digits)(t), 'text-anchor="end"'));
  }
  parts.push(textSvg("axis", (box.left + box.right) / 2, height - 8, x.label, 'text-anchor="middle"'));
  parts.push(textSvg("axis", 0, 0, y.label, `transform="translate(13 ${middle}) rotate(-90)" text-anchor="middle"`));
  return parts;
}

function markSvg(mark, index, order, { px, py, kept, box }) {
  const beyond = py(mark.y) > box.bottom || py(mark.y) < box.top;
  const whisker = mark.low === undefined || beyond ? "" :
    `<line class="whisker" y1="${n(kept(mark.low) - py(mark.y))}" y2="${n(kept(mark.high) - py(mark.y))}"/>`;
  const kind = `mark${beyond ? " beyond" : ""}${mark.strong ? " strong" : ""}`;
  return `<g class="${kind}" style="--c:${mark.colour}" transform="translate(${n(px(mark.x))} ${n(kept(mark.y))})" role="button"
    tabindex="${order ? -1 : 0}" data-mark="${index}" aria-label="${escaped(mark.name)}">${whisker}<path
    d="${SHAPES[mark.shape % SHAPES.length]}"/><circle class="halo" r="9"/></g>`;
}

/** The labels of lines, as [line, place]: in the gutter at the right, in the order of their ends, or beside a point of each. */
function tagsOf(lines, { px, kept, box, height, gutter, labels }) {
  const tagged = lines.filter((line) => line.tag).map((line) => ({ line, ends: line.points.filter((p) => Number.isFinite(p[1]))
    .map((p) => [px(p[0]), kept(p[1])]).reverse() })).filter(({ ends }) => ends.length);
  if (!gutter) return tagged.map(({ line, ends }) => [line, labels.take(ends.flatMap((end) => labels.around(line.tag, end)))]);
  tagged.sort((a, b) => a.ends[0][1] - b.ends[0][1]);
  const tops = tagged.map(({ ends }) => ends[0][1] - 7);
  for (let i = 1; i < tops.length; i += 1) tops[i] = Math.max(tops[i], tops[i - 1] + 14);
  for (let i = tops.length - 1, most = height - 14; i >= 0 && tops[i] > most; i -= 1, most -= 14) tops[i] = most;
  return tagged.map(({ line }, i) => [line, { x: box.right + 7, y: tops[i] }]);
}

const NARROW = 560; // pixels: in a narrower chart names would cross lines, so they stand below it

const legendHtml = (named) => `<p class="legend">${[...new Map(named.map((each) => [each.tag, each])).values()].map(({ tag, colour, shape }) =>
  `<span class="swatch" style="--c:${colour}"><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">
  <path d="${SHAPES[(shape ?? 0) % SHAPES.length]}"/></svg>${escaped(tag)}</span>`).join("")}</p>`;

/**
 * Draw into a figure element. `marks` have x, y, low, high, name (said aloud), tag (drawn where there is room), colour,
 * shape and open(); `lines` have points, colour, dash and tag, which `tagsRight` sets beside their ends; `references`
 * have at, axis and label, and to where they are bands.
 */
function drawChart(figure, { label, x, y, marks = [], lines = [], references = [], tagsRight = false }) {
  const width = Math.max(figure.clientWidth, 280), height = Math.round(Math.min(Math.max(width * 0.56, 270), 440));
  const narrow = width < NARROW, named = narrow ? [...lines, ...marks].filter((each) => each.tag) : [];
  const gutter = tagsRight && !narrow ? Math.max(0, ...lines.map((line) => widthOf(line.tag ?? "") + 8)) : 0;
  const ends = lines.flatMap((line) => line.points), level = references.filter((r) => r.axis === "y");
  if (!marks.length && !ends.length) {
    figure.innerHTML = "<p class='empty'>Nothing is switched on that has these numbers.</p>";
    return;
  }
  const heights = marks.flatMap((m) => [m.y, m.low ?? m.y, m.high ?? m.y]);
  const ax = axisOf([...marks.map((m) => m.x), ...ends.map((p) => p[0])], x);
  const ay = axisOf([...heights, ...ends.map((p) => p[1]), ...level.flatMap((r) => [r.at, r.to ?? r.at])], y);
  // The axis' title stands left of its longest number.
  const numbers = heightTicks(ay, height).map((t) => widthOf((y.format ?? digits)(t)));
  const box = { left: Math.max(54, 26 + Math.max(0, ...numbers)), right: width - 14 - gutter, top: 12, bottom: height - 44 };
  const px = (v) => box.left + ax.share(v) * (box.right - box.left);
  const py = (v) => box.bottom - ay.share(v) * (box.bottom - box.top);
  const kept = (v) => Math.min(Math.max(py(v), box.top), box.bottom);
  const labels = placer(box, width), frame = { x, y, ax, ay, px, py, kept, box, width, height, gutter, labels };
  const bands = level.filter((r) => r.to !== undefined).map((r) => [kept(r.at), kept(r.to), box.right - box.left]);
  const parts = bands.map(([a, b, w]) =>
    `<rect class="band" x="${box.left}" width="${w}" y="${n(Math.min(a, b))}" height="${n(Math.abs(b - a))}"/>`);
  parts.push(...axesSvg(frame));
  for (const r of references) {
    if (r.axis === "x") parts.push(lineSvg("reference", px(r.at), px(r.at), box.top, box.bottom));
    else if (ay.low <= r.at && r.at <= ay.high) parts.push(lineSvg("reference", box.left, box.right, py(r.at), py(r.at)));
  }
  for (const line of lines) {
    const seen = line.points.filter((p) => Number.isFinite(p[0]) && Number.isFinite(p[1]) && (!ax.log || p[0] > 0))
      .map((p) => [px(p[0]), kept(p[1])]);
    seen.slice(1).forEach((point, i) => labels.cross(seen[i], point));
    parts.push(`<polyline class="line ${line.kind ?? ""}" style="--c:${line.colour}" stroke-dasharray="${line.dash ?? ""}"
      points="${seen.map((p) => p.map(n).join(",")).join(" ")}"/>`);
  }
  for (const m of marks) {
    labels.keepOff(px(m.x), kept(m.y));
    if (Number.isFinite(m.low)) labels.cross([px(m.x), kept(m.high)], [px(m.x), kept(m.low)]);
  }
  for (const r of level.filter((each) => each.label && ay.low <= each.at && each.at <= ay.high)) {
    const w = widthOf(r.label), corners = [box.right - w - 2, box.left + 2].flatMap((left) => [[left, -14], [left, 1]]);
    const spot = labels.take(corners.map(([left, lift]) => ({ x: left, y: py(r.at) + lift, w, h: 13 })));
    if (spot) parts.push(textSvg("note", spot.x + 2, spot.y + 10, r.label));
  }
  const ordered = marks.map((m, index) => ({ m, index })).sort((a, b) => a.m.x - b.m.x || a.m.y - b.m.y);
  parts.push(...ordered.map(({ m, index }, order) => markSvg(m, index, order, frame)));
  const tags = narrow ? [] : tagsOf(lines, frame);
  for (const m of marks.filter((each) => each.tag && !narrow)) tags.push([m, labels.take(labels.around(m.tag, [px(m.x), kept(m.y)]))]);
  for (const [{ tag, colour }, spot] of tags.filter(([, place]) => place)) parts.push(tagSvg(tag, spot, colour));
  named.push(...tags.filter(([, spot]) => !spot).map(([each]) => each)); // what found no room is named below
  figure.innerHTML = `<svg role="group" aria-label="${escaped(label)}" width="${width}" height="${height}"
    viewBox="0 0 ${width} ${height}">${parts.join("")}</svg>${legendHtml(named)}`;
  listenTo(figure, marks);
}

/** One tab stop a chart; arrow keys go from mark to mark, Enter and Space open what is behind it. */
function listenTo(figure, marks) {
  const nodes = [...figure.querySelectorAll(".mark")], hint = figure.parentElement.querySelector(".hint");
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
  nodes.forEach((node, order) => {
    const mark = marks[Number(node.dataset.mark)];
    const show = () => { hint.textContent = mark.name; };
    node.addEventListener("mouseenter", show);
    node.addEventListener("focus", show);
    node.addEventListener("click", () => mark.open());
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); mark.open(); }
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = nodes[(order + steps[event.key] + nodes.length) % nodes.length];
      node.tabIndex = -1; next.tabIndex = 0; next.focus();
    });
  });
}
