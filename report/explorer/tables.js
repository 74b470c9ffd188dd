// Tables: columns decoded from the payload, sorted by any head, filtered by words and comparisons, saved as CSV.
"use strict";

/** Objects of a table of columns; a column of few texts comes as its words and their numbers. */
function objectsOf(table) {
  const columns = Object.entries(table.columns).map(([name, column]) =>
    [name, Array.isArray(column) ? column : column.codes.map((code) => (code < 0 ? null : column.words[code]))]);
  const lineOf = (at) => Object.fromEntries(columns.map(([name, values]) => [name, values[at]]));
  return Array.from({ length: table.length }, (_, at) => lineOf(at));
}

const COMPARE = {
  "=": (a, b) => (typeof a === "number" ? a === Number(b) : String(a ?? "").toLowerCase() === b),
  "!=": (a, b) => !COMPARE["="](a, b),
  ">": (a, b) => a !== null && a > Number(b), "<": (a, b) => a !== null && a < Number(b),
  ">=": (a, b) => a !== null && a >= Number(b), "<=": (a, b) => a !== null && a <= Number(b),
};

/** Whether a line fits each of the filter's terms: words that some cell holds, or column=value, column>value. */
function testOf(filter, columns) {
  const terms = filter.toLowerCase().split(/[\s,]+/).filter(Boolean).map((term) => {
    const [, name, sign, value] = term.match(/^([\w.]+)(<=|>=|!=|=|<|>)(.+)$/) ?? [];
    const column = columns.find((each) => each.toLowerCase() === name);
    return column ? (line) => COMPARE[sign](line[column] ?? null, value)
      : (line) => columns.some((each) => String(line[each] ?? "").toLowerCase().includes(term));
  });
  return (line) => terms.every((fits) => fits(line));
}

/** Lines by a column, up or down; what is not known comes last either way. */
function sorted(lines, column, down) {
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b)));
  return [...lines].sort((a, b) => {
    const [left, right] = [a[column] ?? null, b[column] ?? null];
    if (left === null || right === null) return (left === null) - (right === null);
    return down ? order(right, left) : order(left, right);
  });
}

