"use strict";
// Curves as SVG, maps on canvas. Text from data goes into text nodes and attributes only.

const page = JSON.parse(document.getElementById("page-data").textContent);
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2"];
const SVG = "http://www.w3.org/2000/svg";

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// Curves

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of values) {
    for (const v of list) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  if (high > low) return [low, high];
  const room = Math.abs(low) * 0.1 || 1;
  return [low - room, high + room];
}

function below(list, value) {
  let [first, last] = [0, list.length - 1];
  while (first < last) {
    const middle = (first + last + 1) >> 1;
    if (list[middle] <= value) first = middle;
    else last = middle - 1;
  }
  return first;
}

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.at = -1; // place in the first line that the cursor stands at
    this.said = node("output", { "aria-live": "polite" });
    this.drawing = svg("svg", { role: "img", "aria-label": chart.title });
    this.figure = node("figure", { class: "chart", tabindex: 0 });
    this.figure.append(node("figcaption", {}, chart.title), this.drawing, this.said);
    this.figure.addEventListener("keydown", (event) => this.key(event));
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerdown", (event) => this.point(event));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  update(chart) {
    this.chart = chart;
    this.draw();
  }

  draw() {
    const width = Math.max(200, this.figure.clientWidth);
    const height = 190;
    const lines = this.chart.lines;
    const [x0, x1] = range(lines.map((l) => l.x));
    const [y0, y1] = range(lines.map((l) => l.y));
    const [left, right, top, bottom] = [52, width - 10, 8, height - 22];
    this.toX = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
    this.fromX = (px) => x0 + ((px - left) / (right - left)) * (x1 - x0);
    const toY = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
    const parts = [];
    for (const y of ticks(y0, y1, 4)) {
      parts.push(svg("path", { class: "grid", d: `M${left} ${toY(y)}H${right}` }));
      parts.push(svg("text", { x: left - 6, y: toY(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(x0, x1, 5)) {
      parts.push(svg("text", { x: this.toX(x), y: height - 6, "text-anchor": "middle" }, short(x)));
    }
    for (const line of lines) {
      const d = line.x.map((x, i) => `${i ? "L" : "M"}${this.toX(x).toFixed(1)} ${toY(line.y[i]).toFixed(1)}`);
      parts.push(svg("path", { d: d.join(""), ...pen(line.run) }));
      if (line.x.length === 1) {
        const dot = { cx: this.toX(line.x[0]), cy: toY(line.y[0]), r: 3 };
        parts.push(svg("circle", { ...dot, fill: pen(line.run).stroke }));
      }
    }
    this.cursor = svg("path", { class: "cursor" });
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawing.replaceChildren(...parts, this.cursor);
    if (this.at >= 0) this.show(this.at);
  }

  show(at) {
    const line = this.chart.lines[0];
    this.at = Math.max(0, Math.min(at, line.x.length - 1));
    const step = line.x[this.at];
    this.cursor.setAttribute("d", `M${this.toX(step).toFixed(1)} 8V168`);
    const values = this.chart.lines.map((l) => {
      const name = this.chart.lines.length > 1 ? `${page.runs[l.run]} ` : "";
      return name + short(l.y[below(l.x, step)]);
    });
    this.said.textContent = `step ${step}: ${values.join(", ")}`;
  }

  point(event) {
    const box = this.drawing.getBoundingClientRect();
    const line = this.chart.lines[0];
    const x = this.fromX(event.clientX - box.left);
    const at = below(line.x, x);
    const next = line.x[at + 1];
    this.show(next !== undefined && next - x < x - line.x[at] ? at + 1 : at);
  }

  key(event) {
    const last = this.chart.lines[0].x.length - 1;
    const places = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: 0, End: last };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.show(places[event.key]);
  }
}

function pen(run) {
  return {
    fill: "none",
    stroke: color(`--run-${run % 6}`),
    "stroke-width": 1.8,
    "stroke-linejoin": "round",
    "stroke-dasharray": DASHES[(run + Math.floor(run / 6)) % 6],
  };
}

const drawn = new Map(); // name of a chart: Chart

function showCurves() {
  for (const chart of page.charts) {
    if (drawn.has(chart.name)) drawn.get(chart.name).update(chart);
    else {
      drawn.set(chart.name, new Chart(chart));
      document.getElementById("charts").append(drawn.get(chart.name).figure);
    }
  }
  if (page.runs.length < 2) return;
  const keys = page.runs.map((name, run) => {
    const line = svg("svg", { viewBox: "0 0 40 10", "aria-hidden": "true" }, svg("path", { d: "M0 5H40", ...pen(run) }));
    return node("span", {}, line, ` ${name}`);
  });
  document.getElementById("legend").replaceChildren(...keys);
}
