// Search over the titles of all pages, which pages.js lists as [title, what it is, place].
"use strict";

const MOST_FOUND = 14;
const input = document.getElementById("search"), list = document.getElementById("found");
let at = -1;

/** Pages whose titles have all the words; those that begin with what was typed come first. */
function pagesWith(typed) {
  const text = typed.trim().toLowerCase(), words = text.split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const fits = PAGES.filter(([title, what]) => words.every((word) => `${title} ${what}`.toLowerCase().includes(word)));
  const rank = ([title]) => (title.toLowerCase().startsWith(text) ? 0 : title.toLowerCase().includes(text) ? 1 : 2);
  return fits.sort((a, b) => rank(a) - rank(b)).slice(0, MOST_FOUND);
}

function option([title, what, place], order) {
  const line = document.createElement("li"), link = document.createElement("a"), kind = document.createElement("span");
  line.id = `found-${order}`;
  line.setAttribute("role", "option");
  link.href = document.body.dataset.root + place;
  link.tabIndex = -1;
  link.textContent = title;
  kind.textContent = what;
  line.append(link, kind);
  return line;
}

function mark(place) {
  at = place;
  [...list.children].forEach((line, order) => line.setAttribute("aria-selected", order === at));
  const line = list.children[at];
  line?.scrollIntoView({ block: "nearest" });
  if (line) input.setAttribute("aria-activedescendant", line.id);
  else input.removeAttribute("aria-activedescendant");
}

function show() {
  const found = pagesWith(input.value), isAsked = input.value.trim() !== "";
  list.replaceChildren(...found.map(option));
  if (isAsked && !found.length) {
    const none = document.createElement("li");
    none.textContent = "No title has these words.";
    list.append(none);
  }
  list.hidden = !isAsked;
  input.setAttribute("aria-expanded", isAsked);
  mark(found.length ? 0 : -1);
}

input.parentElement.hidden = false;
input.addEventListener("input", show);
input.addEventListener("keydown", (event) => {
  const links = list.querySelectorAll("a"), by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by && links.length) {
    event.preventDefault();
    mark((at + by + links.length) % links.length);
  } else if (event.key === "Enter" && links[at]) location.href = links[at].href;
  else if (event.key === "Escape") {
    input.value = "";
    show();
  }
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select, textarea");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  input.focus();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("search")) list.hidden = true;
});
