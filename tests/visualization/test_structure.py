"""The numbers behind the pictures, against written-out loops and filters made by hand."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from repro.visualization.probe import ProbeError
from repro.visualization.structure import agreement, cues, filter_structure, hue, map_roughness, separation


def stack(plane: Tensor, *channels: float) -> Tensor:
    """A filter (1, I, k, k): one plane, each channel times its own factor."""
    return torch.stack([factor * plane for factor in channels])[None]


def stripes(angle: float, side: int = 7) -> Tensor:
    """Waves that run in the direction `angle`, in degrees."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.sin(x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle)))


def chequerboard(side: int) -> Tensor:
    return (torch.arange(side)[:, None] + torch.arange(side)) % 2 * 2.0 - 1


NOISE = torch.randn(400, 3, 5, 4, generator=torch.Generator().manual_seed(0)).double()


def test_roughness_against_pairs_written_out():
    """Catches pairs in one direction only, pairs across planes or wrapped around the border, and a missing factor 2."""
    w = NOISE[:3]
    for number in range(3):
        squares = []
        for c, i, j in itertools.product(range(3), range(5), range(4)):
            for di, dj in ((1, 0), (0, 1)):
                if i + di < 5 and j + dj < 4:
                    squares.append((w[number, c, i, j] - w[number, c, i + di, j + dj]).item() ** 2)
        expected = sum(squares) / len(squares) / (2 * (w[number] ** 2).mean().item())
        assert filter_structure(w).roughness[number].item() == pytest.approx(expected, abs=1e-12)


def test_filters_made_by_hand():
    """Catches a mean taken off first (a flat filter would be noise), and orientation that colour or scale changes."""
    flat, board = filter_structure(stack(torch.ones(3, 3), 2, -1, 0)), filter_structure(stack(chequerboard(4), 1, 1, 1))
    assert flat.means() == pytest.approx({"roughness": 0, "orientation": 0, "colour": 14 / 15, "blob": 14 / 15})
    assert board.means() == pytest.approx({"roughness": 2, "orientation": 0, "colour": 0, "blob": 0}, abs=1e-12)
    edge = torch.tensor([[-1.0, 0, 1]] * 3)
    red_green = filter_structure(100 * stack(edge, 1, -1, 0))
    assert red_green.means() == pytest.approx({"roughness": 0.375, "orientation": 1, "colour": 1, "blob": 0})


@pytest.mark.parametrize("angle", [0, 30, 45, 100])
def test_orientation_at_any_angle(angle):
    """Catches a measure that sees upright and level edges only, as |Jxx − Jyy| does, or the first plane only."""
    bell = torch.exp(-((torch.arange(7.0) - 3) ** 2) / 4)
    crossed = torch.stack([stripes(angle), stripes(angle + 90)])[None]
    assert filter_structure(stack(stripes(angle), 1, 0.5, -1)).orientation.item() == pytest.approx(1, abs=1e-3)
    assert filter_structure(stack(bell[:, None] * bell, 1, 0.5, 0)).orientation.item() < 1e-6
    assert filter_structure(crossed).orientation.item() < 0.2


