"""The checks of the lecture's claims: each against an example worked by hand, or a case that has to fail."""

import pytest
import torch
from torch import nn

from repro.claims.checks import leibe2017
from repro.models.vgg import TABLE_1
from repro.visualization.dream import Dream


def test_weights_are_counted_without_biases_and_once_for_all_places() -> None:
    """Catches biases, places that are counted as weights, and a unit that reads one channel."""
    assert leibe2017.weights_of_unit(2, 4) == 2 * 4 * 4
    assert leibe2017.weights_of_unit(2, 4, kernel_size=3) == 2 * 9
    assert leibe2017.filter_weights(filters=5, channels=2, kernel_size=3) == 5 * 2 * 9
    assert leibe2017.stack_weights([[3, 3], [5], []]) == [18, 25, 0]


def test_a_unit_reads_its_window_in_all_channels() -> None:
    """Catches rows and columns of another unit, and channels left out."""
    assert leibe2017.pixels_read(channels=4, side=9, kernel_size=3) == [4, 3, 3]
    assert leibe2017.pixels_read(channels=1, side=5, kernel_size=5) == [1, 5, 5]


def test_response_maps_lose_the_kernel_less_one_and_gain_the_padding() -> None:
    """Catches padding that is counted at one end twice, and maps in the place of a side."""
    assert leibe2017.response_maps(side=8, kernel_size=3, filters=2) == [6, 6, 2]
    assert leibe2017.response_maps(side=8, kernel_size=4, filters=2, before=1, after=2) == [8, 8, 2]


def test_equal_padding_keeps_the_size_for_odd_kernels_alone() -> None:
    """Catches a check that tries too few paddings or none."""
    assert [leibe2017.equal_padding_keeps(9, size) for size in (1, 2, 3, 4, 9)] == [True, False, True, False, True]


def test_places_are_those_that_can_be_listed() -> None:
    """Catches a place too many where the stride does not divide."""
    for stride in (1, 2, 3):
        listed = [start for start in range(-1, 9, stride) if start + 3 <= 8]  # 7 pixels, one of padding at both ends
        assert leibe2017.places(7, 3, stride, padding=1) == len(listed)


def test_pooling_over_channels_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that compares a pooling with itself."""
    assert leibe2017.pools_by_slice(2)
    monkeypatch.setattr(leibe2017.F, "max_pool2d", lambda x, window: x.amax(1, keepdim=True).expand_as(x))
    assert not leibe2017.pools_by_slice(2)


def test_pooling_lessens_what_stays_within_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison the wrong way round: a dot on an even column stays in its window when it moves by one."""
    dots = torch.zeros(2, 1, 28, 28)
    dots[0, 0, 6, 6] = dots[1, 0, 20, 20] = 1
    monkeypatch.setattr(leibe2017, "_digits", lambda: dots)
    monkeypatch.setattr(leibe2017, "_edge_maps", lambda x: x)
    assert leibe2017.pooling_lessens(window=2, shift=1)
    assert not leibe2017.pooling_lessens(window=2, shift=2)  # the next window, as far as without pooling


