"""The ImageNet recipes against their sources: torchvision's own record of its weights, and sums the papers state."""

import math

import pytest
import torch
import torchvision
from torch import nn

from repro.training import load_recipe
from repro.training.optim import learning_rate
from repro.training.recipe import Recipe

IMAGES = 1_281_167
IMAGENET = ("alexnet", "alexnet-2012", "alexnet-2012-code", "vgg16", "vgg16_bn")
TORCHVISIONS = ("alexnet", "vgg16_bn")


def steps(recipe: Recipe) -> int:
    return recipe.epochs * math.ceil(IMAGES / recipe.batch_size)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_published_figures_are_those_torchvision_records(name: str) -> None:
    """Catches accuracy taken for error, top-1 for top-5, another net's weights, and a digit that slipped."""
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    published = load_recipe(name).published
    assert published is not None
    assert published.test_top5_error is not None
    assert published.test_error == pytest.approx(1 - metrics["acc@1"] / 100, abs=1e-9)
    assert published.test_top5_error == pytest.approx(1 - metrics["acc@5"] / 100, abs=1e-9)
    assert published.source.startswith(f"torchvision, {weights}")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_pictures_are_brought_to_the_net_as_torchvision_does(name: str) -> None:
    """Catches a mean or deviation of another set, and pictures cut square before they are tested."""
    transforms = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    recipe = load_recipe(name)
    assert (recipe.data.mean, recipe.data.std) == (transforms.mean, transforms.std)
    assert [recipe.data.size, recipe.augmentation.crop] == [*transforms.resize_size, *transforms.crop_size]
    assert recipe.data.fit == "shorter"


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_rates_are_those_of_its_scheduler(name: str) -> None:
    """Catches a rate that falls an epoch early or late, or to another fraction, than `StepLR(30, 0.1)` says."""
    recipe = load_recipe(name)
    sgd = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=recipe.optimizer.learning_rate)
    scheduler = torch.optim.lr_scheduler.StepLR(sgd, 30, 0.1)
    for epoch in range(90):
        ours = learning_rate(recipe.schedule, recipe.optimizer.learning_rate, epoch, recipe.epochs)
        assert ours == pytest.approx(scheduler.get_last_lr()[0])
        sgd.step()
        scheduler.step()
    assert recipe.epochs == 90


def test_vgg_trains_for_the_iterations_its_paper_states() -> None:
    """Catches another batch size or another number of passes: section 3.1 gives 370 thousand iterations, 74 epochs."""
    recipe = load_recipe("vgg16")
    assert round(steps(recipe), -4) == 370_000
    rates = {learning_rate(recipe.schedule, 0.01, epoch, recipe.epochs) for epoch in range(recipe.epochs)}
    assert sorted(rates, reverse=True) == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])  # "decreased 3 times"


@pytest.mark.parametrize("name", IMAGENET)
def test_recipes_for_imagenet_are_complete(name: str) -> None:
    """Catches a recipe for another set or another number of classes, and a figure without the paper's other one."""
    recipe = load_recipe(name)
    assert (recipe.data.name, recipe.data.train, recipe.data.test, recipe.data.size) == (
        "imagenet",
        "train",
        "val",
        256,
    )
    assert recipe.augmentation.crop == 224
    assert recipe.augmentation.flip
    assert recipe.model_options.get("num_classes", 1000) == 1000
    assert recipe.published is not None
    assert recipe.published.test_top5_error is not None
    assert recipe.published.test_top5_error < recipe.published.test_error


def test_digests_tell_the_recipes_apart_and_stay() -> None:
    """Catches a digest that depends on the process or the moment, and two experiments under one digest."""
    digests = [load_recipe(name).digest() for name in IMAGENET]
    assert len(set(digests)) == len(IMAGENET)
    assert digests == [
        load_recipe(name, ["title=another", "seeds=[7]"]).model_copy(update={"name": name}).digest()
        for name in IMAGENET
    ]
