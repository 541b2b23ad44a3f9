"""Filters as tiles: what is drawn where, and in which order."""

import matplotlib as mpl
import pytest
import torch
import torchvision
from matplotlib import pyplot as plt
from torch import nn

from repro.errors import UnknownName
from repro.models import get_model
from repro.visualization.filters import Filters, filters
from repro.visualization.probe import ProbeError


@pytest.fixture(autouse=True)
def _close():
    mpl.use("agg")
    yield
    plt.close("all")


def net(channels: int = 3, maps: int = 6) -> nn.Sequential:
    """A convolution of 3×3, a batch norm and a linear layer, with drawn weights, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, maps, 3), nn.BatchNorm2d(maps), nn.Flatten(), nn.Linear(maps, 2)).train()


def coloured(*colours: tuple[float, float, float]) -> nn.Sequential:
    """A net whose filters are patches of these colours."""
    model = net(maps=len(colours))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(colours)[:, :, None, None].expand(-1, 3, 3, 3))
    return model


def test_tiles_are_the_weights():
    """Catches planes mixed with places, zero that is not mid-grey, and a scale shared where each has its own."""
    model = net()
    w = model[0].weight.detach()
    found = filters(model, "0")
    assert torch.equal(found.weight, w)
    by_filter, by_layer = found.tiles("filter"), found.tiles("layer")
    for o, c, i, j in ((0, 0, 0, 0), (3, 2, 1, 0), (5, 1, 2, 1)):
        assert by_filter[o, i, j, c].item() == pytest.approx(0.5 + 0.5 * (w[o, c, i, j] / w[o].abs().max()).item())
        assert by_layer[o, i, j, c].item() == pytest.approx(0.5 + 0.5 * (w[o, c, i, j] / w.abs().max()).item())
    with torch.no_grad():
        model[0].weight.zero_()
    assert (filters(model, "0").tiles("filter") == 0.5).all()
    assert (filters(model, "0").tiles("layer") == 0.5).all()


def test_order_by_energy_is_the_strongest_first():
    """Catches an ascending sort, and a sort by the largest weight."""
    model = net()
    energies = model[0].weight.detach().square().sum((1, 2, 3)).tolist()
    expected = sorted(range(6), key=lambda o: -energies[o])
    assert filters(model, "0").numbers.tolist() == [expected]
    assert filters(model, "0", order="index").numbers.tolist() == [list(range(6))]


def test_order_by_hue_puts_grey_first_and_goes_around_the_circle():
    """Catches hues sorted with the grey filters among them, whose hue means nothing."""
    blue, weak_grey, red, grey, green = (0, 0, 1.0), (0.1, 0.1, 0.1), (1.0, 0, 0.1), (1.0, 1, 0.9), (0.1, 1.0, 0)
    model = coloured(blue, weak_grey, green, grey, (0.0, 0.9, 0.9), red)
    # Red with a little blue lies just below 360 degrees.
    assert filters(model, "0", order="hue").numbers.tolist() == [[3, 1, 2, 4, 0, 5]]


def test_columns_are_sorted_each_for_itself():
    """Catches one order over both columns, which would mix the two halves of a net of two GPUs."""
    model = coloured((1, 0, 0), (2, 0, 0), (0, 5, 0), (0, 6, 0))
    assert filters(model, "0", columns=2).numbers.tolist() == [[1, 0], [3, 2]]
    two = filters(get_model("alexnet_2012", num_classes=5, hidden=8), "features.conv1", columns=2)
    assert sorted(two.numbers[0].tolist()) == list(range(48))
    assert sorted(two.numbers[1].tolist()) == list(range(48, 96))


def test_the_figure_shows_each_tile_at_its_place():
    """Catches tiles laid out by columns, a gap that cuts into them, and columns swapped."""
    model = net(maps=40)
    found = filters(model, "0", columns=2)
    figure = found.figure()
    tiles = found.tiles()
    assert [ax.get_title() for ax in figure.axes] == ["filters 0 to 19", "filters 20 to 39"]
    for column, ax in enumerate(figure.axes):
        sheet = torch.as_tensor(ax.images[0].get_array().data)
        assert sheet.shape == (3 * 4 - 1, 8 * 4 - 1, 3)  # 20 tiles in lines of eight
        for place in (0, 7, 8, 19):
            top, left = place // 8 * 4, place % 8 * 4
            expected = tiles[found.numbers[column, place]]
            assert torch.allclose(sheet[top : top + 3, left : left + 3], expected, atol=1e-6)
        assert (sheet[3] == 1).all()
        assert (sheet[:, 3] == 1).all()


def test_deeper_filters_are_drawn_plane_by_plane():
    """Catches a deeper filter summed over its planes, or drawn as if its first three were colours."""
    model = net(channels=5)
    found = filters(model, "0")
    sheet = torch.as_tensor(found.figure(rows=2, planes=4).axes[0].images[0].get_array().data)
    assert sheet.shape == (2 * 4 - 1, 4 * 4 - 1)
    assert torch.allclose(sheet[4:7, 8:11], found.tiles()[found.numbers[0, 1], 2], atol=1e-6)
    grey = filters(net(channels=1), "0").figure().axes[0].images[0].get_array()
    assert grey.shape == (3, 16 * 4 - 1)


def test_structure_is_in_the_order_of_the_net():
    """Catches numbers that follow the drawing's order, so that a number and a filter no longer belong together."""
    found = filters(coloured((0, 1, 0), (3, 3, 3)), "0")
    assert found.numbers.tolist() == [[1, 0]]
    assert found.structure.colour.tolist() == pytest.approx([2 / 3, 0])


def test_the_net_is_only_read():
    """Catches a view of the weights handed out, through which a drawing could change the net; and a lost mode."""
    model = net().half()
    before = model[0].weight.clone()
    found = filters(model, "0")
    found.weight.zero_()
    assert found.weight.dtype == torch.float32
    assert torch.equal(model[0].weight, before)
    assert model.training


def test_any_module_will_do():
    """Catches a function that knows this package's nets only."""
    found = filters(torchvision.models.alexnet(), "features.0", order="hue")
    assert isinstance(found, Filters)
    assert found.weight.shape == (64, 3, 11, 11)


def test_refusals_name_the_layer_and_the_remedy():
    """Catches a traceback from inside torch for a layer without filters."""
    with pytest.raises(UnknownName, match=r"layer '9'.*known: 0"):
        filters(net(), "9")
    with pytest.raises(ProbeError, match="layer 3: Linear has no filters"):
        filters(net(), "3")
    with pytest.raises(ProbeError, match="6 filters don't fall into 4"):
        filters(net(), "0", columns=4)
    with pytest.raises(UnknownName, match=r"order='hues'.*hue"):
        filters(net(), "0", order="hues")
    with pytest.raises(UnknownName, match="scale='net'"):
        filters(net(), "0").tiles("net")
    with pytest.raises(ProbeError, match="red, green and blue"):
        filters(net(channels=5), "0", order="hue")
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ProbeError, match="NaN"):
        filters(model, "0")
