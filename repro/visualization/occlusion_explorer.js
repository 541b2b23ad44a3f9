/* The occlusion explorer: a window is moved over a photograph, and a net's answers follow it.
 *
 * An ES module in anywidget's form. From `model` it asks: side = [height, width] in pixels, levels (what stands for a
 * share of 1), hidden (the address of the picture that shows through the window), classes = [{name, colour}], and
 * pictures = [{name, photo, target, clean, activation, layer, windows}]. A window has size, stride and places, each
 * [down, across]; and for each place, row by row, a probability for every class and the activation as a share of its
 * range, in numbers of 16 bits.
 */
import { h } from "./elements.js";

const numbers = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const percent = (x) => `${(100 * x).toFixed(1)}\u00a0%`;
const clamp = (x, last) => Math.max(0, Math.min(last, x));
const times = (a, b) => `${a}×${b}`;
const channels = (hex) => [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));
/* Dark blue for 0 to pale yellow for 1: the more, the lighter, for any colour vision. */
const shade = (x) => [[32, 40, 60], [250, 220, 110]].reduce((dark, light) => dark.map((v, c) => v + x * (light[c] - v)));
const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-Infinity, 0], PageDown: [Infinity, 0], Home: [0, -Infinity], End: [0, Infinity],
};

/* A net's answers for one size of the window: probabilities, the most probable class, the activation at a place. */
function answers({ size, stride, places, probabilities, activation, range: [low, high] }, levels, classes) {
  const [p, a] = [numbers(probabilities), numbers(activation)];
  const at = (row, column) => {
    const i = row * places[1] + column;
    const shares = Array.from({ length: classes }, (_, k) => p[i * classes + k] / levels);
    return { shares, top: shares.indexOf(Math.max(...shares)), activation: low + ((high - low) * a[i]) / levels };
  };
  return { size, stride, places, at };
}

class OcclusionExplorer {
  constructor(model, el) {
    for (const name of ["side", "levels", "hidden", "classes"]) this[name] = model.get(name);
    this.pictures = model.get("pictures").map((picture) => ({
      ...picture,
      windows: picture.windows.map((one) => answers(one, this.levels, this.classes.length)),
    }));
    this.live = h("p", { class: "spoken", "aria-live": "polite" });
    this.sentence = h("p", { class: "reading" });
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", "Explorer: what a net says of a photograph while a part of it is hidden");
    const beside = h("div", { class: "beside" }, this.buildControls(), this.buildBars());
    el.replaceChildren(
      h("div", { class: "stage" }, this.buildPhoto(), beside), this.sentence, this.buildMaps(), this.live,
    );
    this.show(0, 0, this.side.map((n) => n / 2));
  }

  /* The photograph, and over it the window, which can be focused and shows what the net sees in its place. */
  buildPhoto() {
    // No <img>: the book's dark theme would put a white border around it, and the window would lie beside its place.
    this.photo = h("div", { class: "photo", role: "img", style: `aspect-ratio: ${this.side[1]} / ${this.side[0]}` });
    this.brush = h("div", { class: "brush", role: "slider", tabindex: 0, "aria-label": "window", "aria-valuemin": 1 });
    this.brush.style.backgroundImage = `url("${this.hidden}")`;
    this.brush.addEventListener("keydown", (event) => this.onKey(event));
    this.frame = h("div", { class: "frame" }, this.photo, this.brush);
    this.frame.addEventListener("pointerdown", (event) => this.onDown(event));
    this.frame.addEventListener("pointermove", (event) => this.dragging && this.toPointer(event));
    this.frame.addEventListener("click", (event) => {
      this.toPointer(event); // a tap
      this.brush.focus({ preventScroll: true }); // so that the arrow keys go on from here
    });
    for (const end of ["pointerup", "pointercancel"]) this.frame.addEventListener(end, () => (this.dragging = false));
    return this.frame;
  }

