"""The checks behind the claims of the CIFAR-10 study, against figures worked by hand and against autograd."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import data, records, weights
from repro.claims.checks import cifar10study as checks
from repro.models import get_model


def test_layers_with_weights_counts_convolutions_and_linear_layers():
    """Catches batch normalisation counted as a layer, or the linear layers left out."""
    assert checks.layers_with_weights(["vgg19", "vgg16_bn", "alexnet"]) == [19, 16, 8]


def test_times_as_many_multiply_adds_by_hand():
    """Catches parameters given for multiply-adds, the fraction upside down, and pools that do not halve the maps."""
    vgg8 = 1024 * 9 * (3 * 64 + 64 * 64) + 256 * 9 * (64 * 128 + 128 * 128)
    vgg8 += 64 * 9 * (128 * 256 + 256 * 256) + 16 * 9 * (256 * 512 + 512 * 512) + 2048 * 4096 + 4096 * 10
    alexnet = 1024 * 9 * 3 * 64 + 256 * 9 * 64 * 192 + 64 * 9 * (192 * 384 + 384 * 256 + 256 * 256)
    alexnet += 4096 * 4096 + 4096 * 1024 + 1024 * 10
    assert checks.times_as_many("multiply_adds", "vgg8_cifar10", "alexnet_cifar10") == pytest.approx(vgg8 / alexnet)
    assert checks.times_as_many("parameters", "vgg8_cifar10", "alexnet_cifar10") < 0.6


def test_more_work_with_fewer_parameters_needs_both():
    """Catches one condition in the place of both: VGG-16 has more of either than AlexNet, and AlexNet less work."""
    assert checks.more_work_with_fewer_parameters("vgg8_cifar10", "alexnet_cifar10")
    assert not checks.more_work_with_fewer_parameters("vgg16_cifar10", "alexnet_cifar10")
    assert not checks.more_work_with_fewer_parameters("alexnet_cifar10", "vgg8_cifar10")


def test_share_by_depth_by_hand():
    """Catches the first convolution of a block counted as depth, and a share of the whole in place of the surplus."""
    equal = {64: 1, 128: 1, 256: 2, 512: 2 + 2}  # further convolutions of column D between layers of as many maps
    further = sum(count * (9 * maps * maps + maps) for maps, count in equal.items())
    surplus = 33_638_218 - 23_238_474
    assert checks.share_by_depth("vgg16_cifar10", "D", "alexnet_cifar10") == pytest.approx(further / surplus)


@pytest.mark.parametrize("column", ["A-LRN", "C", "E"])
def test_widening_is_that_of_the_blocks(column):
    """Catches the entry LRN taken for a width, and steps within blocks."""
    assert checks.widening(column) == [2, 2, 2, 1]


def test_blocks_where_two_are_cheaper_by_hand():
    """Catches the widening forgotten: between equal widths two of 3×3 are cheaper than one of 5×5 in every block.

    Weights per pair of wider maps: two 3×3 that double have 13.5, one 5×5 12.5, one 7×7 24.5. From 3 maps to 64 two
    3×3 have 38,592, one 5×5 4,800, one 7×7 9,408, and one 15×15 43,200.
    """
    assert checks.blocks_where_two_are_cheaper("B", 3, 5) == 1
    assert checks.blocks_where_two_are_cheaper("B", 3, 7) == 4
    assert checks.blocks_where_two_are_cheaper("B", 3, 15) == 5


def test_convolution_settings_are_those_of_all_the_nets():
    """Catches the last net's settings given for all, and pools counted among convolutions."""
    assert checks.convolution_settings(["vgg16_1x1", "vgg16"], "kernel_size") == [1, 3]
    assert checks.convolution_settings(["alexnet"], "stride") == [1, 4]
    assert checks.mixes_kernels("alexnet")
    assert not checks.mixes_kernels("alexnet_cifar10")


def test_kinds_only_in():
    """Catches the difference taken the other way round, and the net's own class counted as a layer."""
    assert checks.kinds_only_in("vgg16_bn_cifar10", "vgg16_cifar10") == "BatchNorm2d"
    assert checks.kinds_only_in("vgg16_cifar10", "vgg16_bn_cifar10") == "none"
    assert checks.kinds_only_in("vgg16_cifar10", "alexnet_cifar10") == "none"


def test_fields_of_stacks_and_nets_by_hand():
    """Catches a layer's own stride in its own step, rows numbered from 0, and linear layers among the rows."""
    assert (checks.field_of_stack(3, 3), checks.field_of_stack(5, 2)) == (7, 9)
    assert checks.fields_in_order("alexnet") == [11, 19, 51, 67, 99, 131, 163, 195]
    assert checks.fields_in_order("alexnet", rows=[1, 8]) == [11, 195]
    assert checks.strides_in_order("alexnet") == [4, 8, 8, 16, 16, 16, 16, 32]
    assert checks.strides_in_order("alexnet", rows=[2]) == [8]


