"""What the layers of a net answer: the feature maps of pictures, and the patches that excite a unit most.

Zeiler & Fergus 2014, figure 2, put the nine strongest patches of a set beside what they reconstruct from them. A patch
is what the unit's receptive field holds of the picture. Chapter 16 teaches them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from repro.data.preparation import Preparation
from repro.progress import track
from repro.receptive_field import Box, FieldTable, receptive_field
from repro.visualization.probe import (
    MEMORY,
    ProbeError,
    as_maps,
    batch_size,
    check_unit,
    find_layer,
    images_for,
    outputs,
    untouched,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, 700 pixels on the page
LABEL = 0.2  # inches for a line of text


@dataclass(frozen=True)
class Features:
    """Feature maps by layer: `maps[layer]` is (N, C, H, W), `order[layer]` int64 (N, C), the maps of each image from
    the one with the largest mean to the smallest."""

    maps: dict[str, Tensor]
    order: dict[str, Tensor]

    def figure(self, image: int = 0, count: int = 8) -> "Figure":
        """The `count` strongest maps of one image, a line for each layer, each from its least value to its largest."""
        from matplotlib import pyplot as plt

        n = next(iter(self.maps.values())).shape[0]
        if not 0 <= image < n:
            raise ProbeError(f"image {image} is out of range: 0 to {n - 1}")
        size = WIDTH, len(self.maps) * (WIDTH / count + 2 * LABEL)
        figure, axes = plt.subplots(len(self.maps), count, figsize=size, squeeze=False)
        for line, (layer, maps) in zip(axes, self.maps.items(), strict=True):
            numbers = self.order[layer][image, :count].tolist()
            for ax in line:
                ax.set_axis_off()
            for ax, number in zip(line, numbers, strict=False):
                ax.imshow(maps[image, number].numpy(), cmap="gray", interpolation="nearest")
                ax.set_title(f"{number}", fontsize=9)
            line[0].set_title(f"{layer}\n{numbers[0]}", fontsize=9)
        return figure


def features(model: nn.Module, images: Tensor, layers: str | Sequence[str]) -> Features:
    """The maps that one or several layers give for standardised images `(N, C, H, W)` or one `(C, H, W)`.

    All images pass at once, without gradients. Raises `UnknownName` for a layer that there is not, `ProbeError` for one
    without spatial extent and for images that are none.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    with untouched(model), torch.no_grad():
        found = outputs(model, images_for(model, images), names)
    maps = {name: as_maps(name, found[name]).cpu().clone() for name in names}
    return Features(
        maps, {name: m.mean((2, 3)).argsort(dim=1, descending=True, stable=True) for name, m in maps.items()}
    )


@dataclass(frozen=True)
class TopPatches:
    """For each of U maps of a layer the `count` images that excite it most, each at the place where it answers most.

    units: int64 (U,). values: (U, count), descending; images, rows and columns: int64 (U, count), the image's number
    and the unit's place in its map.
    """

    layer: str
    units: Tensor
    values: Tensor
    images: Tensor
    rows: Tensor
    columns: Tensor
    table: FieldTable = field(repr=False)
    pictures: Tensor = field(repr=False)  # as given: standardised (N, C, H, W), or uint8 (N, H, W, C) with `prepare`
    prepare: Preparation | None = field(repr=False)

    def box(self, unit: int, rank: int) -> Box:
        """The pixels that stand behind a patch: those of the image within the receptive field. `unit` counts from 0."""
        row, column = int(self.rows[unit, rank]), int(self.columns[unit, rank])
        return self.table.box(self.layer, row, column).clipped

    def patches(self, unit: int = 0) -> list[Tensor]:
        """The patches of one map as they can be shown, strongest first: float (h, w, C) of 0…1.

        They are cut at the image's border, and differ in size there. Without a `prepare` that knows what the values
        mean, those of each patch are stretched to 0…1.
        """
        found = []
        for rank, image in enumerate(self.images[unit].tolist()):
            box = self.box(unit, rank)
            picture = self.picture(image)[box.top : box.bottom, box.left : box.right]
            if self.prepare is None:
                low, high = picture.amin(), picture.amax()
                picture = (picture - low) / (high - low).clamp(min=torch.finfo(picture.dtype).tiny)
            found.append(picture)
        return found

    def picture(self, image: int) -> Tensor:
        """An image of the set as the net sees it, float (H, W, C): of 0…1 with `prepare`, else standardised."""
        if self.prepare is None:
            return self.pictures[image].permute(1, 2, 0).cpu().float()
        return self.prepare.show(self.prepare(self.pictures[image]))[0]

    def figure(self, units: Sequence[int] | None = None) -> "Figure":
        """A line of patches for each map, all at the same magnification, with the unit's answer above each.

        `units` counts the lines of this object from 0, as `patches` does; all of them without it.
        """
        from matplotlib import pyplot as plt

        chosen = list(range(len(self.units)) if units is None else units)
        size = WIDTH, len(chosen) * (WIDTH / self.values.shape[1] + LABEL)
        figure, axes = plt.subplots(len(chosen), self.values.shape[1], figsize=size, squeeze=False)
        for line, u in zip(axes, chosen, strict=True):
            patches = self.patches(u)
            side = max(max(patch.shape[:2]) for patch in patches)
            for rank, (ax, patch) in enumerate(zip(line, patches, strict=True)):
                shown = patch.squeeze(2) if patch.shape[2] == 1 else patch
                ax.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
                ax.set_title(f"{self.values[u, rank]:.3g}", fontsize=9)
                ax.set_axis_off()
            line[0].set_title(f"{int(self.units[u])}: {self.values[u, 0]:.3g}", fontsize=9)
        return figure


