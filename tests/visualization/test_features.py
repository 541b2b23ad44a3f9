"""Feature maps and top patches, against every picture and place gone through one by one."""

import matplotlib as mpl
import pytest
import torch
import torchvision
from matplotlib import pyplot as plt
from torch import Tensor, nn

from repro.data.preparation import Preparation
from repro.errors import UnknownName
from repro.visualization import features as module
from repro.visualization.features import features, top_patches
from repro.visualization.probe import ProbeError


@pytest.fixture(autouse=True)
def _close():
    mpl.use("agg")
    yield
    plt.close("all")


def net() -> nn.Sequential:
    """Two convolutions with batch norm, an in-place ReLU and dropout, in training mode: `(N, 3, 16, 16)` to (N, 4)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Dropout(), nn.Conv2d(5, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(216, 4)]
    return nn.Sequential(*layers).train()


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


PREPARE = Preparation(16, 16, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))
IMAGES = PREPARE(pictures(23))


def run_one(model: nn.Sequential, image: Tensor, layers: int) -> Tensor:
    """The maps (C, H, W) after the first `layers` layers for one image, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        x = image[None]
        for layer in model[:layers]:
            x = layer(x.clone())
    model.train()
    return x[0]


def state(model: nn.Module) -> list[object]:
    """All that a look into a net may not change."""
    tensors = [t.clone() for t in model.state_dict().values()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    modes = [(m.training, getattr(m, "inplace", None)) for m in model.modules()]
    return [tensors, hooks, modes, [(p.requires_grad, p.grad) for p in model.parameters()]]


def same(a: list[object], b: list[object]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]


def test_features_are_the_layers_maps():
    """Catches maps that a later in-place ReLU has overwritten, and dropout or batch statistics of the training mode."""
    model = net()
    found = features(model, IMAGES[:3], ["0", "3", "5"])
    for n in range(3):
        for layer in ("0", "3", "5"):
            assert torch.allclose(found.maps[layer][n], run_one(model, IMAGES[n], int(layer) + 1), atol=1e-6)
    assert found.maps["0"].min() < 0  # before the ReLU


def test_order_is_by_the_mean_of_each_image():
    """Catches an order of the batch instead of each image, and an ascending one."""
    found = features(net(), IMAGES[:4], "5")
    for n in range(4):
        means = found.maps["5"][n].mean((1, 2)).tolist()
        assert found.order["5"][n].tolist() == sorted(range(6), key=lambda c: -means[c])


def test_the_figure_draws_the_strongest_maps():
    """Catches maps drawn under another map's number, or of another image."""
    found = features(net(), IMAGES[:2], ["0", "5"])
    axes = found.figure(image=1, count=4).axes
    for line, layer in enumerate(("0", "5")):
        for place, number in enumerate(found.order[layer][1, :4].tolist()):
            ax = axes[4 * line + place]
            assert ax.get_title() == (f"{layer}\n{number}" if place == 0 else str(number))
            assert torch.equal(torch.as_tensor(ax.images[0].get_array().data), found.maps[layer][1, number])
    with pytest.raises(ProbeError, match="image 2 is out of range: 0 to 1"):
        found.figure(image=2)
    assert len(features(net(), IMAGES[0], "5").figure(count=8).axes) == 8  # more than there are maps


@pytest.mark.parametrize("memory", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("layer", ["0", "2", "5"])
def test_top_patches_are_the_argmax_over_the_set(memory, layer):
    """Catches a best of the last batch only, an image's number counted within its batch, rows swapped with columns."""
    model = net()
    found = top_patches(model, IMAGES, layer, [4, 1], count=5, memory=memory)
    maps = torch.stack([run_one(model, image, int(layer) + 1) for image in IMAGES])
    for u, unit in enumerate((4, 1)):
        by_image = []
        for n in range(len(IMAGES)):
            places = [(-maps[n, unit, i, j].item(), i, j) for i in range(maps.shape[2]) for j in range(maps.shape[3])]
            by_image.append((*min(places), n))
        for rank, (value, i, j, n) in enumerate(sorted(by_image, key=lambda x: x[0])[:5]):
            assert found.values[u, rank].item() == pytest.approx(-value, abs=1e-6)
            assert (found.images[u, rank], found.rows[u, rank], found.columns[u, rank]) == (n, i, j)


def test_a_batch_never_takes_more_than_its_memory(monkeypatch):
    """Catches a set that passes at once: with memory for two images' maps no more than two may pass."""
    model, sizes = net(), []
    each = 2 * 5 * 16 * 16 * 4  # two neighbouring layers of five maps, float32
    original = module.outputs
    monkeypatch.setattr(module, "outputs", lambda m, x, names: sizes.append(len(x)) or original(m, x, names))
    top_patches(model, IMAGES, "5", 0, count=1, memory=2 * each)
    assert max(sizes) == 2
    assert sum(sizes) == 1 + len(IMAGES)


def test_of_equal_answers_the_first_image_and_place_win():
    """Catches an order that depends on the batches: blank pictures answer alike everywhere."""
    for memory in (1, 1 << 30):
        found = top_patches(net(), torch.zeros(6, 3, 16, 16), "5", None, count=3, memory=memory)
        assert found.images.tolist() == [[0, 1, 2]] * 6
        inner = top_patches(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.zeros(2, 3, 8, 8), "0", 1, 1, memory=memory)
        assert (inner.rows.item(), inner.columns.item()) == (0, 0)


def test_patches_are_cut_by_the_receptive_field():
    """Catches a box off by the padding or the stride, or one that runs over the border.

    Unit (i, j) of layer 5 reads 8 pixels from 2i − 1 and 2j − 1 on.
    """
    images = pictures(23)
    found = top_patches(net(), images, "5", None, count=6, prepare=PREPARE)
    plain = top_patches(net(), PREPARE(images), "5", None, count=6)
    assert torch.equal(found.images, plain.images)
    assert torch.equal(found.values, plain.values)
    assert (found.rows == 0).any()  # at the border
    for unit in range(6):
        stretched = plain.patches(unit)
        for rank, patch in enumerate(found.patches(unit)):
            n, i, j = (int(t[unit, rank]) for t in (found.images, found.rows, found.columns))
            rows, columns = slice(max(0, 2 * i - 1), 2 * i + 7), slice(max(0, 2 * j - 1), 2 * j + 7)
            assert torch.allclose(patch, images[n, rows, columns].float() / 255, atol=1e-6)
            assert (stretched[rank].min(), stretched[rank].max()) == (0, 1)
            assert stretched[rank].shape == patch.shape


def test_only_the_patch_moves_the_answer():
    """Catches a box that leaves out what the unit reads: the answer is the same when all else of the image changes."""
    model = net()
    found = top_patches(model, IMAGES, "5", 3, count=2)
    for rank in range(2):
        n, i, j = (int(t[0, rank]) for t in (found.images, found.rows, found.columns))
        box, other = found.box(0, rank), torch.randn(3, 16, 16)
        other[:, box.top : box.bottom, box.left : box.right] = IMAGES[n][:, box.top : box.bottom, box.left : box.right]
        assert run_one(model, other, 6)[3, i, j].item() == pytest.approx(found.values[0, rank].item(), abs=1e-5)


def test_the_patches_figure_has_one_magnification():
    """Catches patches at the border that are blown up to the size of the others."""
    found = top_patches(net(), pictures(23), "5", [0, 2], count=4, prepare=PREPARE)
    figure = found.figure()
    assert len(figure.axes) == 8
    assert len({ax.get_xlim() for ax in figure.axes[4:]}) == 1
    assert figure.axes[4].get_title().startswith("2: ")
    alone = found.figure([1])
    assert [ax.get_title() for ax in alone.axes] == [ax.get_title() for ax in figure.axes[4:]]
    grey = nn.Sequential(nn.Conv2d(1, 2, 3))
    top_patches(grey, torch.rand(3, 1, 8, 8), "0", 0, count=2).figure().canvas.draw()


def test_the_net_is_left_as_it_was_found():
    """Catches a lost training mode, running statistics that moved, and hooks that stay, after an error too."""
    model = net()
    model[0].weight.requires_grad_(False)
    handle = model[5].register_forward_hook(lambda *_: None)
    before = state(model)
    features(model, IMAGES[:2], ["2", "5"])
    top_patches(model, IMAGES, "5", 1, count=2)
    assert same(before, state(model))
    with pytest.raises(ProbeError):
        top_patches(model, IMAGES, "8", 1)
    handle.remove()
    model[6].register_forward_hook(lambda *_: 1 / 0)
    before = state(model)
    for call in (lambda: features(model, IMAGES, "5"), lambda: top_patches(model, IMAGES, "5", 1)):
        with pytest.raises(ZeroDivisionError):
            call()
        assert same(before, state(model))


def test_any_module_will_do():
    """Catches a function that knows this package's nets only: a residual net has joins and functions between."""
    model = torchvision.models.resnet18().train()
    found = top_patches(model, torch.rand(3, 3, 64, 64), "layer2.1", 5, count=2)
    assert found.values.shape == (1, 2)
    assert model.training
    assert features(model, torch.rand(2, 3, 64, 64), "layer1").maps["layer1"].shape == (2, 64, 16, 16)


def test_refusals_name_what_is_wrong():
    """Catches a traceback from inside torch, and a unit counted from the end."""
    model = net()
    with pytest.raises(UnknownName, match="layer 'conv'"):
        features(model, IMAGES, "conv")
    with pytest.raises(ProbeError, match="layer 8: gives"):
        features(model, IMAGES, "8")
    for unit in (6, -1):
        with pytest.raises(ProbeError, match=rf"map {unit} is out of range: 0 to 5"):
            top_patches(model, IMAGES, "5", unit)
    with pytest.raises(ProbeError, match="no map"):
        top_patches(model, IMAGES, "5", [])
    for count in (0, 24):
        with pytest.raises(ProbeError, match=f"count {count}: 1 to 23"):
            top_patches(model, IMAGES, "5", 0, count)
    with pytest.raises(ProbeError, match="standardised floats"):
        top_patches(model, pictures(3), "5", 0, count=1)
    with pytest.raises(ProbeError, match="float16"):
        features(net().half(), IMAGES, "0")
    with pytest.raises(ProbeError, match="NaN"):
        features(model, IMAGES / 0 * 0, "0")
