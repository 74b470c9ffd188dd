// The address keeps what was chosen, so that a link opens the page as it was left.
"use strict";

const KEPT = [
  "length", "rule", "depth", "relative", "against", "measure", "progress-by", "ratio", "less-baseline", "each-seed", "workload",
  "speed-baseline", "rate", "compute", "filter", "all-digits", "only-shown",
];
const valueOf = (input) => (input.type === "checkbox" ? String(input.checked) : input.value);
const boxes = () => [...document.querySelectorAll("#methods input")];
const tabNow = () => document.querySelector("[role=tab][aria-selected=true]")?.id ?? "";
const sortNow = () => {
  const head = document.querySelector("#table [aria-sort]");
  return head ? `${head.querySelector("button").dataset.sort} ${head.ariaSort}` : "";
};

/** What is chosen now, by name. */
function choices() {
  const kept = KEPT.map((id) => [id, valueOf(element(id))]);
  const methods = boxes().filter((box) => box.checked).map((box) => box.value).join("|");
  return new Map([...kept, ["methods", methods], ["table", tabNow()], ["sort", sortNow()]]);
}

function setInput(id, value) {
  const input = element(id);
  if (input.type === "checkbox") input.checked = value === "true";
  else input.value = value;
  input.dispatchEvent(new Event(input.matches("[type=range], [type=search]") ? "input" : "change", { bubbles: true }));
}

/** Choose what an address says; what it does not name stays. */
function choose(asked) {
  if (asked.has("methods")) {
    const wanted = new Set(asked.get("methods").split("|"));
    for (const box of boxes().filter((each) => each.checked !== wanted.has(each.value))) box.click();
  }
  for (const id of KEPT.filter((each) => asked.has(each))) setInput(id, asked.get(id));
  document.getElementById(asked.get("table"))?.click();
  const [column, order] = (asked.get("sort") ?? "").split(" ");
  for (let turn = 0; column && turn < 2 && sortNow() !== `${column} ${order}`; turn += 1)
    document.querySelector(`#table [data-sort="${CSS.escape(column)}"]`)?.click();
}

/** Follow the address now, and keep it up to date from then on. */
function keepInAddress() {
  const first = choices(), asked = new URLSearchParams(location.hash.slice(1));
  choose(asked);
  const keep = () => {
    const changed = [...choices()].filter(([name, value]) => value !== first.get(name));
    const address = new URLSearchParams(changed).toString();
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
  };
  for (const kind of ["change", "input", "click"]) document.addEventListener(kind, keep);
  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) location.reload();
  });
}
