// Maps

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

const RADIUS = 3; // CSS pixels of a mark
const REACH = 14; // CSS pixels within which a pointer finds a picture
const SHAPES = [
  (x, y, r) => x * x + y * y <= r * r,
  (x, y, r) => Math.max(Math.abs(x), Math.abs(y)) <= r * 0.85,
  (x, y, r) => Math.abs(x) + Math.abs(y) <= r * 1.2,
  (x, y, r) => y <= r * 0.75 && Math.abs(x) <= (y + r) * 0.6,
  (x, y, r) => Math.min(Math.abs(x), Math.abs(y)) <= r * 0.35 && Math.max(Math.abs(x), Math.abs(y)) <= r * 1.1,
];

function packed(css) {
  const [r, g, b] = css.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  return (255 << 24) | (b << 16) | (g << 8) | r; // canvas memory is little-endian RGBA
}

class Thumbnails {
  constructor(map) {
    this.map = map;
    this.size = map.size;
    this.columns = map.columns;
    this.place = new Map();
    new Uint32Array(bytes(map.pictured).buffer).forEach((point, k) => this.place.set(point, k));
  }

  // Decoded when the first one is wanted: opening the page does not wait for it.
  get url() {
    const sheet = () => new Blob([bytes(this.map.sheet)], { type: "image/webp" });
    return (this.made ??= `url(${URL.createObjectURL(sheet())})`);
  }

  fill(element, point, side) {
    const k = this.place.get(point);
    element.textContent = k === undefined ? "no thumbnail" : "";
    element.style.backgroundImage = k === undefined ? "none" : this.url;
    if (k === undefined) return;
    element.style.backgroundSize = `${this.columns * side}px auto`;
    element.style.backgroundPosition = `${-(k % this.columns) * side}px ${-Math.floor(k / this.columns) * side}px`;
  }
}

