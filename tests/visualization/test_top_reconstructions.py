"""Patterns beside the patches that they explain."""

import numpy as np
import torch
from torch import nn

from repro.data.preparation import Preparation
from repro.visualization.deconvnet import as_patterns, deconvnet
from repro.visualization.features import top_patches
from repro.visualization.top_reconstructions import top_reconstructions


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU())


def test_each_pattern_is_that_of_its_own_image_at_the_patch():
    """Against single calls for the place that the patch was cut at. Catches ranks or maps that are exchanged, and
    patterns of another place.
    """
    model, images = net(), torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    top = top_patches(model, images, "4", [3, 1], count=4)
    found = top_reconstructions(model, top)
    assert found.pixels.shape == (2, 4, 3, 20, 20)
    for u, unit in enumerate((3, 1)):
        for rank in range(4):
            place = unit, int(top.rows[u, rank]), int(top.columns[u, rank])
            alone = deconvnet(model, images[top.images[u, rank]], "4", place)
            assert torch.allclose(found.pixels[u, rank], alone.pixels[0], atol=1e-6)
            box = top.box(u, rank)
            shown = as_patterns(alone.pixels)[0, box.top : box.bottom, box.left : box.right]
            assert torch.allclose(found.patterns(u)[rank], shown, atol=1e-5)
            assert found.patterns(u)[rank].shape == top.patches(u)[rank].shape


def test_pictures_are_prepared_as_for_the_patches():
    """Catches raw pixels that are sent through the net."""
    model = net()
    pictures = torch.randint(0, 256, (5, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    prepare = Preparation(20, 20, torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.2))
    found = top_reconstructions(model, top_patches(model, pictures, "4", 2, count=3, prepare=prepare))
    expected = top_reconstructions(model, top_patches(model, prepare(pictures), "4", 2, count=3))
    assert torch.allclose(found.pixels, expected.pixels, atol=1e-6)


def test_the_figure_has_two_blocks_for_each_map():
    """Patches cut at the border are smaller and keep their place. Catches blocks of another map, and patterns without
    their patches.
    """
    model, images = net(), torch.rand(9, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    found = top_reconstructions(model, top_patches(model, images, "4", [0, 1, 2], count=9))
    axes = np.array(found.figure().axes).reshape(-1, 2)
    assert [bool(left.images) for left, _ in axes] == [True, True, True, False]
    for unit, (left, right) in enumerate(axes[:3]):
        assert left.get_title(loc="left") == f"4, map {unit}"
        for ax, tiles in ((left, found.patterns(unit)), (right, found.top.patches(unit))):
            block = np.asarray(ax.images[0].get_array())
            h, w, _ = tiles[0].shape
            assert np.allclose(block[1 : 1 + h, 1 : 1 + w], tiles[0].numpy())
            side = max(tile.shape[1] for tile in tiles)
            h, w, _ = tiles[1].shape
            assert np.allclose(block[1 : 1 + h, side + 2 : side + 2 + w], tiles[1].numpy())