@torch.no_grad()
def top_patches(
    model: nn.Module,
    images: Tensor,
    layer: str,
    unit: int | Sequence[int] | None,
    count: int = 9,
    prepare: Preparation | None = None,
    memory: int = MEMORY,
) -> TopPatches:
    """The patches of a set that excite a map of `layer` most; `unit` is one map, several, or all of them (None).

    images: standardised (N, C, H, W); with `prepare` a set's uint8 (N, H, W, C), prepared batch by batch. Of each image
    only the place counts at which the map answers most, so that the patches come from different images; of equal
    answers the first image, and in it the first place, is taken. `memory` bounds the bytes of a batch's maps. Raises
    `ProbeError` for a map or count out of range, and for a layer without spatial extent or receptive field.
    """
    find_layer(model, layer)
    if not 1 <= count <= len(images):
        raise ProbeError(f"count {count}: 1 to {len(images)} images are there to choose from")
    first = images_for(model, _prepared(images[:1], prepare))
    size = first.shape[1], first.shape[2], first.shape[3]
    step = batch_size(model, size, memory)
    best: _Best | None = None
    with untouched(model):
        units = _units(layer, as_maps(layer, outputs(model, first, [layer])[layer]), unit)
        for start in track(range(0, len(images), step), len(images), f"{layer}: patches", step):
            batch = images_for(model, _prepared(images[start : start + step], prepare))
            maps = outputs(model, batch, [layer])[layer][:, units.to(batch.device)].cpu()
            best = _Best.of(maps, start).merged(best, count)
    assert best is not None
    table = receptive_field(model, size)
    width = best.width
    return TopPatches(
        layer, units, best.values, best.images, best.places // width, best.places % width, table, images, prepare
    )


@dataclass(frozen=True)
class _Best:
    """Of each of U maps the best images so far, in descending order: each (U, n)."""

    values: Tensor
    images: Tensor
    places: Tensor  # in a map read line by line
    width: int

    @classmethod
    def of(cls, maps: Tensor, start: int) -> "_Best":
        """Of a batch of maps (N, U, H, W), whose first image is number `start`; as the images come."""
        values, places = maps.flatten(2).max(2)  # of equal places the first
        numbers = torch.arange(start, start + len(maps)).expand(values.shape[1], -1)
        return cls(values.T, numbers, places.T, maps.shape[3])

    def merged(self, earlier: "_Best | None", count: int) -> "_Best":
        """The best `count` of both; earlier images go before later ones of the same value."""
        parts = [self] if earlier is None else [earlier, self]
        values, images, places = (
            torch.cat([getattr(p, name) for p in parts], 1) for name in ("values", "images", "places")
        )
        order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
        return _Best(values.gather(1, order), images.gather(1, order), places.gather(1, order), self.width)


def _units(layer: str, maps: Tensor, unit: int | Sequence[int] | None) -> Tensor:
    """The maps asked for, int64 (U,)."""
    if unit is None:
        return torch.arange(maps.shape[1])
    chosen = [unit] if isinstance(unit, int) else list(unit)
    if not chosen:
        raise ProbeError(f"layer {layer}: no map is asked for")
    return torch.tensor([check_unit(layer, tuple(maps.shape[1:]), one)[0] for one in chosen])


def _prepared(images: Tensor, prepare: Preparation | None) -> Tensor:
    """A batch of images as the net takes them."""
    return images if prepare is None else prepare(images)
