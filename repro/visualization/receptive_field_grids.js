/* The image and the layers above it as grids: one unit is chosen, and all that it reads is lit.
 *
 * Every grid is an SVG in units of its own layer, so a map of 224 × 224 is as quick to draw as one of 7 × 7, and the
 * colours are the style sheet's. `new Grids(net)` has an `element`; `show(net)` puts another net in its place.
 */
import { minus, range } from "./convolution_arithmetic.js";
import { h, svg } from "./elements.js";
import { around, between, support, unclipped } from "./receptive_field_arithmetic.js";

const LEGEND = { unit: "the unit", read: "what it reads", reach: "its rectangle, padding included" };
const ARROWS = [["←", "Unit to the left", 0, -1], ["↑", "Unit above", -1, 0], ["↓", "Unit below", 1, 0],
  ["→", "Unit to the right", 0, 1]];
const FACTS = ["unit, from 0", "kernel", "stride", "dilation", "receptive field", "effective stride", "effective padding",
  "reaches", "in the image"];
const by = ([height, width]) => `${height} × ${width}`;
const breakable = (path) => path.split(/(?<=[._])/).flatMap((part) => [part, h("wbr", {})]);

export class Grids {
  constructor(net) {
    this.image = h("figure", {});
    this.row = h("div", { class: "layers", role: "group", "aria-label": "The layers, from the image upwards" });
    this.title = h("p", { class: "which" });
    this.facts = h("div", { class: "facts", role: "table", "aria-label": "The chosen unit in numbers" });
    this.remark = h("p", { class: "remark" });
    this.live = h("p", { class: "spoken", "aria-live": "polite" });
    const numbers = h("div", { class: "numbers" }, this.title, this.facts, this.remark, this.buttons());
    const image = h("div", { class: "image" }, this.image, this.legend());
    this.element = h("div", { class: "grids" }, image, this.row, numbers, this.live);
    this.row.addEventListener("pointermove", (event) => event.pointerType !== "touch" && this.onPointer(event));
    this.row.addEventListener("click", (event) => this.onPointer(event));
    this.row.addEventListener("focusin", (event) => this.onFocus(event));
    this.row.addEventListener("keydown", (event) => this.onKey(event));
    this.show(net);
  }