def test_sum_gives_fields_only_with_the_strides_below():
    """Catches both sums taken for one: they part at the first layer with a stride."""
    assert checks.sum_gives_fields(["alexnet", "vgg16"], own_stride=False)
    assert not checks.sum_gives_fields(["alexnet"], own_stride=True)
    assert not checks.sum_gives_fields(["vgg16", "alexnet"], own_stride=True)


def test_grows_more_gradually_by_hand():
    """Catches mean and largest step exchanged: VGG-16 has 211 / 18 and 32, AlexNet 194 / 8 and 32."""
    assert checks.grows_more_gradually("vgg16", "alexnet", "mean")
    assert not checks.grows_more_gradually("alexnet", "vgg16", "mean")
    assert not checks.grows_more_gradually("vgg16", "alexnet", "largest")
    assert checks.grows_more_gradually("vgg8_cifar10", "vgg16_cifar10", "largest")


def test_best_view_by_hand():
    """Catches the field in the place of what is left of it in the picture.

    A unit of the last convolution begins at pixel 4 i − 15 and has 34: at best 31 of 32 pixels down and across.
    """
    assert checks.best_view("alexnet_cifar10", "features.10") == (31 / 32) ** 2


def test_every_unit_sees_all_asks_every_unit_and_layer():
    """Catches a field of 40 pixels taken for the sight of all 32: a corner's unit looks over the edge."""
    assert checks.every_unit_sees_all("vgg16_cifar10", "features.17")
    assert not checks.every_unit_sees_all("vgg16_cifar10", "features.14")


def first_and_last_gradient() -> tuple[float, float]:
    """Of VGG-8, by autograd alone, for what the checks say they take."""
    pictures = data.load("shapes", "test")
    x = pictures.images[: checks.FLOW_PICTURES].permute(0, 3, 1, 2) / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    torch.manual_seed(checks.SEED)
    net = get_model("vgg8_cifar10", num_classes=10, dropout=0.0)
    F.cross_entropy(net(x), pictures.labels[: checks.FLOW_PICTURES]).backward()
    first, last = net.features[0].weight.grad, net.classifier[-1].weight.grad
    return first.pow(2).mean().sqrt().item(), last.pow(2).mean().sqrt().item()


def test_gradients_are_those_of_the_first_and_last_layer():
    """Catches other layers, gradients of biases, dropout left on, and a ratio the wrong way round."""
    first, last = first_and_last_gradient()
    for check, slightly in ((checks.gradients_vanish, 1.001), (checks.gradients_arrive, 0.999)):
        assert check("vgg8_cifar10", slightly * first / last)
        assert not check("vgg8_cifar10", first / last / slightly)
    assert checks.first_gradient_below("vgg8_cifar10", 1.001 * first)
    assert not checks.first_gradient_below("vgg8_cifar10", 0.999 * first)


def test_start_matters_less_compares_factors():
    """Catches the smaller factor given for the larger, and the bound left out."""
    rules = ["pytorch", "he"]
    assert checks.start_matters_less("vgg8_cifar10", "vgg8_cifar10", rules, below=1.01)
    assert not checks.start_matters_less("vgg8_cifar10", "vgg8_cifar10", rules, below=1.0)


def test_parameters_per_percent_by_hand():
    """Catches millions for thousands, and an accuracy as a fraction."""
    assert checks.parameters_per_percent("alexnet_cifar10", 50.0) == pytest.approx(23_238.474 / 50)


