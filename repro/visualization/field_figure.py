"""One unit's receptive field as an SVG picture: the image, the layers between, and what the unit reads of each."""

from html import escape

from repro.receptive_field import Box, FieldTable

WIDTH, PANELS, PANEL, GAP = 700, 5, 116, 24  # pixels, and panels in a line
LABELS = 34  # pixels above a panel: a name and a size
STYLE = (
    "text{font:11px sans-serif;fill:#24292f}.map{fill:#eceff2;stroke:#8a939c}.read{fill:#e69f00;stroke:#24292f}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.map{fill:#30363d}.read{stroke:#e6edf3}}"
)


def unit_svg(table: FieldTable, layer: str, row: int, col: int) -> str:
    """A line of maps from the image to the layer; the rectangle of what unit (`row`, `col`) reads is lit in each.

    Layers that read their own place only, and so look like the one before them, are left out.
    """
    panels = _panels(table, layer, row, col)
    box = table.box(layer, row, col).clipped
    title = f"Receptive field of unit ({row}, {col}) of {layer}"
    reads = f"It reads rows {box.top} to {box.bottom - 1} and columns {box.left} to {box.right - 1} of the image."
    lines = -(-len(panels) // PANELS)
    height = lines * (LABELS + PANEL + GAP)
    drawn = "\n".join(_panel(i, *panel) for i, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="title desc">\n<title id="title">{escape(title)}</title>\n'
        f'<desc id="desc">{escape(reads)}</desc>\n<style>{STYLE}</style>\n{drawn}\n</svg>\n'
    )


def _panels(table: FieldTable, layer: str, row: int, col: int) -> list[tuple[str, tuple[int, int], Box]]:
    """Name, size and lit rectangle of the image and of the layers that are drawn, in order."""
    boxes = table.boxes(layer, row, col)
    found = [("input", (table.input_size[1], table.input_size[2]), boxes.pop("input", Box(0, 0, 0, 0)))]
    for name, box in boxes.items():
        size = table[name].output_size
        if name == layer or (size, box) != found[-1][1:]:
            found.append((name, size, box))
    return found


def _panel(number: int, name: str, size: tuple[int, int], box: Box) -> str:
    x = GAP / 2 + number % PANELS * (PANEL + GAP)
    y = LABELS + number // PANELS * (LABELS + PANEL + GAP)
    height, width = size
    scale = PANEL / max(size)
    lit = ""
    if box.height and box.width:
        place = f'x="{x + box.left * scale:.2f}" y="{y + box.top * scale:.2f}"'
        lit = f'<rect class="read" {place} width="{box.width * scale:.2f}" height="{box.height * scale:.2f}"/>'
    return (
        f'<g><text x="{x:.2f}" y="{y - 18}">{escape(name)}</text>'
        f'<text x="{x:.2f}" y="{y - 5}">{height}×{width}, {box.height}×{box.width} read</text>'
        f'<rect class="map" x="{x:.2f}" y="{y}" width="{width * scale:.2f}" height="{height * scale:.2f}"/>{lit}</g>'
    )
