// Pages work without this: links lead to chains, which open by themselves. It adds highlights and keys.
"use strict";

function choose(name) {
  for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
  if (!/^[mp]\d+$/.test(name)) return;
  for (const one of document.querySelectorAll(`[data-opens=${name}], [data-mention=${name}]`)) {
    one.classList.add("chosen");
    if (one.matches("details")) one.open = true;
  }
}

addEventListener("hashchange", () => choose(location.hash.slice(1)));
choose(location.hash.slice(1));

// A chain opened by hand shows its words and boxes too.
for (const chain of document.querySelectorAll("details[data-mention]")) {
  chain.addEventListener("toggle", () => chain.open && choose(chain.dataset.mention));
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const keys = { j: "a[rel=next]", k: "a[rel=prev]", "/": "#text" };
  const wanted = keys[event.key] && document.querySelector(keys[event.key]);
  if (!wanted) return;
  event.preventDefault();
  if (event.key === "/") wanted.focus();
  else wanted.click();
});
