"""Explorers: interactive pictures that live in the built page and in Jupyter alike.

An explorer is an ES module in anywidget's form (`export default { render({ model, el }) }`), the modules it
imports, and a style sheet on top of `explorer.css`, all beside this file. `Explorer._repr_html_` puts them and the
starting values into one piece of HTML that asks nothing of a kernel or of the network. Chapter 1:
`convolution_explorer`; chapter 7: `augmentation_explorer`; chapter 13: `receptive_fields.py`.
"""

import base64
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import DataError, UnknownName, nearest

if TYPE_CHECKING:
    from repro.data.color import ColorPCA
    from repro.data.images import ImageSet

FOLDER = Path(__file__).parent
MOST_BYTES = 100_000  # of pixels in one page; as text they are a third longer

# name -> (start, smallest, largest). The largest grid, 12 + 2 * 3 pixels, still fits the width of a phone.
CONVOLUTION_CONTROLS: Mapping[str, tuple[int, int, int]] = {
    "input_size": (7, 1, 12),
    "kernel_size": (3, 1, 7),
    "stride": (1, 1, 4),
    "padding": (0, 0, 3),
    "dilation": (1, 1, 3),
}

# A module script has a scope of its own, so several explorers on one page do not meet. Each script starts
# every explorer of its kind that is still waiting: no element needs an id, and two equal ones are no clash.
_HOST = """<div class="{name}" data-explorer="{name}" data-values="{values}">
<noscript>This picture answers to mouse and keyboard once JavaScript is allowed.</noscript></div>
<style>{style}</style>
<script type="module">
{module}
for (const el of document.querySelectorAll('[data-explorer="{name}"]:not([data-started])')) {{
  el.dataset.started = "";
  const values = JSON.parse(el.dataset.values);
  explorer.render({{ model: {{ get: (key) => values[key] }}, el }});
}}
</script>"""


@dataclass(frozen=True)
class Explorer:
    """An interactive picture: the module `NAME.js`, its style `NAME.css`, what it imports and starts with."""

    name: str
    values: Mapping[str, object]
    imports: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<explorer {self.name}: needs a notebook or a browser>"

    def _repr_html_(self) -> str:
        """The same text for the same values, on every machine: the notebooks are compared to the letter."""
        return _HOST.format(
            name=self.name,
            values=html.escape(json.dumps(self.values, sort_keys=True)),
            style=_text("explorer.css") + _text(f"{self.name}.css"),
            module="".join(inlined(f"{module}.js") for module in (*self.imports, self.name)),
        )


def _text(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def inlined(file: str) -> str:
    """A module as part of one inline script: it neither imports nor exports, nor may it contain its own end."""
    module = re.sub(r"^import [^;]*;\n", "", _text(file), flags=re.MULTILINE)
    module = re.sub(r"^export default", "const explorer =", module, flags=re.MULTILINE)
    return re.sub(r"^export ", "", module, flags=re.MULTILINE).replace("</script", "<\\/script")


def convolution_explorer(**initial: int) -> Explorer:
    """Input size, kernel size, stride, padding and dilation of a convolution, to be moved by hand.

    `initial` sets where the controls start: `input_size`, `kernel_size`, `stride`, `padding`, `dilation`,
    in pixels of one axis. Raises UnknownName for another control and ValueError for a start outside the
    control's range. A setting that no convolution can have is allowed: the picture says why it fails.
    """
    values = {name: start for name, (start, _, _) in CONVOLUTION_CONTROLS.items()}
    for name, value in initial.items():
        if name not in CONVOLUTION_CONTROLS:
            known = nearest(name, CONVOLUTION_CONTROLS)
            raise UnknownName(f"the convolution explorer has no control {name!r}: {known}")
        _, smallest, largest = CONVOLUTION_CONTROLS[name]
        if value not in range(smallest, largest + 1):
            raise ValueError(f"{name} starts at {value!r}: a whole number from {smallest} to {largest} is needed")
        values[name] = value
    limits = {name: (smallest, largest) for name, (_, smallest, largest) in CONVOLUTION_CONTROLS.items()}
    state = {**values, "limits": limits}
    return Explorer("convolution_explorer", state, imports=("elements", "convolution_arithmetic"))


def augmentation_explorer(pictures: "ImageSet", crop: int, pca: "ColorPCA", sigma: float = 0.1) -> Explorer:
    """Crop, reflection and colour noise of a few pictures, set by hand or drawn as in training.

    `pictures` are square and in colour, and all of them go into the page, byte by byte; `crop` is the side of the
    window, `sigma` the deviation of the α that "Draw anew" draws and a third of the range of their sliders. Raises
    DataError for other pictures, for a window larger than they are, and for more than a page should carry.
    """
    import torch

    from repro.data.views import ten_views

    n, height, width, channels = pictures.images.shape
    if height != width or channels != 3 or not 1 <= n * height * width * channels <= MOST_BYTES:
        found = f"{n} pictures of {height}×{width}×{channels}"
        raise DataError(f"augmentation explorer: square RGB pictures of {MOST_BYTES:,} bytes at most, found {found}")
    # What one α of 1 adds to (R, G, B), in units of 0…255, under either reading of the paper's λ.
    one_each = torch.eye(3, dtype=torch.float64)
    values = {
        "side": height,
        "crop": crop,
        "sigma": sigma,
        "views": ten_views(height, width, crop, crop),
        "root": (255 * pca.shifts(one_each, "code")).tolist(),
        "printed": (255 * pca.shifts(one_each, "paper")).tolist(),
        "pictures": [
            {"name": pictures.classes[label], "pixels": base64.b64encode(image.numpy(force=True).tobytes()).decode()}
            for image, label in zip(pictures.images, pictures.labels.tolist(), strict=True)
        ],
    }
    return Explorer("augmentation_explorer", values)
