/* What a unit reads, layer by layer and pixel by pixel, and the recurrence of a chain of layers.
 *
 * A net is {input: [h, w], layers: [layer]}; node 0 is the image and node i is layers[i - 1]. A layer has `units`
 * [h, w] and `from` = [[node, rows, columns]]: which units of an earlier node each of its own reads along an axis.
 * An axis is null (unit i reads unit i), [a, b, k, d] (unit i reads a·i + b + d·t, t = 0 … k − 1), or one list
 * [first, last, first, last, …] per unit. Positions outside the node are padding, and are nothing.
 * A layer without a name is not drawn: it only passes on. One that is has what repro.receptive_field.FieldRow says, and
 * `field` = [rows, columns]: the image's rows that unit i sees, padding included, as [a, b, c] (a·i + b to a·i + c)
 * or one [first, last] per unit. tests/browser/test_receptive_field_explorer.py holds these functions against Python.
 */
import { minus, outputSize, range, slack } from "./convolution_arithmetic.js";

export function reads(axis, unit, size) {
  if (axis === null) return [unit];
  if (Array.isArray(axis[0])) {
    const runs = axis[unit];
    return range(0, runs.length / 2).flatMap((i) => range(runs[2 * i], runs[2 * i + 1] + 1));
  }
  const [a, b, k, d] = axis;
  return range(0, k).map((t) => a * unit + b + d * t).filter((x) => x >= 0 && x < size);
}

export function reach(field, unit) {
  if (Array.isArray(field[0])) return field[unit];
  const [a, b, c] = field;
  return [a * unit + b, a * unit + c];
}

/* The rectangle that the arithmetic gives; it may reach beyond the image. Bottom and right are exclusive. */
export function unclipped(net, node, row, column) {
  const [rows, columns] = net.layers[node - 1].field;
  const [top, bottom] = reach(rows, row);
  const [left, right] = reach(columns, column);
  return { top, left, bottom: bottom + 1, right: right + 1 };
}

const unitsOf = (net, node) => (node === 0 ? net.input : net.layers[node - 1].units);

/* For each node the units that one unit of `node` reads, as bytes in rows; undefined where it reads none. */
export function support(net, node, row, column) {
  const masks = [];
  masks[node] = new Uint8Array(unitsOf(net, node)[0] * unitsOf(net, node)[1]);
  masks[node][row * unitsOf(net, node)[1] + column] = 1;
  for (let reader = node; reader > 0; reader--) {
    if (!masks[reader]) continue;
    for (const [source, rows, columns] of net.layers[reader - 1].from) {
      const size = unitsOf(net, source);
      masks[source] ??= new Uint8Array(size[0] * size[1]);
      spread(masks[reader], unitsOf(net, reader), masks[source], size, rows, columns);
    }
  }
  return masks;
}

/* Marks in `into` what the marked units of `from` read: first along the columns, then along the rows. */
function spread(from, [height, width], into, [sourceHeight, sourceWidth], rows, columns) {
  if (rows === null && columns === null) {
    for (let i = 0; i < from.length; i++) into[i] |= from[i];
    return;
  }
  const across = new Map(); // column of the reader -> columns of the source; a row asks for the same ones again
  const wide = new Uint8Array(sourceWidth);
  for (let r = 0; r < height; r++) {
    wide.fill(0);
    let any = false;
    for (let c = 0; c < width; c++) {
      if (!from[r * width + c]) continue;
      if (!across.has(c)) across.set(c, reads(columns, c, sourceWidth));
      for (const x of across.get(c)) wide[x] = 1;
      any = true;
    }
    if (!any) continue;
    for (const y of reads(rows, r, sourceHeight)) {
      for (let x = 0; x < sourceWidth; x++) into[y * sourceWidth + x] |= wide[x];
    }
  }
}

/* The smallest rectangle around the marked units, and how many they are; null for none. */
export function around(mask, width) {
  if (!mask) return null;
  let [top, left, bottom, right, count] = [Infinity, Infinity, 0, 0, 0];
  mask.forEach((marked, i) => {
    if (!marked) return;
    const [r, c] = [Math.floor(i / width), i % width];
    [top, left] = [Math.min(top, r), Math.min(left, c)];
    [bottom, right] = [Math.max(bottom, r + 1), Math.max(right, c + 1)];
    count++;
  });
  return count ? { top, left, bottom, right, count } : null;
}

export const between = (first, stop) => (stop > first ? `${minus(first)} to ${minus(stop - 1)}` : "nothing");

/* A chain of equal axes: n units, field r, step j and centre x of the first unit, for the image and each layer. */
export function chain(image, settings) {
  const levels = [{ n: image, r: 1, j: 1, x: 0 }];
  for (const [kernel, stride, padding] of settings) {
    const { n, r, j, x } = levels.at(-1);
    const size = { input_size: n, kernel_size: kernel, stride, padding, dilation: 1 };
    if (slack(size) < 0) break;
    const centre = x + ((kernel - 1) / 2 - padding) * j;
    levels.push({ n: outputSize(size), r: r + (kernel - 1) * j, j: j * stride, x: centre });
  }
  return levels;
}

/* The same with every number written out: the four lines of layer i, counted from 1. */
export function writtenOut(levels, settings, i) {
  const [k, s, p] = settings[i - 1];
  const below = levels[i - 1];
  const here = levels[i];
  const room = `⌊(${below.n} + 2·${p} − ${k})/${s}⌋ + 1`;
  if (!here) return [`n = ${room}: nothing, the kernel does not fit`];
  return [
    `r = ${below.r} + (${k} − 1)·${below.j} = ${here.r}`,
    `j = ${below.j}·${s} = ${here.j}`,
    `x = ${minus(below.x)} + ((${k} − 1)/2 − ${p})·${below.j} = ${minus(here.x)}`,
    `n = ${room} = ${here.n}`,
  ];
}

/* The net of such a chain, the same along both axes. */
export function netOf(levels, settings) {
  const layers = levels.slice(1).map(({ n, r, j, x }, i) => {
    const [k, s, p] = settings[i];
    const start = x - (r - 1) / 2;
    const both = (value) => [value, value];
    return {
      name: `layer ${i + 1}`, kind: "convolution or pooling", units: both(n), kernel: both(k), stride: both(s),
      dilation: both(1), size: both(r), step: both(j), padding: both(-start), aligned: true,
      field: both([j, start, start + r - 1]), from: [[i, [s, -p, k, 1], [s, -p, k, 1]]],
    };
  });
  return { input: [levels[0].n, levels[0].n], layers };
}
