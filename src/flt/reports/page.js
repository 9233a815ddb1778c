"use strict";
// Draws the charts of a report, and runs its few controls. Everything stays inside this function.
(() => {
  const root = document.documentElement;
  const { charts } = JSON.parse(document.getElementById("report-data").textContent);
  const drawn = new Map(); // id -> place of the frame that is shown
  let printing = false;

  // ---- colours --------------------------------------------------------------------------------------------------
  function theme() {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(name).trim();
    const series = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => value(`--s${i}`));
    const stops = [0, 1, 2, 3, 4].map((i) => [i / 4, value(`--q${i}`)]);
    return { value, series, stops };
  }

  function faded(colour, opacity) {
    return `rgba(${channels(colour).join(",")},${opacity})`;
  }

  function steps(colours, count) { // a scale in which each group has one flat colour
    const scale = [];
    for (let i = 0; i < count; i++) {
      const colour = colours[i % colours.length];
      scale.push([i / count, colour], [(i + 1) / count, colour]);
    }
    return scale;
  }

  function coloured(node, now, trace) {
    if (typeof node === "string" && node.startsWith("@")) {
      if (node === "@seq") return now.stops;
      if (node === "@groups") return steps(now.series, Math.round(trace.zmax - trace.zmin));
      if (node === "@muted") return now.value("--muted");
      const [place, opacity] = node.slice(1).split("/");
      return opacity ? faded(now.series[+place], opacity) : now.series[+place];
    }
    return node;
  }

  // Only these keys of a trace hold colours: texts that people have written are never read as colours.
  function themed(trace, now) {
    const { texttemplate, ...copy } = trace; // the texts are a trace of their own
    for (const key of ["colorscale", "fillcolor"]) if (key in copy) copy[key] = coloured(copy[key], now, trace);
    for (const key of ["line", "marker"]) if (copy[key]?.color) copy[key] = { ...copy[key], color: coloured(copy[key].color, now, trace) };
    if (copy.type === "scatter" && copy.marker && copy.mode === "markers") copy.marker.line = { width: 1, color: now.value("--surface") };
    if (copy.colorbar) copy.colorbar = { ...copy.colorbar, title: { ...copy.colorbar.title, font: { size: 12 } } };
    return copy;
  }

  function layoutOf(layout, now, width) {
    const small = width < 520;
    const axis = {
      gridcolor: now.value("--grid"), linecolor: now.value("--grid"), zerolinecolor: now.value("--grid"),
      tickfont: { size: small ? 10 : 11 }, automargin: true, fixedrange: small,
    };
    const titled = (own) => ({ ...axis, ...own, title: { text: "", standoff: 8, font: { size: 12 }, ...own?.title } });
    return {
      ...layout,
      xaxis: titled(layout.xaxis), yaxis: titled(layout.yaxis),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: now.value("--muted") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 12, t: 12, b: 8 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 11 } },
      hoverlabel: { bgcolor: now.value("--surface"), bordercolor: now.value("--line"), font: { color: now.value("--text") } },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      transition: { duration: 0 },
    };
  }

  // Plotly's own texts in cells are grey or white, and hard to read on middle tones.
  function texts(trace, now) {
    if (trace.type !== "heatmap" || !trace.texttemplate) return [];
    const cells = trace.z.flatMap((row, y) => row.map((value, x) => ({ value, x, y }))).filter((cell) => cell.value !== null);
    const values = cells.map((cell) => cell.value);
    const low = trace.zmin ?? Math.min(...values), high = trace.zmax ?? Math.max(...values);
    const scale = coloured(trace.colorscale, now, trace);
    return [{
      type: "scatter", mode: "text", hoverinfo: "skip", showlegend: false,
      x: cells.map((cell) => cell.x), y: cells.map((cell) => cell.y),
      text: cells.map((cell) => trace.text ? trace.text[cell.y][cell.x] : String(cell.value)),
      textfont: { size: 11, color: cells.map((cell) => readable(mixed(scale, (cell.value - low) / (high - low || 1)))) },
    }];
  }

  const channels = (colour) => colour.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));

  function mixed(scale, share) {
    const at = scale.findIndex(([stop]) => stop >= share);
    const [[low, from], [high, to]] = [scale[Math.max(0, at - 1)], scale[at < 0 ? scale.length - 1 : at]];
    const part = high > low ? (share - low) / (high - low) : 0, first = channels(from), second = channels(to);
    return first.map((value, i) => value + part * (second[i] - value));
  }

  function readable(rgb) {
    const linear = rgb.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
  }

  // ---- drawing --------------------------------------------------------------------------------------------------
  function draw(id) {
    const place = document.getElementById(id);
    const { data, layout, frames } = charts[id];
    const now = theme();
    const shown = frames.length ? frames[drawn.get(id) ?? frames.length - 1].data : data;
    const width = printing ? 640 : place.clientWidth;
    const full = layoutOf(layout, now, width);
    if (printing) full.width = width;
    if (frames.length) Object.assign(full, ranges(frames, layout, full));
    Plotly.react(place, [...shown.map((trace) => themed(trace, now)), ...shown.flatMap((trace) => texts(trace, now))], full, { displayModeBar: false, responsive: !printing });
  }

  function ranges(frames, layout, full) { // the same axes in all rounds, so that what moves is the points
    const of = (key) => frames.flatMap((frame) => frame.data.flatMap((trace) => trace[key])).filter(Number.isFinite);
    const span = (values) => {
      const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
      const room = 0.06 * (high - low || 1);
      return [low - room, high + room];
    };
    return { xaxis: { ...full.xaxis, range: span(of("x")) }, yaxis: { ...full.yaxis, range: span(of("y")) } };
  }

  const drawAll = () => Object.keys(charts).forEach(draw);

  async function loadPlotly() {
    const packed = document.getElementById("plotly");
    if (!packed) return false;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script); // runs at once; the policy of this page allows this text, and no other
    return true;
  }

  // ---- controls -------------------------------------------------------------------------------------------------
  const button = document.getElementById("theme");
  function named() {
    button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  }
  button.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("flt-theme", root.dataset.theme); } catch { /* not remembered, then */ }
    named();
    if (window.Plotly) drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    let chosen = null;
    try { chosen = localStorage.getItem("flt-theme"); } catch { /* nothing was chosen */ }
    if (chosen) return;
    root.dataset.theme = event.matches ? "dark" : "light";
    named();
    if (window.Plotly) drawAll();
  });
  named();

  for (const slider of document.querySelectorAll("input[data-chart]")) {
    const id = slider.dataset.chart, output = document.getElementById(`${id}-round`);
    slider.addEventListener("input", () => {
      drawn.set(id, +slider.value);
      output.textContent = charts[id].frames[+slider.value].name;
      slider.setAttribute("aria-valuetext", output.textContent);
      if (window.Plotly) draw(id);
    });
  }

  for (const copy of document.querySelectorAll("button.copy")) {
    copy.addEventListener("click", async () => {
      const text = document.getElementById(copy.dataset.code).textContent;
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch { // not allowed here: the text is selected instead
        getSelection().selectAllChildren(document.getElementById(copy.dataset.code));
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }

  // ---- a run that isn't finished --------------------------------------------------------------------------------
  const status = document.querySelector("[data-reload]");
  if (status) {
    const pause = document.getElementById("pause"), age = document.getElementById("age");
    const seconds = +status.dataset.reload, written = +status.dataset.written;
    setInterval(() => {
      const minutes = Math.floor((Date.now() - written) / 60000);
      if (minutes >= 5) age.textContent = ` No news for ${minutes} minutes: the run may have ended.`;
    }, 5000);
    setInterval(() => { if (!pause.checked) location.reload(); }, seconds * 1000);
  }

  // ---- paper ----------------------------------------------------------------------------------------------------
  let before = "light", opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.card:not([open])")]; // nobody can open them on paper
    opened.forEach((details) => { details.open = true; });
    before = root.dataset.theme;
    root.dataset.theme = "light";
    printing = true;
    if (window.Plotly) drawAll();
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    root.dataset.theme = before;
    printing = false;
    if (window.Plotly) drawAll();
  });

  loadPlotly().then((loaded) => { if (loaded) drawAll(); }).catch(() => {
    document.querySelectorAll(".chart").forEach((chart) => { chart.textContent = "This browser can't draw the chart. Its data are below."; });
  });
})();
