"""The faces of a table of receptive fields: text, HTML, pandas, CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import ResourceError
from repro.tables import aligned_text, html_table

if TYPE_CHECKING:
    from repro.receptive_field.table import FieldRow

# Fields of a row that are pairs (height, width), and the head of their column.
PAIRS = {
    "kernel_size": "kernel",
    "stride": "stride",
    "dilation": "dilation",
    "size": "field",
    "effective_stride": "every",
    "effective_padding": "padding",
    "output_size": "output",
}
TEXT_COLUMNS = 2


def number(value: Fraction | int) -> int | float | str:
    """A fraction as a whole number where it is one, else written as a fraction, "1/2"."""
    return int(value) if value == int(value) else str(value)


class FieldTableViews:
    """How a table shows itself and leaves: what the table's class adds is the rows."""

    input_size: tuple[int, int, int]

    def __iter__(self) -> Iterator["FieldRow"]:
        raise NotImplementedError

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self:
            pairs = ([number(n) for n in getattr(row, key)] for key in PAIRS)
            cells = (str(down) if down == across else f"{down}×{across}" for down, across in pairs)
            yield (row.name, row.kind, *cells, "" if row.aligned else "not aligned")

    @property
    def _header(self) -> tuple[str, ...]:
        return ("layer", "kind", *PAIRS.values(), "")

    def __str__(self) -> str:
        return aligned_text([self._header, *self._cells()], TEXT_COLUMNS)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._header, list(self._cells()), [], TEXT_COLUMNS, "field-table")

    def records(self) -> list[dict[str, Any]]:
        """One flat record per row: `kernel_height`, `kernel_width`, …; strides that are not whole as "1/2"."""
        found = []
        for row in self:
            record: dict[str, Any] = {"name": row.name, "kind": row.kind}
            for key in PAIRS:
                for axis, value in zip(("height", "width"), getattr(row, key), strict=True):
                    record[f"{key}_{axis}"] = number(value)
            found.append({**record, "aligned": row.aligned})
        return found

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame, whose index is the layers' names; pandas has to be installed."""
        import pandas as pd  # type: ignore[import-untyped,unused-ignore]

        return pd.DataFrame(self.records()).set_index("name")

    def to_csv(self, path: str | Path | None = None) -> str:
        """The records as CSV with a header; written to `path` if there is one, and returned."""
        records = self.records()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return _written(text.getvalue(), path)

    def to_json(self, path: str | Path | None = None) -> str:
        """`{"input_size": …, "layers": […]}`, the layers being the records; written to `path` if given and returned."""
        return _written(json.dumps({"input_size": self.input_size, "layers": self.records()}, indent=1) + "\n", path)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write(Path(path), text)
    return text


def write(path: Path, text: str) -> None:
    """Write a text file; raises ResourceError where that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ResourceError(f"{path} cannot be written: {e.strerror or e}; give another place") from e
