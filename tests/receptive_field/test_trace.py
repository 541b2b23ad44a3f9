"""What single layers and functions read, held against gradients of the real ones; and nets that cannot be traced."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import ReproError
from repro.receptive_field import BOTH_SAME, TraceError, receptive_field, register_window, slides

SIDES = 9, 12


class Does(nn.Module):
    """A function as a net."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def read_by(net: nn.Module, row: int, column: int) -> Tensor:
    """Pixels with a gradient, over four images and all channels of the unit; (N, features) are one unit."""
    x = torch.rand(4, 4, *SIDES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = net.double().eval()(x)
    unit = y[..., row, column] if y.ndim == 4 else y
    weights = torch.rand(unit.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((unit * weights).sum(), x)
    return gradient.abs().sum(dim=(0, 1)) > 1e-12


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def channels_last(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped, dilated": lambda: nn.Conv2d(4, 4, (3, 2), (2, 1), (2, 0), (2, 3), groups=2),
    "same, even": lambda: nn.Conv2d(4, 4, (4, 2), padding="same", dilation=(1, 3)),
    "reflect": lambda: nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(4, 4, 4, 3, padding=3, padding_mode="replicate"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1),
    "transposed, dilated": lambda: nn.ConvTranspose2d(4, 4, 2, 2, dilation=3),
    "transposed, with holes": lambda: nn.ConvTranspose2d(4, 4, 1, 3),
    "behind holes": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 4), nn.Conv2d(4, 4, 2, padding=1)),
    "average, rounded up": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "average, rounded up and padded": lambda: nn.AvgPool2d((2, 4), 3, (1, 2), ceil_mode=True),
    "power": lambda: nn.LPPool2d(2, 3, 2),
    "adaptive, uneven": lambda: nn.AdaptiveAvgPool2d((4, 5)),
    "adaptive, growing": lambda: nn.AdaptiveAvgPool2d((12, 13)),
    "adaptive, one axis": lambda: nn.AdaptiveAvgPool2d((None, 1)),
    "nearest": lambda: nn.Upsample((5, 30)),
    "nearest-exact": lambda: nn.Upsample((6, 31), mode="nearest-exact"),
    "by a factor": lambda: nn.Upsample(scale_factor=(1.5, 2.5)),
    "bilinear": lambda: nn.Upsample((20, 7), mode="bilinear"),
    "bilinear, by a factor": lambda: nn.Upsample(scale_factor=2.5, mode="bilinear"),
    "corners": lambda: nn.Upsample((17, 23), mode="bilinear", align_corners=True),
    "area": lambda: nn.Upsample((4, 17), mode="area"),
    "shuffled to pixels": lambda: nn.PixelShuffle(2),
    "shuffled from pixels": lambda: nn.Sequential(nn.ZeroPad2d((0, 0, 1, 0)), nn.PixelUnshuffle(2)),
    "cropped": lambda: nn.ZeroPad2d((-2, 3, 1, -1)),
    "mirrored": lambda: nn.ReflectionPad2d((3, 1, 0, 2)),
    "groups": lambda: nn.GroupNorm(2, 4),
    "instances": lambda: nn.InstanceNorm2d(4),
    "batches": lambda: nn.BatchNorm2d(4),
    "softmax over channels": lambda: nn.Softmax(1),
    "softmax over columns": lambda: nn.Softmax(-1),
    "slices": lambda: Does(lambda x: x[:, 1:, 2::3, :-4]),
    "one line": lambda: Does(lambda x: x[:, :, 3:4] + x[..., 5, None, :]),
    "channels shuffled": lambda: Does(shuffled),
    "channels last": lambda: Does(channels_last),
    "split": lambda: Does(lambda x: torch.cat([F.avg_pool2d(x.chunk(2, 1)[0], 3, 1, 1), x[:, 2:]], 1)),
    "in a row and back": lambda: Does(lambda x: F.avg_pool2d(x.flatten(2).sqrt().view(-1, 4, *SIDES), 2)),
    "mean of the rows": lambda: Does(lambda x: x.mean(2, keepdim=True) * x),
    "features": lambda: nn.Sequential(nn.Conv2d(4, 2, 5), nn.Flatten(), nn.Linear(2 * 5 * 8, 3), nn.Linear(3, 2)),
    "features to maps": lambda: Does(lambda x: F.avg_pool2d(x.mean((2, 3)).view(-1, 1, 2, 2), 2)),
    "a weighted sum": lambda: Does(lambda x: (x @ torch.ones(12, 5, dtype=x.dtype, device=x.device)).amax(3, True)),
    "in place": lambda: Does(lambda x: F.relu_(F.avg_pool2d(x, 2).add_(1).mul_(2))),
    "larger": lambda: Does(lambda x: torch.maximum(F.avg_pool2d(x, 3, 1, 1), x)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_unit_reads_the_pixels_with_a_gradient(name: str) -> None:
    """Catches, at every unit: padding or rounding on the wrong side, dilation's holes filled, uneven windows made even,
    an upsampling off by one, positions mixed up by a change of form."""
    torch.manual_seed(0)
    net = LAYERS[name]()
    table = receptive_field(net, (4, *SIDES))
    row = table[-1]
    assert row.output_size == (tuple(net.eval().float()(torch.rand(2, 4, *SIDES)).shape[2:]) or (1, 1))
    for i, j in product(*map(range, row.output_size)):
        assert torch.equal(table.support(row.name, i, j), read_by(net, i, j)), (i, j)


def test_a_transposed_convolution_by_hand() -> None:
    """Catches a stride below 1 that rounds away: k 4, s 2, p 1: unit o reads positions with 2j − 1 ≤ o ≤ 2j + 2."""
    table = receptive_field(nn.ConvTranspose2d(1, 1, 4, 2, 1), 4)
    row = table[0]
    assert (row.size, row.effective_stride, row.output_size) == ((2, 2), (0.5, 0.5), (8, 8))
    boxes = [table.box("", 0, j).unclipped for j in range(4)]
    assert [(box.left, box.right) for box in boxes] == [(-1, 1), (0, 2), (0, 2), (1, 3)]
    up = receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3)), 8)
    # The 3×3 spans the units 0, 0 and 1 or 0, 1 and 1 of the map below: two fields of 3 pixels, 2 apart.
    assert (up[-1].size, up[-1].effective_stride, up[-1].effective_padding) == ((5, 5), (1, 1), (1, 1))


