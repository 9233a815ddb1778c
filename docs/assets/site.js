// Names the search for screen readers, and lets the keyboard scroll wide tables, code and formulas.
function makeReachable() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const area of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre, .md-typeset pre > code, .md-typeset math[display=block]")) {
    if (area.scrollWidth > area.clientWidth) area.tabIndex = 0;
  }
}
document.addEventListener("DOMContentLoaded", () => {
  makeReachable();
  new MutationObserver(makeReachable).observe(document.querySelector(".md-content"), { childList: true, subtree: true });
});
addEventListener("load", makeReachable);
addEventListener("resize", makeReachable);
