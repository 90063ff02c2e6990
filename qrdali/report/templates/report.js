"use strict";
// A click on a column's head sorts by it; a second one turns the order round. Cells without a value stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const up = now ? now === "descending" : !numeric;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
// A reader of a narrow window is told of columns that are out of sight.
const scrolls = [...document.querySelectorAll(".scroll")];
const tell = () => {
  const wide = scrolls.map((one) => one.scrollWidth > one.clientWidth);
  scrolls.forEach((one, i) => { one.previousElementSibling.hidden = !wide[i]; });
};
window.addEventListener("resize", tell);
document.addEventListener("toggle", tell, true);
tell();
// What is folded is printed open, unless it is very long.
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    if (part.querySelectorAll("tr").length <= 120) { part.open = true; part.dataset.opened = "print"; }
  }
});
window.addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("details[data-opened]")) { part.open = false; delete part.dataset.opened; }
});
// A link to a folded table opens it.
const open = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
window.addEventListener("hashchange", open);
open();
