/* The arithmetic of repro/receptive_field.py for the convolution explorer, and what it says in words.
 *
 * `v` is a setting: {input_size, kernel_size, stride, padding, dilation}, one axis, in pixels. Positions count
 * from 0, as in code; the padding has negative positions and those from input_size on.
 * tests/browser/test_convolution_explorer.py holds these functions against the Python ones and against torch.
 */
export const span = (v) => v.dilation * (v.kernel_size - 1) + 1;
export const slack = (v) => v.input_size + 2 * v.padding - span(v);
export const outputSize = (v) => (slack(v) < 0 ? 0 : Math.floor(slack(v) / v.stride) + 1);
export const range = (start, stop) => Array.from({ length: Math.max(0, stop - start) }, (_, i) => start + i);
export const taps = (v, unit) =>
  range(0, v.kernel_size).map((i) => unit * v.stride - v.padding + i * v.dilation);
export const readers = (v, position) =>
  range(0, outputSize(v)).filter((unit) => taps(v, unit).includes(position));
export const isPixel = (v, position) => position >= 0 && position < v.input_size;
export const neverRead = (v) => range(0, v.input_size).filter((x) => readers(v, x).length === 0);

/* The same in words. */
export const minus = (x) => String(x).replace("-", "−");
const count = (x, word) => `${x} ${word}${x === 1 ? "" : "s"}`;
const list = (xs) => {
  const even = xs.length > 2 && xs.every((x, i) => i === 0 || x === xs[i - 1] + 1);
  return even ? `${minus(xs[0])} to ${minus(xs.at(-1))}` : xs.map(minus).join(", ");
};
const lines = (xs, word) => `${word}${xs.length === 1 ? "" : "s"} ${list(xs)}`;

export function worked(v) {
  const { input_size: n, kernel_size: k, stride: s, padding: p, dilation: d } = v;
  return [
    "⌊(n + 2p − d(k − 1) − 1) / s⌋ + 1",
    `⌊(${n} + 2·${p} − ${d}·(${k} − 1) − 1) / ${s}⌋ + 1`,
    `⌊${minus(slack(v))} / ${s}⌋ + 1`,
    slack(v) < 0 ? "nothing: the kernel does not fit" : `${outputSize(v)}`,
  ];
}

export function aboutSize(v) {
  if (slack(v) < 0) {
    return `Impossible: the kernel spans ${count(span(v), "pixel")}, and the padded input is only ` +
      `${v.input_size + 2 * v.padding} wide. A larger input, more padding, a smaller kernel or less ` +
      "dilation would make room.";
  }
  const unread = neverRead(v);
  if (unread.length === 0) return "Every input pixel is read.";
  const last = taps(v, outputSize(v) - 1).at(-1);
  const border = unread.filter((x) => x > last);
  const between = unread.filter((x) => x < last);
  const words = [];
  if (border.length) {
    const what = border.length === 1 ? "row and the last column" : `${border.length} rows and columns`;
    words.push(`The last ${what} are never read: no room is left for another step of ${v.stride}.`);
  }
  if (between.length) {
    words.push(`${lines(between, "Row")} and the same columns are never read: they fall between the taps.`);
  }
  return words.join(" ");
}

export function aboutUnit(v, { row, column }) {
  const rows = taps(v, row);
  const columns = taps(v, column);
  const real = rows.filter((x) => isPixel(v, x)).length * columns.filter((x) => isPixel(v, x)).length;
  const zeros = v.kernel_size ** 2 - real;
  const padded = zeros ? `, of which ${zeros} ${zeros === 1 ? "is a padding zero" : "are padding zeros"}` : "";
  return `Output unit (${row}, ${column}) reads ${lines(rows, "row")} and ${lines(columns, "column")}: ` +
    `${count(v.kernel_size ** 2, "value")}${padded}.`;
}

export function aboutPixel(v, { row, column }) {
  const what = isPixel(v, row) && isPixel(v, column) ? "Input pixel" : "The padding zero";
  const name = `${what} (${minus(row)}, ${minus(column)})`;
  const rows = readers(v, row);
  const columns = readers(v, column);
  if (!rows.length || !columns.length) return `${name} is read by no output unit.`;
  return `${name} is read by ${rows.length * columns.length} of ${outputSize(v) ** 2} output units: ` +
    `${lines(rows, "row")}, ${lines(columns, "column")}.`;
}
