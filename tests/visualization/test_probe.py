"""The net is left as it was found, and what cannot be looked into is refused in one line."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UnknownName
from repro.visualization.probe import (
    ProbeError,
    as_maps,
    batch_size,
    check_unit,
    find_layer,
    images_for,
    outputs,
    untouched,
)

IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )


def snapshot(model: nn.Module) -> list[object]:
    """All that a method of looking might change, apart from what it computes."""
    found: list[object] = []
    for module in model.modules():
        hooks = {k: list(v) for k, v in vars(module).items() if "_hooks" in k and isinstance(v, dict)}
        found += [module.training, vars(module).get("inplace"), hooks]
    for name, tensor in model.state_dict(keep_vars=True).items():
        grad = tensor.grad
        found += [name, tensor.requires_grad, tensor.detach().clone().tolist(), None if grad is None else grad.tolist()]
    return found


@pytest.mark.parametrize("fails", [False, True])
def test_the_net_is_left_as_it_was_found(fails: bool) -> None:
    """Catches `model.train()` afterwards for a net of mixed modes, statistics of batch normalisation that move, hooks
    left behind by an error, `requires_grad` set for all, `.grad` written, and in-place layers not restored."""
    model = small().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(IMAGE).sum().backward()
    own = model[0].register_forward_hook(lambda *_: None)
    before = snapshot(model)
    try:
        with untouched(model):
            assert not any(module.training for module in model.modules())
            assert not model[2].inplace
            model[0].register_forward_hook(lambda *_: None)
            model[5].register_full_backward_hook(lambda *_: None)
            images = IMAGE.clone().requires_grad_()
            torch.autograd.grad(model(images).sum(), images)
            if fails:
                raise RuntimeError("on the way")
    except RuntimeError:
        assert fails
    assert snapshot(model) == before
    own.remove()


def test_outputs_are_those_of_the_layers_and_not_of_the_layer_in_place_behind_them() -> None:
    """Catches maps of a convolution that the ReLU behind it has rectified in place, and gradients that are cut off."""
    model = small()
    images = IMAGE.clone().requires_grad_()
    with untouched(model):
        found = outputs(model, images, ["0", "2"])
        expected = F.conv2d(images, model[0].weight, model[0].bias)
        (gradient,) = torch.autograd.grad(found["0"].sum(), images)
    torch.testing.assert_close(found["0"], expected)
    assert (found["0"] < 0).any()
    assert (found["2"] >= 0).all()
    (wanted,) = torch.autograd.grad(expected.sum(), images)
    torch.testing.assert_close(gradient, wanted)


class Twice(nn.Module):
    """A layer used twice, one that is not used, one that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused, self.pair = nn.Conv2d(3, 3, 1), nn.Identity(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x))
        return self.pair(x)[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_of_a_layer_used_twice_the_last_use_counts() -> None:
    """Catches the first use kept."""
    model = Twice()
    with untouched(model):
        found = outputs(model, IMAGE, ["conv"])["conv"]
        torch.testing.assert_close(found, model.conv(model.conv(IMAGE)))


def test_a_layer_that_gives_nothing_to_look_at_is_named() -> None:
    """Catches a KeyError, and hooks that stay when the net raises."""
    model = Twice()
    before = snapshot(model)
    for layer, message in (("unused", "does not call it"), ("pair", "gives tuple")):
        with pytest.raises(ProbeError, match=message):
            outputs(model, IMAGE, [layer])
    with pytest.raises(UnknownName, match="did you mean conv"):
        find_layer(model, "cnv")
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "found torch.uint8 tensor"),
        ("photograph.jpg", "found str"),
        (torch.zeros(8, 8), r"found \(8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"found \(0, 3, 8, 8\)"),
        (torch.full((3, 8, 8), torch.nan), "NaN or infinity"),
    ],
)
def test_images_that_are_none_are_refused(images: object, message: str) -> None:
    """Catches uint8 values taken for standardised ones, a picture without channels, and NaN that spreads unseen."""
    with pytest.raises(ProbeError, match=message):
        images_for(small(), images)  # type: ignore[arg-type]


def test_images_follow_the_net_and_a_half_precision_net_is_refused() -> None:
    """Catches float32 images given to a float64 net, and gradients that underflow to zero in float16."""
    images = images_for(small().double(), IMAGE[0])
    assert images.shape == (1, 3, 8, 8)
    assert images.dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ProbeError, match=r"use model\.float\(\)"):
            images_for(small().to(dtype), IMAGE)


def test_units_out_of_range_and_layers_without_maps_are_refused() -> None:
    """Catches negative indices that count from the end, and rows taken for columns."""
    assert check_unit("conv", (4, 5, 6), 3) == (3,)
    assert check_unit("conv", (4, 5, 6), (3, 4, 5)) == (3, 4, 5)
    for unit, message in ((4, "map 4 .* 0 to 3"), (-1, "map -1"), ((0, 5, 0), "row 5 .* 0 to 4"), ((0, 1), "all of 3")):
        with pytest.raises(ProbeError, match=message):
            check_unit("conv", (4, 5, 6), unit)
    with pytest.raises(ProbeError, match=r"gives \(5,\) per image, not maps"):
        as_maps("5", torch.zeros(1, 5))


def test_the_batch_is_as_large_as_the_memory_allows() -> None:
    """Worked by hand: the convolution gives 4·6·6 floats, 576 bytes, the largest; all five layers with a batch axis
    give 4·144·4 + 5·4 bytes and, counted twice for their gradients, 2·(4·576 + 576 + 20). Catches bits for bytes."""
    model = small()
    assert batch_size(model, (3, 8, 8), memory=576 * 2 * 10) == 10
    assert batch_size(model, (3, 8, 8), memory=2 * (5 * 576 + 20) * 7 + 1, gradients=True) == 7
    assert batch_size(model, (3, 8, 8), memory=1) == 1