function csvOf(lines, columns) {
  const cell = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = [columns, ...lines.map((line) => columns.map((name) => String(line[name] ?? "")))];
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function saveCsv(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** A filter that finds something in these lines, to be shown where one is typed. */
function exampleOf(lines, columns) {
  const name = ["seed", "ratio", ...columns].find((each) => typeof lines[0]?.[each] === "number");
  return name ? `words, or ${name}=${lines[0][name]}` : "words";
}

/**
 * A table's HTML: `sort` is {column, down}; the first cell of each line is a button if `opens`. Heads are one tab stop and
 * lines another; arrow keys go on from there, see `goWithArrows`.
 */
function tableHtml(lines, columns, { caption, all = false, sort = null, opens = false }) {
  const numeric = new Set(columns.filter((name) => lines.some((line) => typeof line[name] === "number")));
  const head = columns.map((name) => {
    const text = escaped(name.replaceAll("_", " "));
    const state = sort?.column === name ? ` aria-sort="${sort.down ? "descending" : "ascending"}"` : "";
    const stop = name === (sort?.column ?? columns[0]) ? 0 : -1;
    const shown = sort ? `<button type="button" tabindex="${stop}" data-sort="${escaped(name)}">${text}</button>` : text;
    return `<th scope="col" class="${numeric.has(name) ? "number" : ""}"${state}>${shown}</th>`;
  });
  const body = lines.map((line, place) => `<tr data-line="${place}">${columns.map((name, order) => {
    const text = escaped(digits(line[name], all)), full = escaped(digits(line[name], true));
    const first = opens ? `<button type="button" tabindex="${place ? -1 : 0}" data-open="${place}">${text}</button>` : text;
    if (order === 0) return `<th scope="row">${first}</th>`;
    return `<td class="${numeric.has(name) ? "number" : ""}"${full !== text ? ` title="${full}"` : ""}>${text}</td>`;
  }).join("")}</tr>`);
  const more = columns.length > 5 ? `<b class="more">: ${columns.length} columns, scroll sideways or tap a line for all</b>` : "";
  return `<table><caption><span>${escaped(caption)}${more}</span></caption>
    <thead><tr>${head.join("")}</tr></thead><tbody>${body.join("")}</tbody></table>`;
}

/** Arrow keys go from head to head, and from line to line; what they reach is the next tab stop. */
function goWithArrows(table) {
  table.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key], here = event.target;
    const kind = here.matches("[data-sort]") ? "[data-sort]" : "[data-open]";
    const isAlong = here.matches("[data-sort]") === ["ArrowRight", "ArrowLeft"].includes(event.key);
    if (!by || !isAlong || !here.matches("[data-sort], [data-open]")) return;
    const stops = [...table.querySelectorAll(kind)], next = stops[stops.indexOf(here) + by];
    if (!next) return;
    event.preventDefault();
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

const PAGE = 50;

/** The tabs of tables. `tables` are {name, title, lines, columns, open(line), shown(line)}. */
function tablePanel(tables) {
  const view = { at: 0, sort: {}, filter: "", pages: 1, all: false, only: false };
  const tabs = element("tables").querySelector(".tabs");
  tabs.innerHTML = tables.map((table, at) => `<button type="button" role="tab" id="tab-${table.name}" data-at="${at}"
    aria-controls="table-panel">${escaped(table.title)} <span>${table.lines.length}</span></button>`).join("");
  let found = [];
  const draw = () => {
    const table = tables[view.at], test = testOf(view.filter, table.columns);
    const sort = view.sort[table.name] ?? { column: null, down: false };
    found = table.lines.filter((line) => test(line) && (!view.only || table.shown(line)));
    if (sort.column) found = sorted(found, sort.column, sort.down);
    [...tabs.children].forEach((tab, at) => {
      tab.setAttribute("aria-selected", at === view.at);
      tab.tabIndex = at === view.at ? 0 : -1;
    });
    element("table-panel").setAttribute("aria-labelledby", `tab-${table.name}`);
    element("count").textContent = `${found.length} of ${table.lines.length} lines. Any line opens the runs behind it; arrow keys go over heads and lines.`;
    element("filter").placeholder = exampleOf(table.lines, table.columns);
    const how = { caption: table.title, all: view.all, sort, opens: true };
    element("table").innerHTML = tableHtml(found.slice(0, view.pages * PAGE), table.columns, how);
    element("more").hidden = found.length <= view.pages * PAGE;
  };
  const choose = (at) => { Object.assign(view, { at, pages: 1 }); draw(); };
  tabs.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(Number(tab.dataset.at));
  });
  tabs.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { choose((view.at + by + tables.length) % tables.length); tabs.children[view.at].focus(); }
  });
  element("filter").addEventListener("input", (event) => {
    Object.assign(view, { filter: event.target.value, pages: 1 });
    draw();
  });
  element("all-digits").addEventListener("change", (event) => { view.all = event.target.checked; draw(); });
  element("only-shown").addEventListener("change", (event) => { view.only = event.target.checked; draw(); });
  element("more").addEventListener("click", () => { view.pages += 4; draw(); });
  element("csv").addEventListener("click", () => {
    const table = tables[view.at];
    saveCsv(table.name, csvOf(found, table.columns));
  });
  goWithArrows(element("table"));
  goWithArrows(element("speed-table"));
  element("table").addEventListener("click", (event) => {
    const table = tables[view.at], head = event.target.closest("[data-sort]"), line = event.target.closest("[data-line]");
    if (head) {
      const column = head.dataset.sort, now = view.sort[table.name];
      view.sort[table.name] = { column, down: now?.column === column && !now.down };
      draw();
      element("table").querySelector(`[data-sort="${CSS.escape(column)}"]`).focus();
    } else if (line) table.open(found[Number(line.dataset.line)]);
  });
  draw();
  return draw;
}
