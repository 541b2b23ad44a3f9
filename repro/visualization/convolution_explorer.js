/* The convolution explorer: which input pixels does an output unit read, and which units read a pixel?
 *
 * An ES module in anywidget's form. From `model` it asks only for starting values: input_size, kernel_size,
 * stride, padding, dilation, and limits = {control: [smallest, largest]}.
 */
import {
  aboutPixel, aboutSize, aboutUnit, isPixel, minus, neverRead, outputSize, range, readers, slack, taps, worked,
} from "./convolution_arithmetic.js";
import { h, svg } from "./elements.js";

const italic = (text) => text.split(/([a-z])/).map((part) => (/[a-z]/.test(part) ? h("i", {}, part) : part));

const CONTROLS = {
  input_size: ["input size", "n"],
  kernel_size: ["kernel size", "k"],
  stride: ["stride", "s"],
  padding: ["padding", "p"],
  dilation: ["dilation", "d"],
};
const LEGEND = { window: "read by the unit", unit: "output unit", zero: "padding zero", unread: "never read" };

class ConvolutionExplorer {
  constructor(model, el) {
    this.names = Object.keys(CONTROLS);
    this.start = Object.fromEntries(this.names.map((name) => [name, model.get(name)]));
    this.v = { ...this.start };
    this.at = { grid: "output", row: 0, column: 0 };
    this.stage = h("div", { class: "stage" });
    this.live = h("p", { class: "spoken", "aria-live": "polite" });
    this.sentence = h("p", { class: "reading" });
    this.verdict = h("p", { class: "verdict" });
    this.steps = h("div", { class: "steps", "aria-label": "Output size, worked out", role: "group" });
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", "Explorer: the sizes of a convolution");
    el.replaceChildren(
      this.buildControls(model.get("limits")), this.stage, this.buildLegend(), this.buildButtons(),
      h("div", { class: "words" }, this.steps, h("div", {}, this.verdict, this.sentence)), this.live,
    );
    this.stage.addEventListener("pointerover", (event) => this.onPointer(event));
    this.stage.addEventListener("click", (event) => this.onPointer(event));
    this.stage.addEventListener("focusin", (event) => this.onPointer(event));
    this.stage.addEventListener("keydown", (event) => this.onKey(event));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.stage);
    this.refresh();
  }

  buildControls(limits) {
    this.inputs = {};
    const fields = this.names.map((name) => {
      const [label, symbol] = CONTROLS[name];
      const [min, max] = limits[name];
      const value = h("output", {});
      const input = h("input", { type: "range", min, max, step: 1, name, "aria-label": label });
      input.addEventListener("input", () => this.set({ [name]: input.valueAsNumber }));
      this.inputs[name] = { input, value };
      return h("label", {}, h("span", {}, `${label} `, h("i", {}, symbol)), value, input);
    });
    return h("div", { class: "controls" }, ...fields);
  }

  buildLegend() {
    const entries = Object.entries(LEGEND).map(([kind, text]) => {
      const swatch = svg("svg", { width: 14, height: 14, "aria-hidden": "true" });
      swatch.append(...cell(kind, 0, 0, 14));
      return h("span", {}, swatch, text);
    });
    return h("div", { class: "legend" }, ...entries);
  }

  buildButtons() {
    const button = (label, text, action, kind = "") => {
      const node = h("button", { type: "button", "aria-label": label, class: kind }, text);
      node.addEventListener("click", action);
      return node;
    };
    this.playButton = button("Play", "Play", () => (this.timer ? this.pause() : this.play()), "play");
    return h("div", { class: "buttons" },
      button("Previous output unit", "‹", () => this.step(-1)), this.playButton,
      button("Next output unit", "›", () => this.step(1)),
      button("Reset", "Reset", () => this.set(this.start), "reset"));
  }

  /* State. */
  set(changes) {
    this.pause();
    Object.assign(this.v, changes);
    this.refresh();
    const size = outputSize(this.v);
    this.say(`${size ? `Output ${size} by ${size}.` : ""} ${aboutSize(this.v)}`);
  }

  select(grid, row, column, spoken = true) {
    this.at = { grid, row, column };
    this.light();
    if (spoken) this.say(this.sentence.textContent);
  }

  step(by) {
    this.pause();
    this.move(by);
    this.say(this.sentence.textContent);
  }

  move(by) {
    const size = outputSize(this.v);
    if (size === 0) return;
    const now = this.at.grid === "output" ? this.at.row * size + this.at.column : -1;
    const next = (now + by + size * size) % (size * size);
    this.select("output", Math.floor(next / size), next % size, false);
  }

  play() {
    const units = outputSize(this.v) ** 2;
    if (units === 0) return;
    this.select("output", 0, 0, false);
    let left = units - 1;
    const tick = () => (left-- > 0 ? this.move(1) : this.pause());
    this.timer = setInterval(tick, Math.min(450, Math.max(80, 9000 / units)));
    this.setPlay("Pause");
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.setPlay("Play");
  }

  setPlay(label) {
    this.playButton.textContent = label;
    this.playButton.setAttribute("aria-label", label);
  }

  /* One message after the reader has paused, instead of one for every step of a slider. */
  say(text) {
    clearTimeout(this.speech);
    this.speech = setTimeout(() => (this.live.textContent = text), 300);
  }

  /* Mouse, touch and keys. */
  onPointer(event) {
    const target = event.target.closest("[data-grid]");
    if (!target) return;
    this.pause();
    const { grid, row, column } = target.dataset;
    if (event.type === "click") target.focus();
    this.select(grid, Number(row), Number(column));
  }

  onKey(event) {
    const target = event.target.closest("[data-grid]");
    if (!target) return;
    const { grid } = target.dataset;
    const [first, last] = this.ends(grid);
    const row = Number(target.dataset.row);
    const column = Number(target.dataset.column);
    const goal = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, first], End: [row, last],
    }[event.key];
    if (!goal) return;
    event.preventDefault();
    const [r, c] = goal.map((x) => Math.min(last, Math.max(first, x)));
    this.cells[grid].get(`${r},${c}`).focus();
  }

  ends(grid) {
    const { input_size: n, padding: p } = this.v;
    return grid === "input" ? [-p, n + p - 1] : [0, outputSize(this.v) - 1];
  }

  /* Drawing. */
  refresh() {
    for (const [name, { input, value }] of Object.entries(this.inputs)) {
      input.value = this.v[name];
      value.textContent = this.v[name];
    }
    const [first, last] = this.ends(this.at.grid);
    const clamp = (x) => Math.max(first, Math.min(last, x));
    this.at = { ...this.at, row: clamp(this.at.row), column: clamp(this.at.column) };
    this.steps.replaceChildren(...worked(this.v).flatMap((text, i) => [
      h("i", {}, i === 0 ? "o" : ""), h("span", {}, "= ", ...(i === 0 ? italic(text) : [text]))]));
    this.verdict.textContent = aboutSize(this.v);
    this.verdict.classList.toggle("impossible", slack(this.v) < 0);
    this.draw();
  }

  draw() {
    const hadFocus = this.stage.contains(document.activeElement);
    const place = layout(this.v, this.stage.clientWidth);
    this.cells = { input: new Map(), output: new Map() };
    this.overlay = svg("g", { class: "overlay", "aria-hidden": "true" });
    this.stage.replaceChildren(svg("svg",
      { width: place.width, height: place.height, role: "group", "aria-label": "Input and output" },
      this.drawGrid("input", place), this.drawGrid("output", place), this.overlay));
    this.place = place;
    this.light();
    if (hadFocus) this.cells[this.at.grid].get(`${this.at.row},${this.at.column}`)?.focus();
  }

  drawGrid(grid, place) {
    const [first, last] = this.ends(grid);
    const { x, y, title, titleY } = place[grid];
    const positions = range(first, last + 1);
    const unread = new Set(neverRead(this.v));
    const role = positions.length ? "grid" : "group";
    const group = svg("g", { role, "aria-label": positions.length ? `${title}. Arrow keys move.` : title });
    const around = svg("g", { "aria-hidden": "true", class: "labels" });
    around.append(svg("text", { x: place[grid].centre, y: titleY, class: "title" }, title));
    for (const row of positions) {
      const line = svg("g", { role: "row" });
      for (const column of positions) {
        const real = grid === "output" || (isPixel(this.v, row) && isPixel(this.v, column));
        const lost = grid === "input" && (unread.has(row) || unread.has(column));
        const kind = !real ? "zero" : lost ? "unread" : grid === "input" ? "pixel" : "result";
        const left = x + (column - first) * place.cell;
        const top = y + (row - first) * place.cell;
        const node = svg("g", { role: "gridcell", "data-grid": grid, "data-row": row, "data-column": column,
          tabindex: -1, "aria-label": `row ${minus(row)}, column ${minus(column)}` });
        node.append(...cell(kind, left, top, place.cell));
        this.cells[grid].set(`${row},${column}`, node);
        line.append(node);
      }
      group.append(line);
      if (place.cell >= 15) around.append(...index(row, x, y, row - first, place.cell));
    }
    if (!positions.length) {
      around.append(svg("rect", { x, y, width: place[grid].side, height: place[grid].side, rx: 4, class: "none" }));
    }
    return svg("g", {}, around, group);
  }

  light() {
    const { grid, row, column } = this.at;
    const size = outputSize(this.v);
    const outputs = grid === "output" ? [[row], [column]] : [readers(this.v, row), readers(this.v, column)];
    const inputs = grid === "input" ? [[row], [column]] : [taps(this.v, row), taps(this.v, column)];
    const lit = { input: size || grid === "input" ? inputs : [[], []], output: size ? outputs : [[], []] };
    for (const [name, cells] of Object.entries(this.cells)) {
      const [first] = this.ends(name);
      for (const node of cells.values()) {
        const r = Number(node.dataset.row);
        const c = Number(node.dataset.column);
        const here = name === grid ? r === row && c === column : r === first && c === first;
        node.classList.toggle("lit", lit[name][0].includes(r) && lit[name][1].includes(c));
        node.setAttribute("tabindex", here ? 0 : -1);
        node.setAttribute("aria-selected", String(name === grid && here));
      }
    }
    this.sentence.textContent = grid === "input" ? aboutPixel(this.v, this.at)
      : size ? aboutUnit(this.v, this.at) : "";
    this.drawOverlay(lit);
  }

  /* The outline of what is lit in either grid, and two thin lines that join them. */
  drawOverlay(lit) {
    const boxes = Object.entries(lit).map(([grid, [rows, columns]]) => {
      if (!rows.length || !columns.length) return null;
      const [first] = this.ends(grid);
      const { cell: size } = this.place;
      const { x, y } = this.place[grid];
      return { grid, left: x + (columns[0] - first) * size, right: x + (columns.at(-1) + 1 - first) * size,
        top: y + (rows[0] - first) * size, bottom: y + (rows.at(-1) + 1 - first) * size };
    });
    this.overlay.replaceChildren();
    if (boxes.includes(null)) return;
    const [a, b] = boxes;
    const joins = this.place.wide
      ? [[a.right, a.top, b.left, b.top], [a.right, a.bottom, b.left, b.bottom]]
      : [[a.left, a.bottom, b.left, b.top], [a.right, a.bottom, b.right, b.top]];
    for (const [x1, y1, x2, y2] of joins) this.overlay.append(svg("line", { x1, y1, x2, y2 }));
    for (const box of boxes) {
      this.overlay.append(svg("rect", { x: box.left, y: box.top, width: box.right - box.left,
        height: box.bottom - box.top, rx: 3, class: box.grid }));
    }
  }

  stop() {
    this.pause();
    clearTimeout(this.speech);
    this.observer.disconnect();
  }
}