  buildControls() {
    const choice = (label, change) => {
      const input = h("select", { "aria-label": label });
      input.addEventListener("change", () => change(Number(input.value)));
      return [input, h("label", {}, h("span", {}, label), input)];
    };
    const [pictures, first] = choice("photograph", (i) => this.choose(i, 0));
    const [windows, second] = choice("window (pixels)", (i) => this.choose(this.chosen, i));
    pictures.append(...this.pictures.map(({ name }, i) => h("option", { value: i }, name)));
    this.windows = windows;
    return h("div", { class: "controls" }, first, second);
  }

  /* A row for each class: its colour in the map, its name, a bar with a mark where it ends without a window. */
  buildBars() {
    this.bars = this.classes.map(({ name, colour }) => {
      const bar = { name: h("span", {}, name), fill: h("i", { class: "fill" }), clean: h("i", { class: "clean" }) };
      bar.value = h("td", {});
      const key = h("i", { class: "key", style: `background: ${colour}` });
      const track = h("td", { class: "bar", "aria-hidden": "true" }, h("div", {}, bar.fill, bar.clean));
      bar.row = h("tr", {}, h("th", { scope: "row" }, key, bar.name), track, bar.value);
      return bar;
    });
    const caption = h("caption", {}, "Probability with this window; the stroke marks it without");
    return h("table", {}, caption, h("tbody", {}, ...this.bars.map(({ row }) => row)));
  }

  /* The three panels: a cell for each place of the window. */
  buildMaps() {
    const panel = (title) => {
      const canvas = h("canvas", { role: "img" });
      const mark = h("div", { class: "mark", "aria-hidden": "true" });
      const grid = h("div", { class: "grid" }, canvas, mark);
      grid.addEventListener("click", (event) => {
        const [row, column] = this.within(event, canvas).map((x, axis) => Math.floor(x * this.window.places[axis]));
        this.set(row, column);
      });
      const words = h("figcaption", {});
      return { title, canvas, mark, words, figure: h("figure", {}, grid, words) };
    };
    this.maps = ["probability of the true class", "most probable class", "activation of the strongest map"].map(panel);
    return h("div", { class: "maps" }, ...this.maps.map(({ figure }) => figure));
  }

  get picture() {
    return this.pictures[this.chosen];
  }

  /* A photograph and a size of the window, whose middle goes as near as it can to (down, across), in pixels. */
  show(chosen, size, middle) {
    this.chosen = chosen;
    this.size = size;
    this.window = this.picture.windows[size];
    this.windows.replaceChildren(...this.picture.windows.map(({ size: [down, across] }, i) => (
      h("option", { value: i }, times(down, across)))));
    this.windows.value = size;
    this.photo.style.backgroundImage = `url("${this.picture.photo}")`;
    this.photo.setAttribute("aria-label", `Photograph: ${this.picture.name}`);
    this.paint();
    [this.row, this.column] = this.nearest(middle);
    this.refresh();
  }

  choose(chosen, size) {
    const [top, left, bottom, right] = this.box();
    this.show(chosen, Math.min(size, this.pictures[chosen].windows.length - 1), [(top + bottom) / 2, (left + right) / 2]);
    this.say();
  }

  set(row, column) {
    const [rows, columns] = this.window.places;
    this.row = clamp(row, rows - 1);
    this.column = clamp(column, columns - 1);
    this.refresh();
    this.say();
  }

  nearest(middle) {
    const { size, stride, places } = this.window;
    return middle.map((x, axis) => clamp(Math.round((x - size[axis] / 2) / stride[axis]), places[axis] - 1));
  }

  /* What the window hides: top, left, bottom, right. The last one may hang over the border. */
  box() {
    const { size, stride } = this.window;
    const corner = [this.row * stride[0], this.column * stride[1]];
    return [...corner, ...corner.map((x, axis) => Math.min(x + size[axis], this.side[axis]))];
  }

  /* Where an element is touched, down and across, as shares of its height and width. */
  within(event, element) {
    const box = element.getBoundingClientRect();
    const shares = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    return shares.map((x) => clamp(x, 1));
  }

  toPointer(event) {
    this.set(...this.nearest(this.within(event, this.photo).map((x, axis) => x * this.side[axis])));
  }