def test_pairs_in_order_by_hand():
    """Catches ties counted as kept order."""
    assert checks.pairs_in_order([1, 2, 3, 4], [1, 2, 3, 4]) == 6
    assert checks.pairs_in_order([1, 2, 3, 4], [2, 1, 3, 4]) == 5
    assert checks.pairs_in_order([1, 2, 3], [3, 2, 1]) == 0
    assert checks.pairs_in_order([1, 1], [1, 2]) == 0


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Records with these training or test errors, epoch by epoch: `write("recipe", seed, train=[0.5, 0.2])`."""
    monkeypatch.setenv("REPRO_RECORDS", str(tmp_path))

    def written(recipe: str, seed: int, **errors: list[float]) -> None:
        (measured,) = errors.values()
        epochs = [
            records.Epoch(
                epoch=i,
                seconds=1,
                learning_rate=1,
                train_loss=1,
                train_error=error if "train" in errors else 1,
                test_loss=1,
                test_error=error if "test" in errors else 1,
            )
            for i, error in enumerate(measured, 1)
        ]
        record = records.Record.model_construct(
            recipe=recipe, seed=seed, status="complete", recipe_digest=recipe, recipe_content={}, command="",
            started="", git={"dirty": False}, versions={}, device={}, data={}, parameters=1, selection="",
            epochs=epochs,
        )  # fmt: skip
        records.write(record, tmp_path / records.file_of(recipe, seed))

    return written


def test_sooner_at_asks_all_runs(write: Callable[..., None]):
    """Catches means in the place of all runs, and a run that never comes there taken for a quick one."""
    write("quick", 0, train=[0.5, 0.2])
    write("quick", 1, train=[0.5, 0.4, 0.2])
    write("slow", 0, train=[0.5, 0.4, 0.3, 0.2])
    write("slow", 1, train=[0.5, 0.5])
    assert checks.sooner_at("quick", "slow", 0.25)
    assert not checks.sooner_at("slow", "quick", 0.25)
    write("quick", 2, train=[0.5, 0.4, 0.3, 0.2])
    assert not checks.sooner_at("quick", "slow", 0.25)


def test_ahead_in_every_run_says_nothing_of_single_or_overlapping_runs(write: Callable[..., None]):
    """Catches the best epoch for the last, means in the place of all runs, and one run that decides."""
    assert checks.ahead_in_every_run("good", "bad") is None
    write("good", 0, test=[0.3, 0.2])
    write("bad", 0, test=[0.1, 0.4])
    write("bad", 1, test=[0.1, 0.3])
    assert checks.ahead_in_every_run("good", "bad") is None
    write("good", 1, test=[0.3, 0.25])
    assert checks.ahead_in_every_run("good", "bad") is True
    assert checks.ahead_in_every_run("bad", "good") is False
    write("good", 2, test=[0.3, 0.35])
    assert checks.ahead_in_every_run("good", "bad") is None


def test_improves_steadily_compares_stretches_of_every_run(write: Callable[..., None]):
    """Catches epochs compared one by one, a stretch that is cut short, and the mean over the runs.

    In twos 0.8, 0.6, 0.65, 0.5 and 0.9 have means of 0.7 and 0.575, and the last epoch stands alone.
    """
    write("net", 0, test=[0.8, 0.6, 0.65, 0.5, 0.9])
    assert checks.improves_steadily("net", 2) is None
    write("net", 1, test=[0.8, 0.7, 0.6, 0.5, 0.4])
    assert checks.improves_steadily("net", 2) is True
    assert checks.improves_steadily("net", 1) is False
    write("net", 2, test=[0.5, 0.5, 0.5, 0.5, 0.1])
    assert checks.improves_steadily("net", 2) is False


def with_filters(monkeypatch: pytest.MonkeyPatch, weight: Tensor) -> None:
    """The weights that every name stands for from now on: one convolution with these filters."""
    net = nn.Sequential(nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding="same", bias=False))
    net[0].weight = nn.Parameter(weight)
    loaded = SimpleNamespace(
        model=net.eval(), convolutions=["0"], prepare=lambda pictures: pictures.permute(0, 3, 1, 2) / 255
    )
    monkeypatch.setattr(weights, "load", lambda name: loaded)


def test_filters_against_noise(monkeypatch: pytest.MonkeyPatch):
    """Catches a deviation without its sign, one measure for all, and filters compared with those of another shape."""
    torch.manual_seed(1)
    with_filters(monkeypatch, torch.rand(64, 3, 3, 3) - 0.5)
    assert checks.filters_within_noise("drawn", deviations=4)
    assert not checks.filters_beyond_noise("drawn", ["orientation"], deviations=4)
    stripes = torch.tensor([-1.0, 0.0, 1.0]).expand(64, 3, 3, 3) + 0.01 * torch.randn(64, 3, 3, 3)
    with_filters(monkeypatch, stripes)  # grey edges: oriented, and no coloured blobs
    assert not checks.filters_within_noise("stripes", deviations=4)
    assert checks.filters_beyond_noise("stripes", ["orientation"], deviations=4)
    assert not checks.filters_beyond_noise("stripes", ["orientation", "blob"], deviations=4)


def test_roughness_of_maps_of_a_net_that_passes_the_picture_on(monkeypatch: pytest.MonkeyPatch):
    """Catches maps of other pictures: shapes are smooth, and shuffled places give about 1."""
    with_filters(monkeypatch, torch.eye(3)[:, :, None, None])
    assert checks.roughness_of_maps("as they are", "0", 20) < 0.4
    loaded = weights.load("any")
    places = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
    loaded.prepare = lambda shown: shown.flatten(1, 2)[:, places].view(-1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    assert checks.roughness_of_maps("shuffled", "0", 20) == pytest.approx(1, abs=0.05)
