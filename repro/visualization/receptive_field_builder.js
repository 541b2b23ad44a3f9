/* A small net to be built by hand: sliders for its layers, the recurrence written out, and the grids that follow it.
 *
 * From `model` it asks: image (pixels of a side), settings = [[kernel, stride, padding]] for as many layers as there
 * may be, count (how many of them are in use at the start), and limits = {control: [smallest, largest]}.
 */
import { h } from "./elements.js";
import { chain, netOf, writtenOut } from "./receptive_field_arithmetic.js";
import { Grids } from "./receptive_field_grids.js";

const FORMULAS = ["r ← r + (k − 1)·j", "j ← j·s", "x ← x + ((k − 1)/2 − p)·j", "n ← ⌊(n + 2p − k)/s⌋ + 1"];
const MEANINGS = "On the right of an arrow stand the values of the layer below; the image has r = 1, j = 1 and x = 0. "
  + "r is the receptive field and j the effective stride (the pixels from one unit's field to the next one's), x the "
  + "centre of the first unit's field, n the number of units along an axis.";

export class Builder {
  constructor(model) {
    this.limits = model.get("limits");
    this.image = model.get("image");
    this.count = model.get("count");
    this.settings = model.get("settings").map((setting) => [...setting]);
    const least = { layers: this.count, image: this.image };
    const general = ["image", "layers"].map((name) => this.slider(name, name === "image" ? "image, pixels of a side"
      : "layers", name, least[name], (value) => {
      if (name === "image") this.image = value;
      else this.count = value;
    }));
    this.cards = this.settings.map((setting, i) => this.card(setting, i));
    this.grids = new Grids(this.net());
    this.element = h("div", { class: "builder" },
      h("div", { class: "controls" }, ...general),
      h("div", { class: "rule" }, ...FORMULAS.map((text) => h("span", {}, text)), h("p", {}, MEANINGS)),
      h("div", { class: "cards" }, ...this.cards.map(({ element }) => element)), this.grids.element);
    this.refresh();
  }

  card(setting, i) {
    const sliders = ["kernel", "stride", "padding"].map((name, which) => this.slider(`${name}${i + 1}`, name, name,
      setting[which], (value) => (setting[which] = value), `${name} of layer ${i + 1}`));
    const lines = h("div", { class: "lines", role: "group", "aria-label": `Layer ${i + 1}, worked out` });
    return { lines, element: h("fieldset", {}, h("legend", {}, `layer ${i + 1}`), ...sliders, lines) };
  }

  slider(name, label, limit, start, set, spoken = label) {
    const [min, max] = this.limits[limit];
    const value = h("output", {}, start);
    const input = h("input", { type: "range", name, min, max, step: 1, value: start, "aria-label": spoken });
    input.addEventListener("input", () => {
      set(input.valueAsNumber);
      value.textContent = input.value;
      this.refresh();
      this.grids.say(`${spoken} ${input.value}. ${this.summary()}`);
    });
    return h("label", {}, h("span", {}, label), value, input);
  }

  used() {
    return this.settings.slice(0, this.count);
  }

  levels() {
    return chain(this.image, this.used());
  }

  net() {
    return netOf(this.levels(), this.used());
  }

  summary() {
    const levels = this.levels();
    const { r, j, n } = levels.at(-1);
    const stopped = levels.length <= this.count ? ` Layer ${levels.length} does not fit.` : "";
    return `Layer ${levels.length - 1}: receptive field ${r}, effective stride ${j}, ${n} by ${n} units.${stopped}`;
  }

  refresh() {
    const levels = this.levels();
    this.cards.forEach(({ element, lines }, i) => {
      element.hidden = i >= this.count;
      const fits = i + 1 < levels.length;
      element.classList.toggle("impossible", i < this.count && !fits);
      const texts = i < this.count && i < levels.length ? writtenOut(levels, this.used(), i + 1)
        : ["There is nothing to stand on."];
      lines.replaceChildren(...texts.map((text) => h("span", {}, text)));
    });
    this.grids.show(this.net());
  }

  stop() {
    this.grids.stop();
  }
}