class Cloud {
  constructor(box, map) {
    this.box = box;
    this.map = map;
    this.n = map.names.length;
    this.thumbnails = new Thumbnails(map);
    this.canvas = box.querySelector("canvas");
    this.tip = box.querySelector(".tip");
    this.said = box.querySelector(".said");
    this.selected = this.hovered = this.only = -1;
    this.arms = new Map();
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.choose(0);
    this.listen();
    this.legend();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  // A network's coordinates, and a grid of cells with the points in each.
  choose(a) {
    if (!this.arms.has(a)) {
      const arm = this.map.arms[a];
      const xy = new Uint16Array(bytes(arm.xy).buffer);
      const side = Math.max(8, Math.min(256, Math.ceil(Math.sqrt(this.n / 4))));
      const cell = (p) => ((xy[2 * p + 1] * side) >> 16) * side + ((xy[2 * p] * side) >> 16);
      const starts = new Uint32Array(side * side + 1);
      for (let p = 0; p < this.n; p++) starts[cell(p) + 1]++;
      for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
      const next = starts.slice();
      const points = new Uint32Array(this.n);
      for (let p = 0; p < this.n; p++) points[next[cell(p)]++] = p;
      const inRow = new Uint16Array(2 * this.n); // xy and label of each, as they lie in the cells
      const label = new Int32Array(this.n).fill(-1);
      for (let i = 0; i < this.n; i++) {
        inRow[2 * i] = xy[2 * points[i]];
        inRow[2 * i + 1] = xy[2 * points[i] + 1];
        if (this.map.labels) label[i] = this.map.labels[points[i]];
      }
      const near = new Uint32Array(bytes(arm.near).buffer);
      const cosine = new Int8Array(bytes(arm.cosine).buffer);
      this.arms.set(a, { xy, side, starts, points, inRow, label, near, cosine, k: arm.k });
    }
    this.arm = this.arms.get(a);
    this.name = this.map.arms[a].name;
    if (this.selected >= 0) this.select(this.selected, true);
    this.later();
  }

  resize() {
    const scale = Math.min(2, window.devicePixelRatio || 1);
    this.scale = scale;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * scale));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * scale));
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    const r = Math.round((this.n > 20000 ? 0.6 : 1) * RADIUS * scale);
    this.radius = Math.ceil(1.2 * r);
    this.marks = SHAPES.map((inside) => {
      const offsets = [];
      for (let y = -this.radius; y <= this.radius; y++) {
        for (let x = -this.radius; x <= this.radius; x++) if (inside(x, y, r)) offsets.push(y * this.canvas.width + x);
      }
      return Int32Array.from(offsets);
    });
    this.later();
  }

  later() {
    if (this.waiting || !this.pixels) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  // Pixels of the canvas that a unit of the map takes, and the pixel of the map's origin.
  frame() {
    const unit = Math.min(this.canvas.width, this.canvas.height) * 0.94 * this.view.zoom;
    return [unit, this.canvas.width / 2 - this.view.x * unit, this.canvas.height / 2 - this.view.y * unit];
  }

  at(point) {
    const [unit, x, y] = this.frame();
    return [x + (this.arm.xy[2 * point] / 65535) * unit, y + (this.arm.xy[2 * point + 1] / 65535) * unit];
  }

  // The cells that a box of canvas pixels touches, row by row.
  *rows(left, top, right, bottom) {
    const [unit, x, y] = this.frame();
    const side = this.arm.side;
    const clip = (v) => Math.max(0, Math.min(side - 1, Math.floor(v * side)));
    const [c0, c1] = [clip((left - x) / unit), clip((right - x) / unit)];
    for (let r = clip((top - y) / unit); r <= clip((bottom - y) / unit); r++) {
      yield [this.arm.starts[r * side + c0], this.arm.starts[r * side + c1 + 1]];
    }
  }

  draw() {
    this.pixels.fill(packed(color("--ground")));
    if (this.only >= 0) this.stamp(false);
    this.stamp(true);
    this.context.putImageData(this.image, 0, 0);
    if (this.selected >= 0) {
      const k = this.arm.k;
      for (let j = 0; j < k; j++) this.ring(this.arm.near[this.selected * k + j], 6, 1.5);
      this.ring(this.selected, 9, 3);
    }
    if (this.hovered >= 0) this.ring(this.hovered, 7, 2);
    document.documentElement.dataset.ready = "1";
  }

  // Marks of the points that are shown, or, below them, pale ones of the others.
  stamp(shown) {
    const [width, height] = [this.canvas.width, this.canvas.height];
    const colors = [0, 1, 2, 3, 4, 5].map((k) => packed(color(shown ? `--run-${k}` : "--edge")));
    const { inRow, label } = this.arm;
    const { pixels, marks, only, radius: edge } = this;
    const [unit, x0, y0] = this.frame();
    const scale = unit / 65535;
    for (const [first, last] of this.rows(0, 0, width, height)) {
      for (let i = first; i < last; i++) {
        const own = label[i];
        if (only >= 0 && (own === only) !== shown) continue;
        const x = (x0 + inRow[2 * i] * scale + 0.5) | 0;
        const y = (y0 + inRow[2 * i + 1] * scale + 0.5) | 0;
        if (x < edge || y < edge || x >= width - edge || y >= height - edge) continue;
        const mark = own < 0 ? marks[0] : marks[((own / 6) | 0) % 5];
        const paint = own < 0 ? colors[0] : colors[own % 6];
        const base = y * width + x;
        for (let k = 0; k < mark.length; k++) pixels[base + mark[k]] = paint;
      }
    }
  }

  ring(point, radius, line) {
    const [x, y] = this.at(point);
    const context = this.context;
    context.beginPath();
    context.arc(x, y, radius * this.scale, 0, 2 * Math.PI);
    context.lineWidth = line * this.scale;
    context.strokeStyle = color("--ink");
    context.stroke();
  }

  // The point nearest to a place of the canvas, or -1.
  pick(event) {
    const box = this.canvas.getBoundingClientRect();
    const [px, py] = [(event.clientX - box.left) * this.scale, (event.clientY - box.top) * this.scale];
    const reach = REACH * this.scale;
    let [found, least] = [-1, reach * reach];
    for (const [first, last] of this.rows(px - reach, py - reach, px + reach, py + reach)) {
      for (let i = first; i < last; i++) {
        const p = this.arm.points[i];
        if (this.only >= 0 && this.map.labels[p] !== this.only) continue;
        const [x, y] = this.at(p);
        const distance = (x - px) ** 2 + (y - py) ** 2;
        if (distance < least) [found, least] = [p, distance];
      }
    }
    return found;
  }

  said_of(point) {
    const label = this.map.labels ? this.map.labels[point] : -1;
    return label >= 0 ? `${this.map.classes[label]}, ${this.map.names[point]}` : this.map.names[point];
  }

  hover(point) {
    if (point === this.hovered) return;
    this.hovered = point;
    this.tip.hidden = point < 0;
    if (point >= 0) {
      const thumb = node("span", { class: "thumb" });
      this.tip.replaceChildren(thumb, node("span", { class: "name" }, this.said_of(point)));
      const [x, y] = this.at(point).map((v) => v / this.scale);
      this.tip.style.left = `${x > this.canvas.clientWidth / 2 ? Math.max(0, x - 160) : x + 14}px`;
      this.tip.style.top = `${Math.max(0, Math.min(y - 40, this.canvas.clientHeight - 190))}px`;
      this.thumbnails.fill(thumb, point, thumb.clientWidth);
    }
    this.later();
  }

  select(point, quietly = false) {
    this.selected = point;
    const box = this.box.querySelector(".near");
    if (point < 0) box.replaceChildren();
    else {
      const k = this.arm.k;
      const cards = Array.from({ length: k }, (_, j) => {
        const other = this.arm.near[point * k + j];
        return this.card(other, `${(this.arm.cosine[point * k + j] / 100).toFixed(2)} `);
      });
      const title = node("h3", {}, `${this.name}: nearest to ${this.said_of(point)}`);
      const own = node("p", {}, this.card(point, ""));
      box.replaceChildren(title, own, node("ol", {}, ...cards.map((card) => node("li", {}, card))));
      for (const [element, p] of this.unfilled.splice(0)) this.thumbnails.fill(element, p, element.clientWidth);
      if (!quietly) this.said.textContent = `${this.said_of(point)}: ${k} neighbors are listed below the map.`;
    }
    this.later();
  }

  card(point, figure) {
    const thumb = node("span", { class: "thumb" });
    (this.unfilled ??= []).push([thumb, point]);
    const button = node("button", { type: "button" }, thumb, node("span", { class: "name" }, figure + this.said_of(point)));
    button.addEventListener("click", () => this.select(point));
    return button;
  }

  zoom(factor, px = this.canvas.width / 2, py = this.canvas.height / 2) {
    const [unit] = this.frame();
    const zoom = Math.max(1, Math.min(60, this.view.zoom * factor));
    const share = (1 - this.view.zoom / zoom) / unit; // what is at px, py stays there
    this.view = {
      zoom,
      x: this.view.x + (px - this.canvas.width / 2) * share,
      y: this.view.y + (py - this.canvas.height / 2) * share,
    };
    if (zoom === 1) this.view = { zoom, x: 0.5, y: 0.5 };
    this.hover(-1);
    this.later();
  }

  // The nearest point in a direction, by a cone of 45 degrees about it.
  step(dx, dy) {
    const from = this.hovered >= 0 ? this.hovered : this.selected;
    const { xy } = this.arm;
    const [x0, y0] = from >= 0 ? [xy[2 * from], xy[2 * from + 1]] : [this.view.x * 65535, this.view.y * 65535];
    let [found, least] = [-1, Infinity];
    for (let p = 0; p < this.n; p++) {
      if (p === from || (this.only >= 0 && this.map.labels[p] !== this.only)) continue;
      const [x, y] = [xy[2 * p] - x0, xy[2 * p + 1] - y0];
      const along = x * dx + y * dy;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (from >= 0 && (along <= 0 || aside > along)) continue;
      const distance = x * x + y * y;
      if (distance < least) [found, least] = [p, distance];
    }
    if (found < 0) return;
    const [x, y] = [xy[2 * found] / 65535, xy[2 * found + 1] / 65535];
    if (this.view.zoom > 1) this.view = { zoom: this.view.zoom, x, y };
    this.hover(found);
    this.said.textContent = this.said_of(found);
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) this.step(...steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.select(this.hovered >= 0 ? this.hovered : this.selected);
    else if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.zoom(0);
    else if (event.key === "Escape") {
      this.hover(-1);
      this.select(-1);
    } else return;
    event.preventDefault();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.hover(-1));
    canvas.addEventListener("pointerdown", (event) => {
      this.grip = { x: event.clientX, y: event.clientY, view: this.view, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const grip = this.grip;
      if (!grip) return this.hover(this.pick(event));
      const [dx, dy] = [event.clientX - grip.x, event.clientY - grip.y];
      if (Math.hypot(dx, dy) > 5) grip.moved = true;
      if (!grip.moved) return;
      const unit = this.frame()[0] / this.scale;
      this.view = { zoom: this.view.zoom, x: grip.view.x - dx / unit, y: grip.view.y - dy / unit };
      this.hover(-1);
      this.later();
    });
    canvas.addEventListener("pointerup", (event) => {
      const clicked = this.grip && !this.grip.moved ? this.pick(event) : -1;
      this.grip = null;
      if (clicked >= 0) this.select(clicked);
    });
    canvas.addEventListener("pointercancel", () => (this.grip = null));
    canvas.addEventListener("pointerleave", () => this.grip || this.hover(-1));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // else the page scrolls
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY / 400), (event.clientX - box.left) * this.scale, (event.clientY - box.top) * this.scale);
    }, { passive: false });
    for (const input of this.box.querySelectorAll(".arms input")) {
      input.addEventListener("change", () => this.choose(Number(input.value)));
    }
    const actions = { in: () => this.zoom(1.5), out: () => this.zoom(1 / 1.5), all: () => this.zoom(0) };
    for (const button of this.box.querySelectorAll("[data-do]")) {
      button.addEventListener("click", actions[button.dataset.do]);
    }
  }

  legend() {
    const box = this.box.querySelector(".classes");
    if (!box) return;
    const buttons = this.map.classes.map((name, k) => {
      const button = node("button", { type: "button", "aria-pressed": "false" }, node("canvas", { width: 32, height: 32 }), name);
      button.addEventListener("click", () => {
        this.only = this.only === k ? -1 : k;
        buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i === this.only)));
        this.hover(-1);
        this.later();
      });
      return button;
    });
    box.append(...buttons);
    this.keys = () => buttons.forEach((button, k) => key(button.firstChild, k));
    this.keys();
  }
}

// The mark of a class, large.
function key(canvas, label) {
  const context = canvas.getContext("2d");
  const inside = SHAPES[Math.floor(label / 6) % SHAPES.length];
  context.clearRect(0, 0, 32, 32);
  context.fillStyle = color(`--run-${label % 6}`);
  for (let y = -16; y < 16; y++) for (let x = -16; x < 16; x++) if (inside(x, y, 12)) context.fillRect(16 + x, 16 + y, 1, 1);
}
