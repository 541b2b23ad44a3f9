"""Tables that print as aligned text and show as HTML in a notebook: the two faces of one list of cells."""

import html
from collections.abc import Sequence

Line = Sequence[str]


def aligned_text(lines: Sequence[Line], text_columns: int) -> str:
    """Lines of cells below each other; the first `text_columns` columns align left, the others, numbers, right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(header: Line, body: Sequence[Line], foot: Sequence[Line], text_columns: int, css_class: str) -> str:
    """The same as one HTML table; every cell is escaped."""

    def line(cells: Line, tag: str) -> str:
        sides = ("left" if i < text_columns else "right" for i in range(len(cells)))
        filled = (
            f'<{tag} style="padding: 0.2em 0.8em; text-align: {side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(filled)}</tr>"

    parts = [f"<thead>{line(header, 'th')}</thead>", f"<tbody>{''.join(line(row, 'td') for row in body)}</tbody>"]
    if foot:
        parts.append(f"<tfoot>{''.join(line(row, 'td') for row in foot)}</tfoot>")
    return f'<table class="{css_class}">{"".join(parts)}</table>'
