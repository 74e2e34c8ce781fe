"use strict";
// All works without this: it filters as one types, and moves by arrow keys; "/" leads to the search.
const search = document.querySelector("input[type=search]");
const rows = [...document.querySelectorAll("tbody tr")];
const links = () => rows.filter(row => !row.hidden).map(row => row.querySelector("a")).filter(Boolean);
search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  for (const row of rows) {
    const up = row.querySelector("a[rel=up]");
    row.hidden = !up && !row.cells[0].textContent.toLowerCase().includes(wanted);
  }
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    const all = links(), at = all.indexOf(document.activeElement);
    (all[at + step] || (step > 0 ? all[0] : search)).focus();
    event.preventDefault();
  } else if (event.key === "/" && document.activeElement !== search) {
    search.focus();
    event.preventDefault();
  }
});
