/* The augmentation explorer: one picture as it is stored, and as the net sees it.
 *
 * An ES module in anywidget's form. From `model` it asks: side and crop in pixels, sigma, views = [[top, left,
 * mirrored]], root and printed = what an α of 1 adds to (R, G, B) along each component, and pictures = [{name,
 * pixels}], the pixels being side × side × 3 bytes in base64.
 */
const h = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(Math.round(x))}`;

/* What is added to (R, G, B): the sum over the components of α times the component's direction. */
export function colourShift(alphas, directions) {
  return [0, 1, 2].map((c) => directions.reduce((sum, direction, i) => sum + alphas[i] * direction[c], 0));
}

/* RGBA of the window at (top, left), mirrored or not, with `shift` added to every pixel. */
export function augment(pixels, side, crop, { top, left, mirrored }, shift) {
  const out = new Uint8ClampedArray(crop * crop * 4); // rounds and clips what is written into it
  for (let row = 0; row < crop; row++) {
    for (let column = 0; column < crop; column++) {
      const from = ((top + row) * side + left + (mirrored ? crop - 1 - column : column)) * 3;
      const to = (row * crop + column) * 4;
      for (let c = 0; c < 3; c++) out[to + c] = pixels[from + c] + shift[c];
      out[to + 3] = 255;
    }
  }
  return out;
}

/* One draw from a normal distribution (Box and Muller). */
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

class AugmentationExplorer {
  constructor(model, el) {
    for (const name of ["side", "crop", "sigma", "views", "root", "printed"]) this[name] = model.get(name);
    this.pictures = model.get("pictures").map(({ name, pixels }) => ({ name, pixels: bytes(pixels) }));
    this.last = this.side - this.crop; // the largest offset
    const middle = Math.floor(this.last / 2);
    this.start = { top: middle, left: middle, mirrored: false, alpha1: 0, alpha2: 0, alpha3: 0 };
    this.v = { picture: 0, scale: "root", ...this.start };
    this.view = -1;
    this.live = h("p", { class: "spoken", "aria-live": "polite" });
    this.sentence = h("p", { class: "reading" });
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", "Explorer: a picture before and after augmentation");
    el.replaceChildren(this.buildStage(), this.sentence, this.buildControls(), this.buildButtons(), this.live);
    this.refresh();
  }

  /* Two canvases, before and after; the window is an outline over the first. */
  buildStage() {
    const canvas = (size, label) => h("canvas", { width: size, height: size, role: "img", "aria-label": label });
    this.before = canvas(this.side, "stored picture");
    this.after = canvas(this.crop, "what the net sees");
    this.outline = h("div", { class: "outline", "aria-hidden": "true" });
    this.frame = h("div", { class: "frame" }, this.before, this.outline);
    this.frame.addEventListener("pointerdown", (event) => this.onPointer(event));
    const scaled = h("div", { class: "frame", style: `width: ${(100 * this.crop) / this.side}%` }, this.after);
    return h("div", { class: "stage" },
      h("figure", {}, this.frame, h("figcaption", {}, `stored, ${this.side} × ${this.side}`)),
      h("figure", {}, scaled, h("figcaption", {}, `what the net sees, ${this.crop} × ${this.crop}`)));
  }

  buildControls() {
    this.inputs = {};
    const limit = Number((3 * this.sigma).toPrecision(6)); // 3 · 0.1 is not 0.3, and 0 has to be a step of the slider
    const colour = { min: -limit, max: limit, step: limit / 30 };
    const place = { min: 0, max: this.last, step: 1 };
    return h("div", { class: "controls" },
      this.choice("picture", "picture", this.pictures.map(({ name }, i) => [i, name])),
      this.choice("scale", "noise along a component", [["root", "α √λ"], ["printed", "α λ, as printed"]]),
      this.checkbox("mirrored", "mirrored"),
      this.slider("top", "window from the top", place), this.slider("left", "window from the left", place),
      ...[1, 2, 3].map((i) => this.slider(`alpha${i}`, `α${"₁₂₃"[i - 1]}`, colour)));
  }

  choice(name, label, options) {
    const input = h("select", { name }, ...options.map(([value, text]) => h("option", { value }, text)));
    input.addEventListener("change", () => this.set({ [name]: name === "picture" ? Number(input.value) : input.value }));
    this.inputs[name] = { input, show: (value) => (input.value = value) };
    return h("label", { class: "choice" }, h("span", {}, label), input);
  }

  checkbox(name, label) {
    const input = h("input", { type: "checkbox", name });
    input.addEventListener("change", () => this.set({ [name]: input.checked }));
    this.inputs[name] = { input, show: (value) => (input.checked = value) };
    return h("label", { class: "check" }, input, h("span", {}, label));
  }

  slider(name, label, range) {
    const value = h("output", {});
    const input = h("input", { type: "range", name, "aria-label": label, ...range });
    const digits = range.step < 1 ? 2 : 0;
    input.addEventListener("input", () => this.set({ [name]: input.valueAsNumber }));
    const show = (x) => {
      input.value = x;
      value.textContent = x.toFixed(digits).replace("-", "−");
    };
    this.inputs[name] = { input, show };
    return h("label", {}, h("span", {}, label), value, input);
  }

  buildButtons() {
    const button = (text, action) => {
      const node = h("button", { type: "button" }, text);
      node.addEventListener("click", action);
      return node;
    };
    return h("div", { class: "buttons" },
      button("Draw anew", () => this.draw()), button("Next test view", () => this.nextView()),
      button("Reset", () => this.set(this.start)));
  }

  /* State. */
  set(changes, words = "") {
    if ("top" in changes || "left" in changes || "mirrored" in changes) this.view = -1;
    Object.assign(this.v, changes);
    this.refresh();
    this.say(`${words}${this.sentence.textContent}`);
  }

  /* As in training: every window equally likely, a coin for the reflection, α from a normal distribution. */
  draw() {
    const offset = () => Math.floor(Math.random() * (this.last + 1));
    const alphas = Object.fromEntries([1, 2, 3].map((i) => [`alpha${i}`, this.sigma * normal()]));
    this.set({ top: offset(), left: offset(), mirrored: Math.random() < 0.5, ...alphas });
  }

  nextView() {
    const next = (this.view + 1) % this.views.length;
    const [top, left, mirrored] = this.views[next];
    this.set({ ...this.start, top, left, mirrored: mirrored === 1 }, `Test view ${next + 1} of ${this.views.length}. `);
    this.view = next;
  }

  /* The window's middle goes to where the stored picture is touched. */
  onPointer(event) {
    const box = this.before.getBoundingClientRect();
    const offset = (at, from, length) => {
      const start = Math.round(((at - from) / length) * this.side - this.crop / 2);
      return Math.max(0, Math.min(this.last, start));
    };
    this.set({ top: offset(event.clientY, box.top, box.height), left: offset(event.clientX, box.left, box.width) });
  }

  /* One message after the reader has paused, instead of one for every step of a slider. */
  say(text) {
    clearTimeout(this.speech);
    this.speech = setTimeout(() => (this.live.textContent = text), 300);
  }

  refresh() {
    const { top, left, mirrored, picture, scale, alpha1, alpha2, alpha3 } = this.v;
    const { name, pixels } = this.pictures[picture];
    for (const [key, { show }] of Object.entries(this.inputs)) show(this.v[key]);
    const shift = colourShift([alpha1, alpha2, alpha3], this[scale]);
    const paint = (canvas, size, rgba) => canvas.getContext("2d").putImageData(new ImageData(rgba, size, size), 0, 0);
    const whole = { top: 0, left: 0, mirrored: false };
    paint(this.before, this.side, augment(pixels, this.side, this.side, whole, [0, 0, 0]));
    paint(this.after, this.crop, augment(pixels, this.side, this.crop, this.v, shift));
    const percent = (x) => `${(100 * x) / this.side}%`;
    Object.assign(this.outline.style,
      { top: percent(top), left: percent(left), width: percent(this.crop), height: percent(this.crop) });
    const [r, g, b] = shift.map(signed);
    const colour = shift.some((x) => Math.round(x)) ? `; ${r} red, ${g} green and ${b} blue are added` : "";
    this.sentence.textContent = `Rows ${top} to ${top + this.crop - 1} and columns ${left} to `
      + `${left + this.crop - 1} of 0 to ${this.side - 1}${mirrored ? ", mirrored" : ""}${colour}.`;
    this.before.setAttribute("aria-label", `The stored picture: ${name}.`);
    this.after.setAttribute("aria-label", `What the net sees. ${this.sentence.textContent}`);
  }

  stop() {
    clearTimeout(this.speech);
  }
}

export default {
  render({ model, el }) {
    const explorer = new AugmentationExplorer(model, el);
    return () => explorer.stop();
  },
};