def test_chance_is_what_the_docstring_says():
    """Catches a noise level of the formula that real noise does not take, uniform weights included."""
    for w in (NOISE, torch.rand(4000, 3, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.5):
        found, n = filter_structure(w), len(w)
        for value, expected in ((found.roughness, 1), (found.colour, 2 / 3), (found.blob, 2 / 3 / w[0, 0].numel())):
            assert abs(value.mean() - expected) < 4 * value.std() / n**0.5


def test_a_filter_of_zeros_is_no_number_and_spoils_no_mean():
    """Catches a dead filter that counts as perfectly smooth."""
    w = torch.cat([torch.zeros(1, 3, 5, 4), NOISE[:2].float()])
    found = filter_structure(w)
    assert found.roughness[0].isnan()
    assert found.orientation[0].isnan()
    assert found.means() == pytest.approx(filter_structure(NOISE[:2].float()).means())


@pytest.mark.parametrize(("rgb", "degrees"), [((1, 0, 0), 0), ((0, 1, 0), 120), ((0, 0, 1), 240), ((0, 1, 1), 180)])
def test_hue_is_the_stronger_end_of_the_colour_axis(rgb, degrees):
    """Catches the mean colour as the hue: that of a blob with a ring around it of the opposite colour may be grey."""
    plane = torch.tensor([[-1.0, -1, -1], [-1, 3.0, -1], [-1, -1, -1]])
    assert torch.cos(torch.deg2rad(hue(stack(plane, *rgb)) - degrees)).item() == pytest.approx(1)
    assert torch.cos(torch.deg2rad(hue(-stack(plane, *rgb)) - degrees - 180)).item() == pytest.approx(1)


def test_map_roughness_is_gearys_c():
    """Catches a variance over all pictures at once, under which bright and dark pictures look smooth."""
    maps = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(2)).double()
    expected = []
    for c in range(2):
        steps, variances = [], []
        for n in range(3):
            y = maps[n, c]
            steps += [(y[i + 1, j] - y[i, j]).item() ** 2 for i in range(3) for j in range(5)]
            steps += [(y[i, j + 1] - y[i, j]).item() ** 2 for i in range(4) for j in range(4)]
            variances.append(((y - y.mean()) ** 2).sum().item() / 19)
        expected.append(sum(steps) / len(steps) / (2 * sum(variances) / 3))
    assert map_roughness(maps).tolist() == pytest.approx(expected)
    assert map_roughness(maps + torch.tensor([0.0, 50, 100]).view(3, 1, 1, 1)).tolist() == pytest.approx(expected)


def test_separation_is_the_area_under_the_roc_curve():
    """Catches ranks that ties upset (after a ReLU most places tie), and maps mixed up with pictures."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 3, 6, 5, generator=generator).relu()
    inside = torch.rand(2, 6, 5, generator=generator) < 0.4
    expected = [roc_auc_score(inside.flatten(), maps[:, c].flatten()) for c in range(3)]
    assert separation(maps, inside).tolist() == pytest.approx(expected)
    assert separation(inside[:, None].float(), inside).item() == 1


def test_agreement_is_a_correlation_on_the_maps_grid():
    """Catches a cue that is resized by picking pixels: it is averaged over what lies under a place."""
    cue = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    small = cue.view(2, 4, 2, 4, 2).mean((2, 4))
    maps = torch.stack([3 * small + 1, -small, torch.zeros_like(small)], dim=1)
    assert agreement(maps, cue)[:2].tolist() == pytest.approx([1, -1])
    assert agreement(maps, cue)[2].isnan()


def test_cues_of_a_picture_made_by_hand():
    """Catches an edge that colour alone makes, a gradient of the wrong scale, and colour that brightness makes."""
    ramp = torch.arange(8.0).expand(8, 8)[:, :, None].expand(8, 8, 3) / 10
    red = torch.zeros(8, 8, 3)
    red[..., 0] = 0.3
    found = cues(torch.stack([ramp, red]))
    assert found["edges"][0, :, 1:-1].flatten().tolist() == pytest.approx([0.1] * 48)
    assert found["texture"][0, 4, 4].item() == pytest.approx(0.1 * 2**0.5)
    assert found["colour"][0].abs().max() < 1e-6
    assert found["edges"][1].max() < 1e-6
    assert found["colour"][1].flatten().tolist() == pytest.approx([0.3 * (2 / 3) ** 0.5] * 64)


def test_refusals_say_what_is_needed():
    """Catches numbers made of kernels without neighbours, or of vectors."""
    with pytest.raises(ProbeError, match="k of 2 or more"):
        filter_structure(torch.rand(4, 3, 1, 1))
    with pytest.raises(ProbeError, match="red, green and blue"):
        hue(torch.rand(4, 1, 3, 3))
    with pytest.raises(ProbeError, match=r"maps: \(N, C, H, W\)"):
        map_roughness(torch.rand(4, 3))
    with pytest.raises(ProbeError, match="inside: bool"):
        separation(torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4))
    with pytest.raises(ProbeError, match="places outside"):
        separation(torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