def test_functions_have_names_below_their_module() -> None:
    """Catches a function that goes unseen, and two of them under one name."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.relu(self.conv(x)) + x)

    names = [row.name for row in receptive_field(nn.Sequential(Block(), nn.Flatten()), 8)]
    assert names == ["0.conv", "0.relu", "0.add", "0.relu:2", "1"]


def test_the_model_is_left_as_it_was() -> None:
    """Catches a mode, statistics or a hook that stays, also where the trace fails."""
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3), nn.Dropout())
    net[0].eval()
    net[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for broken in (False, True):
        if broken:
            net.append(Does(lambda x: x.flip(2)))
            with pytest.raises(TraceError):
                receptive_field(net, 8)
        else:
            receptive_field(net, 8)
        assert [m.training for m in net] == [False, True, True, True][: len(net)]
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert all(p.device.type == "cpu" for p in net.parameters())
        assert not net[1].weight.requires_grad


def unwatched(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as in compiled code
        return x.relu()


def by_value(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def sized_by_value(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, int(x.mean().item()))


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1] = x[:, 1:2]
    return y


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (by_value, r"test_trace\.py:\d+: `return x if x.sum\(\) > 0 else -x`.*must not depend on the values"),
        (
            sized_by_value,
            r"test_trace\.py:\d+: `return F.avg_pool2d\(x, int\(x.mean\(\).item\(\)\)\)`.*must not depend",
        ),
        (lambda x: x[x > 0], r"getitem: .*its index is a tensor"),
        (lambda x: x.nonzero(), r"nonzero"),
        (lambda x: x.flip(2), r"0\.flip: no rule says what flip reads.*register_window"),
        (lambda x: x.matmul(x.transpose(2, 3)), r"0\.matmul: .*depend on the image"),
        (lambda x: torch.cat([x, x], 2), r"0\.cat: .*beside each other"),
        (lambda x: x + x.transpose(2, 3), r"0\.add: .*different places"),
        (lambda x: x.reshape(len(x), 2, -1, 8), r"0\.reshape: .*mixes places"),
        (lambda x: F.interpolate(x, 9, mode="bicubic"), r"0\.interpolate: .*'bicubic'"),
        (written, r"0\.setitem: "),
        (lambda x: unwatched(x) + 1, r"0: a tensor of shape \(2, 4, 8, 8\) comes from an operation"),
        (lambda x: F.conv2d(x, torch.ones(1, 3, 1, 1, device="meta")), r"test_trace\.py:\d+: .*raises RuntimeError"),
    ],
)
def test_what_cannot_be_traced_is_told(function: Callable[[Tensor], Tensor], message: str) -> None:
    """Catches an operation that is passed over, and an error that does not name the module, the line or the way out."""
    with pytest.raises(TraceError, match=message) as e:
        receptive_field(nn.Sequential(Does(function)), (4, 8, 8))
    assert isinstance(e.value, ReproError)
    assert e.value.exit_code == 2
    assert "\n" not in str(e.value)


def test_an_input_that_is_too_small() -> None:
    """Catches the wrong layer blamed, and a smallest size that is off by one: 3 after a pool of 2 needs 6 pixels."""
    net = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    with pytest.raises(TraceError, match=r"1 \(conv2d\) gets a map of 2×2, .*passes is 6×6"):
        receptive_field(net, 5)
    assert receptive_field(net, 6)[-1].output_size == (1, 1)
    with pytest.raises(TraceError, match=r"\(C, H, W\)"):
        receptive_field(net, (2, 1, 8, 8))


def test_a_rule_of_ones_own() -> None:
    """Catches a rule that is not asked, one that holds for a subclass with another forward, and a layer looked into."""

    class Flipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    class Other(Flipped):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(2)

    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unfold(2, 2, 2).sum(-1)[..., ::2]

    register_window(Flipped)(lambda layer, before, after: BOTH_SAME)
    register_window(Strided)(lambda layer, before, after: slides((2, 1), 2))
    row = receptive_field(nn.Sequential(Flipped(), Strided()), 8)[-1]
    assert (row.name, row.kind, row.kernel_size, row.size, row.output_size) == ("1", "Strided", (2, 1), (2, 1), (4, 4))
    with pytest.raises(TraceError, match="flip"):
        receptive_field(Other(), 8)


def test_input_sizes_that_a_model_says() -> None:
    """Catches a guess where the model says it, and a number of channels that its first convolution does not take."""
    net = nn.Sequential(nn.Conv2d(5, 1, 1))
    assert receptive_field(net).input_size == (5, 224, 224)
    assert receptive_field(net, 7).input_size == (5, 7, 7)
    assert receptive_field(net, (6, 7)).input_size == (5, 6, 7)
    net.input_size = (5, 3, 2)
    assert receptive_field(net).input_size == (5, 3, 2)
