/* The receptive-field explorer: what does a unit of a net read of the image, and of every layer between?
 *
 * An ES module in anywidget's form. From `model` it asks `net` (receptive_field_arithmetic.js says what that is), or,
 * for a small net with sliders, what receptive_field_builder.js names.
 */
import { Builder } from "./receptive_field_builder.js";
import { Grids } from "./receptive_field_grids.js";

export default {
  render({ model, el }) {
    const net = model.get("net");
    const shown = net ? new Grids(net) : new Builder(model);
    el.setAttribute("role", "group");
    el.setAttribute("aria-label", net ? "Explorer: what a unit reads" : "Explorer: build a net, and see what it reads");
    el.replaceChildren(shown.element);
    return () => shown.stop();
  },
};
