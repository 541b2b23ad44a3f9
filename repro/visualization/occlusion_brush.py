"""The occlusion explorer: a brush, or window, to be moved over a photograph, and what a net says with it at each place.

Nothing is computed in the page: it carries what `occlusion` found, as whole numbers of 16 bits. Chapter 18.
"""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from repro.data.preparation import Preparation
from repro.visualization.explorer import Explorer
from repro.visualization.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from repro.visualization.occlusion import Occlusion
from repro.visualization.probe import ProbeError

LEVELS = 65535  # a probability p is sent as round(p · LEVELS), so it is off by at most 1 / (2 · LEVELS)
COLOURS = (ORANGE, BLUE, GREEN, VERMILLION, PURPLE, "#56B4E9", "#F0E442", "#999999")  # Okabe and Ito's, and a grey
QUALITY = 90  # of the photographs, which are JPEG in the page
MOST_BYTES = 350_000  # of numbers and photographs in one page, as text


def occlusion_explorer(
    prepare: Preparation,
    classes: Sequence[str],
    images: Tensor,
    responses: Sequence[Sequence[Occlusion]],
    value: float | Tensor = 0.0,
) -> Explorer:
    """Photographs with a window that mouse, finger and arrow keys move, and a net's answers wherever it stands.

    `images` are standardised, (N, C, H, W), made by `prepare`. `responses[i]` are those of image i, one for each size
    of the window that is to be chosen from, all to the same class, which the page calls the true one, and the same map.
    `classes` names the net's classes: the targets, and then those that are most probable anywhere, are shown, at most
    8 (one for each of `COLOURS`). `value` is what stood in the windows, as `occlusion` was told. In the page a
    probability is exact to 1 / 131,070, an activation to that part of its range.

    Raises `ProbeError` for responses that do not belong to the images or to each other, and for more than a page
    should carry.
    """
    _check(images, responses, len(classes))
    targets = [row[0].target for row in responses]
    shown = _shown([one for row in responses for one in row])
    fill = torch.as_tensor(value, dtype=images.dtype).reshape(-1, 1, 1).expand(images.shape[1:])
    values = {
        "side": list(images.shape[2:]),
        "levels": LEVELS,
        "hidden": _photo(prepare, fill),
        "classes": [{"name": classes[k], "colour": colour} for k, colour in zip(shown, COLOURS, strict=False)],
        "pictures": [
            {
                "name": _name(classes, targets, i),
                "photo": _photo(prepare, image),
                "target": shown.index(targets[i]),
                "clean": row[0].clean_logits.softmax(0)[shown].tolist(),
                "activation": row[0].clean_activation,
                "layer": row[0].layer,
                "windows": [_window(one, shown) for one in row],
            }
            for i, (image, row) in enumerate(zip(images, responses, strict=True))
        ],
    }
    if len(json.dumps(values)) > MOST_BYTES:
        raise ProbeError(f"occlusion explorer: more than {MOST_BYTES:,} bytes; give fewer images or larger strides")
    return Explorer("occlusion_explorer", values, imports=("elements",))


def _check(images: Tensor, responses: Sequence[Sequence[Occlusion]], classes: int) -> None:
    if images.ndim != 4 or not len(images) or len(responses) != len(images) or not all(responses):
        raise ProbeError(
            f"responses: at least one for each image (N, C, H, W) is needed, found {len(responses)} rows for "
            f"{tuple(images.shape)}"
        )
    for row in responses:
        for one in row:
            if one.input_size != tuple(images.shape[2:]) or one.logits.shape[2] != classes:
                raise ProbeError(
                    f"responses: to {one.input_size} pixels and {one.logits.shape[2]} classes; the images have "
                    f"{tuple(images.shape[2:])}, and there are {classes} names"
                )
            if (one.target, one.layer, one.unit) != (row[0].target, row[0].layer, row[0].unit):
                raise ProbeError("responses: those of one image are to be for one class and one map")


def _name(classes: Sequence[str], targets: Sequence[int], i: int) -> str:
    """Image i's class, with a number where several images have it."""
    name, number = classes[targets[i]], targets[: i + 1].count(targets[i])
    return f"{name} {number}" if targets.count(targets[i]) > 1 else name


def _shown(responses: Sequence[Occlusion]) -> list[int]:
    """The classes that have a bar, ascending: the targets, then those of the largest probability anywhere."""
    largest = torch.stack([one.logits.softmax(2).amax((0, 1)) for one in responses]).amax(0)
    for one in responses:
        largest[one.target] = 2
    return sorted(largest.argsort(descending=True, stable=True)[: len(COLOURS)].tolist())


def _window(one: Occlusion, shown: list[int]) -> dict[str, Any]:
    """The answers for one size of the window, a place after the other, row by row."""
    low, high = one.activation.min(), one.activation.max()
    share = (one.activation - low) / (high - low).clamp(min=1e-12)
    return {
        "size": list(one.size),
        "stride": list(one.stride),
        "places": list(one.logits.shape[:2]),
        "probabilities": _packed(one.logits.softmax(2)[..., shown]),
        "activation": _packed(share),
        "range": [low.item(), high.item()],
    }


def _packed(shares: Tensor) -> str:
    """Numbers from 0 to 1 as LEVELS-ths, two bytes each, the lower one first, in base64."""
    levels = (shares.double() * LEVELS).round().numpy(force=True)
    return base64.b64encode(levels.astype("<u2").tobytes()).decode()


def _photo(prepare: Preparation, image: Tensor) -> str:
    """A standardised image (C, H, W) as the address of a JPEG that is contained in it."""
    pixels = (255 * prepare.show(image[None])[0]).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