def test_a_mean_in_place_of_the_sum_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check of shared gradients that any multiple of the sum passes."""
    assert leibe2017.shared_gradient_adds(3)
    unfold = torch.nn.functional.unfold
    monkeypatch.setattr(leibe2017.F, "unfold", lambda x, size: unfold(x, size)[:, :, ::2])
    assert not leibe2017.shared_gradient_adds(3)


def test_fields_grow_only_where_each_kernel_is_larger_than_one() -> None:
    """Catches a comparison of the last field with the first alone: column C ends its blocks with 1×1."""
    assert leibe2017.fields_grow("vgg16")
    assert not leibe2017.fields_grow("vgg16_1x1")


def test_layers_with_weights_and_hidden_ones() -> None:
    """Catches counted pools and ReLUs, and an output that counts as hidden."""
    assert leibe2017.depths(["lenet5_modern", "vgg11_bn"]) == [5, 11]
    assert leibe2017.hidden_layers("lenet5_modern") == 4


def test_convolution_facts_are_those_of_the_builder() -> None:
    """Catches numbers from 0, and facts sorted by kind and not by convolution."""
    facts = leibe2017.convolution_facts("lenet5_modern", ["out_channels", "kernel_size", "padding"], [1, 2])
    assert facts == [6, 5, 0, 16, 5, 0]


def test_vgg_layers_are_the_rows_of_table_1() -> None:
    """Catches a lost LRN, 1×1 kernels and linear layers; the oracle is the description the net is built from."""
    names = {"vgg11_lrn": "A-LRN", "vgg16_1x1": "C"}
    words = [
        " ".join(f"conv{word}" if "-" in word else word.replace("|", "maxpool") for word in TABLE_1[column].split())
        for column in names.values()
    ]
    assert leibe2017.vgg_layers(list(names)) == [f"{word} FC-4096 FC-4096 FC-1000" for word in words]


def test_depth_takes_the_longest_of_what_lies_beside_each_other() -> None:
    """Catches branches that are added, a shortcut's convolution that counts, and auxiliary classifiers."""
    assert leibe2017.library_depth("resnet18") == 18
    assert leibe2017.library_depth("vgg13") == 13
    one, two = nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    inception = type("Inception", (nn.Module,), {})()
    inception.branch1, inception.branch2 = one, two
    assert leibe2017._depth(nn.Sequential(one, inception, nn.ReLU(), nn.Linear(1, 1))) == 1 + 2 + 1


def test_names_are_spoken_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches names that count once whatever their length, and classes counted without both ends."""
    monkeypatch.setattr(leibe2017, "_class_names", lambda: ["cat", "great white shark", "sea snake", "dog"])
    assert leibe2017.minutes_to_speak_classes(0.1) == pytest.approx(7 * 10 / 60)
    assert leibe2017.classes_from_to("cat", "sea snake") == 3


@pytest.fixture
def given_dreams(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Dreams that a test makes, by prior, and a net whose scores are ten times the first three pixels."""
    images: dict[str, torch.Tensor] = {}

    class Net:
        model = staticmethod(lambda x: 10 * x.flatten(1)[:, :3])

    def made(net: str, prior: str) -> Dream:
        x = images[prior]
        return Dream([0], x, x, torch.zeros(1), torch.zeros(1), torch.zeros(1))

    monkeypatch.setattr(leibe2017, "_dreams", made)
    monkeypatch.setattr(leibe2017.weights, "load", lambda name: Net)
    return images


def test_every_dream_has_to_arrive_at_its_own_class(given_dreams: dict[str, torch.Tensor]) -> None:
    """Catches a mean over the classes, and any class in place of the dream's own."""
    arrived = torch.eye(3).view(3, 1, 1, 3)
    given_dreams["none"] = arrived
    assert leibe2017.dreams_arrive("net", 0.95)
    given_dreams["none"] = arrived[[0, 1, 1]]
    assert not leibe2017.dreams_arrive("net", 0.95)


def test_another_net_has_to_recognise_more_than_the_share(given_dreams: dict[str, torch.Tensor]) -> None:
    """Catches a share that is reached and not passed."""
    given_dreams["spectrum"] = torch.eye(3)[[0, 1, 1]].view(3, 1, 1, 3)
    assert leibe2017.dreams_recognised("net", "other", "spectrum", share=0.6)
    assert not leibe2017.dreams_recognised("net", "other", "spectrum", share=2 / 3)


def test_white_noise_is_less_natural_than_smooth_images(given_dreams: dict[str, torch.Tensor]) -> None:
    """Catches the slopes the wrong way round: noise added up along both axes has a steeper spectrum than noise."""
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = noise.cumsum(2).cumsum(3)
    given_dreams |= {"none": noise, "spectrum": smooth}
    assert leibe2017.dreams_nearer_to_natural("net", "spectrum", natural=-2)
    given_dreams |= {"none": smooth, "spectrum": noise}
    assert not leibe2017.dreams_nearer_to_natural("net", "spectrum", natural=-2)