  /* A finger beside the window scrolls the page; on the window, and with a mouse anywhere, it moves the window. */
  onDown(event) {
    if (event.pointerType === "touch" && event.target !== this.brush) return;
    this.dragging = true;
    this.frame.setPointerCapture(event.pointerId);
    this.toPointer(event);
  }

  onKey(event) {
    const move = MOVES[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.set(this.row + move[0], this.column + move[1]);
  }

  /* One message after the reader has paused, instead of one for every step. */
  say() {
    clearTimeout(this.speech);
    this.speech = setTimeout(() => (this.live.textContent = this.sentence.textContent), 300);
  }

  paint() {
    const { places: [rows, columns], at } = this.window;
    const { target, name, activation } = this.picture;
    const all = Array.from({ length: rows * columns }, (_, i) => at(Math.floor(i / columns), i % columns));
    const sums = all.map((one) => one.activation);
    const [low, high] = [Math.min(...sums), Math.max(...sums, activation)];
    const colours = [
      ({ shares }) => shade(shares[target]),
      ({ top }) => channels(this.classes[top].colour),
      (one) => shade((one.activation - low) / (high - low || 1)),
    ];
    const share = (x) => (activation ? percent(x / activation) : x.toFixed(1));
    const notes = ["dark 0\u00a0%, light 100\u00a0%", "colours as in the table", `dark ${share(low)}, light ${share(high)}`];
    this.maps.forEach(({ title, canvas, words }, i) => {
      Object.assign(canvas, { width: columns, height: rows });
      const pixels = new Uint8ClampedArray(all.flatMap((one) => [...colours[i](one), 255]));
      canvas.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
      canvas.setAttribute("aria-label", `Map of ${title}, ${name}, ${times(rows, columns)} places of the window`);
      words.replaceChildren(title, h("br"), h("small", {}, notes[i]));
    });
  }

  refresh() {
    const { places: [rows, columns], at } = this.window;
    const { target, clean, activation } = this.picture;
    const now = at(this.row, this.column);
    const [top, left, bottom, right] = this.box();
    const [down, across] = this.side.map((n) => (x) => `${(100 * x) / n}%`);
    Object.assign(this.brush.style, {
      top: down(top), left: across(left), height: down(bottom - top), width: across(right - left),
      backgroundSize: `${100 * this.side[1] / (right - left)}% ${100 * this.side[0] / (bottom - top)}%`,
      backgroundPosition: [[left, right, 1], [top, bottom, 0]].map(([from, to, axis]) => (
        `${(100 * from) / (this.side[axis] - to + from || 1)}%`)).join(" "),
    });
    for (const { mark } of this.maps) {
      Object.assign(mark.style, {
        top: `${(100 * this.row) / rows}%`, left: `${(100 * this.column) / columns}%`,
        height: `${100 / rows}%`, width: `${100 / columns}%`,
      });
    }
    this.bars.forEach(({ name, fill, clean: stroke, value, row }, k) => {
      name.textContent = this.classes[k].name + (k === target ? " (true)" : "");
      fill.style.width = `${100 * now.shares[k]}%`;
      stroke.style.left = `${100 * clean[k]}%`;
      value.textContent = percent(now.shares[k]);
      row.classList.toggle("top", k === now.top);
    });
    const place = `row ${this.row + 1} of ${rows}, column ${this.column + 1} of ${columns}`;
    const [here, without] = [now.shares[target], clean[target]].map(percent);
    const sum = activation ? `; the strongest map's sum is at ${percent(now.activation / activation)} of what it was` : "";
    this.sentence.textContent = `Window in ${place}: ${this.classes[target].name} ${here} instead of ${without}; the most `
      + `probable class is ${this.classes[now.top].name}${sum}.`;
    this.brush.setAttribute("aria-valuemax", rows * columns);
    this.brush.setAttribute("aria-valuenow", this.row * columns + this.column + 1);
    this.brush.setAttribute("aria-valuetext", place);
  }

  stop() {
    clearTimeout(this.speech);
  }
}

export default {
  render({ model, el }) {
    const explorer = new OcclusionExplorer(model, el);
    return () => explorer.stop();
  },
};