/* A square of the grid. Shape and marks say the same as colour: a dot is a tap, a stroke is never read. */
function cell(kind, x, y, size) {
  const inset = size > 16 ? 1.5 : 1;
  const side = size - 2 * inset;
  const marks = [svg("rect", { x: x + inset, y: y + inset, width: side, height: side, rx: side / 8, class: kind })];
  if (kind === "unread") {
    const [near, far] = [size * 0.28, size * 0.72];
    marks.push(svg("line", { x1: x + near, y1: y + far, x2: x + far, y2: y + near, class: "stroke" }));
  }
  marks.push(svg("circle", { cx: x + size / 2, cy: y + size / 2, r: size * 0.1, class: `dot ${kind}` }));
  return marks;
}

/* The number of a row and of the column of the same position, outside the grid. */
function index(position, x, y, i, size) {
  const middle = (i + 0.5) * size;
  const text = minus(position);
  return [svg("text", { x: x + middle, y: y - 7 }, text),
    svg("text", { x: x - 11, y: y + middle + 3.5 }, text)];
}

/* Where the two grids go: side by side in a stage of constant height, or one above the other on a phone. */
function layout(v, width) {
  const [LABEL, TITLE, GAP, BETWEEN, TALLEST, LARGEST] = [26, 40, 64, 46, 330, 34];
  const wide = width >= 520;
  const padded = v.input_size + 2 * v.padding;
  const size = outputSize(v);
  const across = wide ? padded + Math.max(size, 1) : Math.max(padded, size);
  const room = wide ? width - 2 * LABEL - GAP : width - 2 * LABEL;
  const down = wide ? (TALLEST - TITLE) / Math.max(padded, size) : LARGEST;
  const cellSize = Math.max(4, Math.floor(Math.min(LARGEST, room / across, down)));
  const sides = { input: padded * cellSize, output: (size || 2) * cellSize };
  const boxes = { input: Math.max(sides.input, 120), output: Math.max(sides.output, 90) };
  const total = wide ? boxes.input + GAP + LABEL + boxes.output : 0;
  const height = wide ? TALLEST : sides.input + sides.output + TITLE + BETWEEN + 28;
  const centres = wide
    ? { input: (width - total) / 2 + boxes.input / 2, output: (width + total) / 2 - boxes.output / 2 }
    : { input: width / 2, output: width / 2 };
  const tops = wide
    ? { input: TITLE + (TALLEST - TITLE - sides.input) / 2, output: TITLE + (TALLEST - TITLE - sides.output) / 2 }
    : { input: TITLE, output: TITLE + sides.input + BETWEEN };
  const titles = {
    input: `input ${v.input_size} × ${v.input_size}` + (v.padding ? `, padded ${padded} × ${padded}` : ""),
    output: size ? `output ${size} × ${size}` : "no output",
  };
  // On a phone the lower title stands below its grid, out of the way of the lines between the two.
  const place = (grid) => ({ x: Math.round(centres[grid] - sides[grid] / 2), y: Math.round(tops[grid]),
    side: sides[grid], centre: centres[grid], title: titles[grid],
    titleY: Math.round(tops[grid]) + (wide || grid === "input" ? -24 : sides.output + 20) });
  return { width, height, wide, cell: cellSize, input: place("input"), output: place("output") };
}

export default {
  render({ model, el }) {
    const explorer = new ConvolutionExplorer(model, el);
    return () => explorer.stop();
  },
};
