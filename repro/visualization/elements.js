/* Elements with attributes and children, of HTML (`h`) and of SVG (`svg`): what the explorers are built of. */
const SVG = "http://www.w3.org/2000/svg";
function make(namespace, tag, attributes = {}, ...children) {
  const node = document.createElementNS(namespace, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
export const h = (tag, attributes, ...children) => make("http://www.w3.org/1999/xhtml", tag, attributes, ...children);
export const svg = (tag, attributes, ...children) => make(SVG, tag, attributes, ...children);