  legend() {
    const entries = Object.entries(LEGEND).map(([kind, text]) => h("span", {},
      svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
        svg("rect", { x: 1.5, y: 1.5, width: 11, height: 11, class: kind })), text));
    return h("div", { class: "legend" }, ...entries);
  }

  buttons() {
    const nodes = ARROWS.map(([text, label, down, right]) => {
      const node = h("button", { type: "button", "aria-label": label }, text);
      node.addEventListener("click", () => this.move(down, right));
      return node;
    });
    return h("div", { class: "buttons" }, ...nodes);
  }

  /* Another net; the chosen layer and unit stay where they are as far as it has them. */
  show(net) {
    this.net = net;
    this.at = range(0, net.layers.length + 1).map((node) => {
      const units = node ? net.layers[node - 1].units : net.input;
      return units.map((n, axis) => Math.min(this.at?.[node]?.[axis] ?? Math.floor(n / 2), n - 1));
    });
    const named = range(1, net.layers.length + 1).filter((node) => net.layers[node - 1].name);
    // At first the highest layer whose units do not see the whole image: above it there is little to tell apart.
    const partial = named.filter((node) => net.layers[node - 1].size.some((size, axis) => size <= net.input[axis]));
    this.node = named.includes(this.node) ? this.node : this.node ? named.at(-1) : partial.at(-1) ?? named[0];
    this.drawImage();
    this.tiles = new Map(named.map((node) => [node, this.tile(net.layers[node - 1], node, named.length)]));
    this.row.replaceChildren(...[...this.tiles.values()].map(({ element }) => element));
    this.light();
    requestAnimationFrame(() => this.reveal());
  }

  /* Where the layers scroll: the chosen one into the middle. The page stays where it is. */
  reveal() {
    const { element } = this.tiles.get(this.node);
    const { row } = this;
    row.scrollLeft = element.offsetLeft - row.offsetLeft - (row.clientWidth - element.offsetWidth) / 2;
    row.scrollTop = element.offsetTop - row.offsetTop - (row.clientHeight - element.offsetHeight) / 2;
  }

  /* Drawing. */
  drawImage() {
    const [height, width] = this.net.input;
    // Room for what lies beyond the image; a field that is larger still runs out of the picture.
    const beyond = (axis) => Math.max(0, ...this.net.layers.map(({ padding }) => Number(padding?.[axis]) || 0));
    const most = 0.3 * Math.max(height, width);
    const [y, x] = [0, 1].map((axis) => Math.min(most, beyond(axis)) + Math.max(height, width) / 50);
    this.picture = this.grid(this.net.input, [-x, -y, width + 2 * x, height + 2 * y], 240);
    this.picture.element.setAttribute("role", "img");
    this.image.replaceChildren(this.picture.element, h("figcaption", {}, `image, ${by(this.net.input)}`));
  }

  /* `side` in pixels of the screen, about: lines between the units are drawn where they leave something between. */
  grid([height, width], box, side) {
    const shapes = {
      read: svg("path", { class: "read" }), lines: svg("path", { class: "lines" }),
      box: svg("rect", { class: "box" }), reach: svg("rect", { class: "reach" }), unit: svg("rect", { class: "unit" }),
    };
    const element = svg("svg", { viewBox: box.join(" ") },
      svg("rect", { class: "ground", width, height }), ...Object.values(shapes));
    if (Math.max(height, width) <= side / 5) {
      shapes.lines.setAttribute("d", range(1, width).map((x) => `M${x} 0V${height}`).join("")
        + range(1, height).map((y) => `M0 ${y}H${width}`).join(""));
    }
    return { element, ...shapes };
  }

  tile(layer, node, many) {
    const [height, width] = layer.units;
    const largest = Math.max(1, ...this.net.layers.flatMap(({ units }) => units));
    // Between the true proportions, which would make the upper layers too small to hit, and all of one size.
    const side = Math.max(44, (many > 40 ? 84 : many > 6 ? 112 : 150) * (Math.max(height, width) / largest) ** 0.2);
    const shapes = this.grid(layer.units, [0, 0, width, height], side);
    const scale = side / Math.max(height, width);
    shapes.element.style.width = `${Math.max(8, scale * width)}px`;
    shapes.element.style.height = `${Math.max(8, scale * height)}px`;
    shapes.element.setAttribute("preserveAspectRatio", "none");
    shapes.element.setAttribute("aria-hidden", "true");
    const element = h("div", { class: "layer", tabindex: 0, role: "application", "data-node": node,
      "data-layer": layer.name, "aria-roledescription": "grid of units",
      "aria-label": `${layer.name}, ${layer.kind}, ${by(layer.units)} units. Arrow keys move.` },
    shapes.element, h("span", { class: "name" }, ...breakable(layer.name)), h("span", {}, by(layer.units)));
    return { ...shapes, frame: shapes.element, element };
  }

  light() {
    const [row, column] = this.at[this.node];
    const masks = support(this.net, this.node, row, column);
    const boxes = [this.net.input, ...this.net.layers.map(({ units }) => units)].map(
      (units, node) => around(masks[node], units[1]));
    for (const [node, tile] of this.tiles) {
      const chosen = node === this.node;
      tile.element.classList.toggle("chosen", chosen);
      paint(tile, this.net.layers[node - 1].units[1], masks[node], chosen ? null : boxes[node]);
      place(tile.unit, chosen ? boxes[node] : null);
    }
    const reach = unclipped(this.net, this.node, row, column);
    paint(this.picture, this.net.input[1], masks[0], boxes[0]);
    place(this.picture.reach, reach);
    this.describe(reach, boxes[0]);
  }

  /* Words and numbers. */
  describe(reach, inside) {
    const layer = this.net.layers[this.node - 1];
    const at = this.at[this.node];
    const sides = [[reach.top, reach.bottom, inside?.top, inside?.bottom],
      [reach.left, reach.right, inside?.left, inside?.right]];
    const cells = sides.map(([first, stop, from, to], axis) => [
      layer.units[axis] === 1 ? "the only one" : `${at[axis]} of ${layer.units[axis]}`,
      layer.kernel[axis], layer.stride[axis], layer.dilation[axis],
      layer.size[axis], layer.step[axis], layer.padding[axis], between(first, stop),
      inside ? between(from, to) : "nothing",
    ].map((value) => String(value).replace("-", "−")));
    this.title.replaceChildren(h("b", {}, layer.name), ` ${layer.kind}`);
    const line = (role, texts) => h("div", { role: "row" },
      ...texts.map((text, i) => h("span", { role: i === 0 ? "rowheader" : role }, text)));
    this.facts.replaceChildren(line("columnheader", ["", "rows", "columns"]),
      ...FACTS.map((fact, i) => line("cell", [fact, cells[0][i], cells[1][i]])));
    const area = inside ? (inside.bottom - inside.top) * (inside.right - inside.left) : 0;
    const [count, all] = [inside?.count ?? 0, area].map((n) => n.toLocaleString("en"));
    const remarks = [count === "0" ? "It reads padding alone."
      : `It reads ${count === all ? "all" : `${count} of the`} ${all} pixels of that rectangle.`];
    if (!layer.aligned) remarks.push("Paths of different centres or steps meet in this layer.");
    this.remark.textContent = remarks.join(" ");
    const [rows, columns] = cells;
    this.picture.element.setAttribute("aria-label", inside
      ? `The image. Lit: rows ${rows[8]}, columns ${columns[8]}.` : "The image. Nothing is lit.");
    this.spoken = `${layer.name}, unit (${at.join(", ")}): receptive field ${by(layer.size)}, effective stride `
      + `${by(layer.step)}. It reaches over rows ${rows[7]} and columns ${columns[7]}; in the image: `
      + `rows ${rows[8]}, columns ${columns[8]}. ${this.remark.textContent}`;
  }

  /* One message after the reader has paused, instead of one for every unit on the way. */
  say(text) {
    clearTimeout(this.speech);
    this.speech = setTimeout(() => (this.live.textContent = text), 300);
  }

  /* Mouse, touch and keys. */
  select(node, row, column) {
    const [height, width] = this.net.layers[node - 1].units;
    const to = [Math.max(0, Math.min(height - 1, row)), Math.max(0, Math.min(width - 1, column))];
    if (node === this.node && to.join() === this.at[node].join()) return;
    this.node = node;
    this.at[node] = to;
    this.light();
    this.say(this.spoken);
  }

  move(down, right) {
    const [row, column] = this.at[this.node];
    this.select(this.node, row + down, column + right);
  }

  onPointer(event) {
    const element = event.target.closest(".layer");
    if (!element) return;
    const node = Number(element.dataset.node);
    const frame = this.tiles.get(node).frame.getBoundingClientRect();
    const [height, width] = this.net.layers[node - 1].units;
    const row = Math.floor(((event.clientY - frame.top) / frame.height) * height);
    const column = Math.floor(((event.clientX - frame.left) / frame.width) * width);
    // The name under a grid belongs to the layer, not to its last row.
    const inside = event.clientY < frame.bottom;
    this.select(node, ...(inside ? [row, column] : this.at[node]));
  }

  onFocus(event) {
    const node = Number(event.target.closest(".layer")?.dataset.node);
    if (node) this.select(node, ...this.at[node]);
  }

  onKey(event) {
    const node = Number(event.target.closest(".layer")?.dataset.node);
    const by10 = event.shiftKey ? 10 : 1;
    const goal = { ArrowUp: [-by10, 0], ArrowDown: [by10, 0], ArrowLeft: [0, -by10], ArrowRight: [0, by10],
      Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0] }[event.key];
    if (!node || !goal || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.node = node;
    this.move(...goal);
  }

  stop() {
    clearTimeout(this.speech);
  }
}

function place(rect, box) {
  rect.style.display = box ? "" : "none";
  if (!box) return;
  const { top, left, bottom, right } = box;
  const attributes = { x: left, y: top, width: right - left, height: bottom - top };
  for (const [key, value] of Object.entries(attributes)) rect.setAttribute(key, value);
}

/* Lights the marked units: one rectangle where they fill it, else a run of units after the other. */
function paint(shapes, width, mask, box) {
  place(shapes.box, box);
  if (!box) {
    shapes.read.setAttribute("d", "");
    return;
  }
  const { top, left, bottom, right, count } = box;
  const run = (x, y, across, down) => `M${x} ${y}h${across}v${down}h${-across}z`;
  if (count === (bottom - top) * (right - left)) {
    shapes.read.setAttribute("d", run(left, top, right - left, bottom - top));
    return;
  }
  const runs = [];
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      if (!mask[row * width + column]) continue;
      const start = column;
      while (column < right && mask[row * width + column]) column++;
      runs.push(run(start, row, column - start, 1));
    }
  }
  shapes.read.setAttribute("d", runs.join(""));
}
