"use strict";
(() => {
  const { figures, dark } = JSON.parse(document.getElementById("plots").textContent);
  const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const fine = window.matchMedia("(pointer: fine)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const chosen = {}; // place of the slider by figure
  let printing = false;

  /** The same figure with each colour of the light page replaced. */
  const themed = (value) => {
    if (printing || !wantsDark.matches) return value;
    if (typeof value === "string") return dark[value] ?? value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(themed);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
  };

  const draw = (key) => {
    const { data, layout, frames } = figures[key];
    const frame = frames[chosen[key] ?? 0];
    const traces = themed(data.map((trace, i) => ({ ...trace, ...frame?.data[i] })));
    const div = document.getElementById(key);
    const drag = { dragmode: fine ? "zoom" : false };
    Plotly.react(div, traces, { ...themed(layout), ...drag }, config);
    label(key, traces);
  };

  // ---- Legend --------------------------------------------------------------------------------

  const PATHS = {
    circle: "M12 3a5 5 0 1 0 .01 0z",
    square: "M8 4h8v8h-8z",
    diamond: "M12 2l6 6-6 6-6-6z",
    "triangle-up": "M12 2l6 11h-12z",
    "triangle-down": "M12 14l6-11h-12z",
    star: "M12 2l1.8 4 4.2.4-3.2 2.9.9 4.3-3.7-2.2-3.7 2.2.9-4.3-3.2-2.9 4.2-.4z",
    x: "M8 2l4 4 4-4 2 2-4 4 4 4-2 2-4-4-4 4-2-2 4-4-4-4z",
  };
  const DASHES = { dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 3" };

  const element = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
    return made;
  };

  const sample = (trace) => {
    const svg = element("svg", { width: 24, height: 16, "aria-hidden": "true" });
    const mode = trace.mode ?? "";
    const colour = trace.line?.color ?? trace.marker?.color;
    if (trace.type === "bar" || trace.fill) {
      const opacity = trace.fill ? 0.35 : 1;
      svg.append(element("rect", { x: 1, y: 3, width: 22, height: 10, fill: colour, "fill-opacity": opacity, stroke: colour }));
      const pattern = trace.fillpattern ?? trace.marker?.pattern;
      if (pattern?.shape) {
        const stroke = trace.fill ? colour : pattern.fgcolor;
        svg.append(element("path", { d: "M3 13l7-10M9 13l7-10M15 13l7-10", stroke }));
      }
    }
    if (mode.includes("lines") && !trace.fill) {
      const dash = DASHES[trace.line.dash] ?? "";
      svg.append(element("path", { d: "M0 8h24", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
    }
    if (mode.includes("markers")) {
      const [shape, open] = trace.marker.symbol.split(/-(?=open$)/);
      const look = open ? { fill: "none", stroke: trace.marker.color, "stroke-width": 1.5 } : { fill: trace.marker.color };
      svg.append(element("path", { d: PATHS[shape] ?? PATHS.circle, ...look }));
    }
    return svg;
  };

  /** A line of the legend for each named trace; Plotly's own would cover or squeeze the plot. */
  const label = (key, traces) => {
    const list = document.getElementById("figure-" + key).querySelector(".legend");
    list.replaceChildren();
    const seen = new Set();
    for (const trace of traces) {
      const group = trace.legendgroup ?? trace.name;
      if (!trace.name || trace.showlegend === false || seen.has(group)) continue;
      seen.add(group);
      const item = document.createElement("li");
      const words = document.createElement("span");
      words.textContent = plainText(trace.name);
      item.append(sample(trace), words);
      list.append(item);
    }
    list.hidden = seen.size === 0;
  };

  /** Names are escaped for Plotly, which reads HTML. */
  const plainText = (escaped) =>
    escaped.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  // ---- Slider --------------------------------------------------------------------------------

  for (const slider of document.querySelectorAll("input[data-moves]")) {
    const key = slider.dataset.moves;
    const [which, says] = slider.parentElement.querySelectorAll("output > *");
    const choose = () => {
      chosen[key] = Number(slider.value);
      const frame = figures[key].frames[chosen[key]];
      which.textContent = `${chosen[key] + 1} of ${figures[key].frames.length}: ${frame.label}.`;
      says.textContent = frame.says;
      slider.setAttribute("aria-valuetext", frame.label);
    };
    slider.addEventListener("input", () => { choose(); draw(key); });
    choose(); // a browser may have kept the place
  }

  // ---- Buttons -------------------------------------------------------------------------------

  const status = document.querySelector(".said");
  const say = (text) => {
    status.textContent = text;
    setTimeout(() => { if (status.textContent === text) status.textContent = ""; }, 2500);
  };

  const tabbed = (table) =>
    [...table.rows]
      .map((row) =>
        [...row.cells]
          .map((cell) => {
            const number = cell.querySelector("data");
            const words = cell.querySelector(".icon + span");
            return (number ? number.value : (words ?? cell).textContent).trim().replace(/\s+/g, " ");
          })
          .join("\t"))
      .join("\n");

  /** For pages opened as a file, where some browsers refuse the clipboard's own interface. */
  const copyBySelection = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position:fixed;top:0;opacity:0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("copying was refused");
  };

  const copy = async (text) => {
    if (!navigator.clipboard) return copyBySelection(text);
    return navigator.clipboard.writeText(text).catch(() => copyBySelection(text));
  };

  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.addEventListener("click", async () => {
      try {
        await copy(tabbed(document.getElementById(button.dataset.copies).querySelector("table")));
        say("Table copied, with all digits");
      } catch {
        say("The browser refuses to copy: select the table by hand");
      }
      button.focus();
    });
  }

  for (const button of document.querySelectorAll("button[data-saves]")) {
    button.addEventListener("click", () => {
      const div = document.getElementById(button.dataset.saves);
      const { width, height } = div.getBoundingClientRect();
      Plotly.downloadImage(div, { format: "svg", width, height, filename: button.dataset.saves });
    });
  }

  // ---- Narrow pages --------------------------------------------------------------------------

  if (window.matchMedia("(max-width: 620px)").matches)
    document.querySelectorAll("details.long").forEach((long) => { long.open = false; });

  /** A box whose table goes on to the right fades there, and says so. */
  const cue = (box) =>
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  const watch = new ResizeObserver((seen) => seen.forEach(({ target }) => cue(target)));
  for (const box of document.querySelectorAll(".scroll")) {
    box.addEventListener("scroll", () => cue(box), { passive: true });
    watch.observe(box);
  }

  // ---- Light, dark, paper --------------------------------------------------------------------

  const drawAll = () => Object.keys(figures).forEach(draw);
  wantsDark.addEventListener("change", drawAll);
  const paper = window.matchMedia("print");
  paper.addEventListener("change", () => {
    printing = paper.matches;
    if (printing) document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
    drawAll();
  });
  drawAll();
})();
