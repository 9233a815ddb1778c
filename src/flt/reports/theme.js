// Sets the theme before anything is shown, so that the page doesn't flash in the other one.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("flt-theme"); } catch { /* storage may be blocked for local files */ }
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.add("js");
})();
