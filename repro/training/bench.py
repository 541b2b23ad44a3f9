"""How many pictures a second a net trains on or a set gives, and what 90 passes over ImageNet would take at that rate.

The steps are those of `repro.training.loop.Trainer`, the batches those it reads, on one process or on all that torchrun
started. Chapter 11 holds the figures against the five to six days of the AlexNet paper (section 5).
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.data.augmentation import Augmentation, Batches
from repro.data.images import ImageSet
from repro.data.random import permutation
from repro.data.sources import SPECS, splits_of
from repro.models.compare import parse_net
from repro.models.registry import model_info
from repro.training.command import Sharing
from repro.training.device import describe
from repro.training.loop import CHECK_EVERY, Trainer
from repro.training.parallel import DataParallel, Group, OneProcess, joined
from repro.training.parallel.split import slice_of
from repro.training.recipe import Recipe, parse_recipe
from repro.training.setup import Pictures, open_pictures

EPOCHS, IMAGENET_IMAGES = 90, SPECS["imagenet"].splits["train"]
CROP, CUT_FROM = 224, 256  # nets for ImageNet see crops of 224 out of 256 pixels
WARM_UP = 3  # steps before the clock starts: memory is found, kernels are chosen or compiled
DRAWN_BATCHES = 2
SEED = 0
# No step may end in NaN, whatever the net starts from; the time of a step does not depend on the rate.
RATE = 1e-6

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@dataclass(frozen=True)
class Speed:
    """`images` pictures in `seconds`, by all ranks together; each waited `waited_s` of them for data, in the mean."""

    what: str
    images: int
    seconds: float
    waited_s: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def waiting(self) -> float:
        """The share of the time in which there was no picture to work on, 0…1."""
        return self.waited_s / self.seconds

    @property
    def full_run_s(self) -> float:
        """Seconds for 90 passes over ImageNet's training set."""
        return EPOCHS * IMAGENET_IMAGES / self.images_per_s

    def __str__(self) -> str:
        return (
            f"{self.what}\n"
            f"  {self.images_per_s:,.0f} images/s ({self.images:,} in {self.seconds:.1f} s), "
            f"{self.waiting:.1%} of the time waiting for data\n"
            f"  {EPOCHS} epochs of {IMAGENET_IMAGES:,} images: {duration(self.full_run_s)} at this rate; "
            "in 2012 five to six days on two GTX 580"
        )


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "45 s", "12.5 min", "3.2 h", "5.5 days"."""
    for unit, name in ((DAY, "days"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def bench_train(net: str, *, device: str | None = None, parallel: str | None = None, **options: Any) -> None:
    """Print the speed of training `net`, `NAME` or `NAME:KEY=VALUE,…`; `options` are those of `train_speed`.

    Under torchrun every rank calls it, and the ranks share the work by `parallel`, data parallelism when not given.
    """
    with joined(device) as group:
        mode = parallel or (OneProcess.mode if group.world_size == 1 else DataParallel.mode)
        speed = train_speed(net, Sharing(mode).among(group), **options)
        if group.is_first:
            print(speed)


def bench_loader(name: str, *, device: str | None = None, **options: Any) -> None:
    """Print how fast batches of a set come ready for a net; `options` are those of `loader_speed`."""
    with joined(device) as group:
        speed = loader_speed(name, group, **options)
        if group.is_first:
            print(speed)


def train_speed(
    net: str,
    parallel: OneProcess,
    *,
    batch_size: int = 128,
    precision: str = "auto",
    seconds: float = 10.0,
    data: str | None = None,
    compiled: bool = False,
) -> Speed:
    """Steps of training for about `seconds`: forward, backward and update, on pictures cropped and mirrored anew.

    `batch_size` is of all ranks together. Without `data` the pictures are drawn once and lie on the device; with it
    they are the training split of that set, and the net gets as many outputs as it has classes.
    """
    side = CUT_FROM if model_info(parse_net(net)[0]).input_size[1] == CROP else None
    splits = {} if data is None else {"test": splits_of(data)[-1]}
    recipe = _recipe(net, batch_size, precision, name=data or "drawn", size=side, **splits)
    device = parallel.group.device
    pictures = drawn_pictures(recipe, device) if data is None else open_pictures(recipe, device)
    options = recipe.model_options
    if data is not None and "num_classes" in model_info(recipe.model).options:
        options = {"num_classes": len(pictures.train_set.classes), **options}
    trainer = Trainer(
        recipe.model_copy(update={"model_options": options}), SEED, device, compiled, parallel, pictures=pictures
    )
    trainer.model.train()
    trainer.forward.train()

    def rows(count: int) -> Iterator[slice]:
        return (piece.rows for piece in parallel.pieces(count))

    def step(epoch: int, number: int, indices: Tensor) -> None:
        trainer.place.epoch, trainer.place.step = epoch, number
        trainer.step(indices)

    what = (
        f"{net}, {trainer.parameters:,} parameters, batch {batch_size}, {trainer.precision}, "
        f"{_where(parallel.group, parallel.mode)}, {data or 'drawn pictures'}"
    )
    return _timed(what, step, trainer.train_batches, batch_size, rows, parallel.group, seconds)


def loader_speed(
    name: str,
    group: Group,
    *,
    split: str = "train",
    batch_size: int = 128,
    seconds: float = 10.0,
    size: int | None = None,
    fit: str = "cut",
    workers: int | None = None,
) -> Speed:
    """Batches of a split, cropped, mirrored and standardised on the device, for about `seconds`; no net is run.

    Pictures of at least 256 pixels are cropped to 224; `size` brings them to another size than the set's usual one, by
    `fit`. Where they are decoded on the way, `workers` threads do it, one for each core when not given.
    """
    side = size or (SPECS[name].size if name in SPECS else None)
    data = {"name": name, "train": split, "test": splits_of(name)[-1], "size": side, "fit": fit}
    batches = open_pictures(_recipe("alexnet", batch_size, "auto", **data), group.device, workers).train_batches

    def rows(count: int) -> Iterator[slice]:
        yield slice_of(count, group.world_size, group.rank)

    def read(epoch: int, _: int, indices: Tensor) -> None:
        for part in rows(len(indices)):
            batches.augmented(indices, SEED, epoch, part)

    height, width = batches.height, batches.width
    what = f"{name} {split}, {len(batches):,} pictures, {height}×{width}, batch {batch_size}, {_where(group, 'data')}"
    return _timed(what, read, batches, batch_size, rows, group, seconds)


def drawn_pictures(recipe: Recipe, device: torch.device) -> Pictures:
    """Pictures with every pixel drawn, two batches of them, with the channels, size and classes that the net takes."""
    info = model_info(recipe.model)
    channels, height, _ = info.input_size
    side, count = recipe.data.size or height, DRAWN_BATCHES * recipe.batch_size
    generator = torch.Generator(device).manual_seed(SEED)
    images = torch.randint(256, (count, side, side, channels), dtype=torch.uint8, device=device, generator=generator)
    classes = recipe.model_options.get("num_classes", info.options.get("num_classes", 10))
    labels = torch.arange(count, device=device) % classes
    mean, std = (0.5,) * channels, (0.25,) * channels
    drawn = ImageSet("drawn", "train", images, labels, tuple(map(str, range(classes))), "", "drawn", mean, std)
    batches = Batches(drawn, mean, std, device, Augmentation(**recipe.augmentation.model_dump()))
    return Pictures(drawn, drawn, batches, batches, mean, std)


def _timed(
    what: str,
    work: Callable[[int, int, Tensor], None],
    batches: Batches,
    batch_size: int,
    rows: Callable[[int], Iterator[slice]],
    group: Group,
    seconds: float,
) -> Speed:
    """Call `work(epoch, step, indices)` batch after batch, and once warm until `seconds` are over on some rank."""
    stream = _stream(batches, batch_size, rows)
    for epoch, number, indices in itertools.islice(stream, WARM_UP):
        work(epoch, number, indices)
    _settle(group)
    block = CHECK_EVERY if group.device.type == "cuda" else 1  # asking the time waits for a GPU
    images, over, waited, start = 0, False, batches.waited_s, time.perf_counter()
    while not over:
        for epoch, number, indices in itertools.islice(stream, block):
            work(epoch, number, indices)
            images += len(indices)
        _settle(group)
        elapsed = time.perf_counter() - start
        (over,) = group.any(elapsed >= seconds)
    mean_waited = group.total(torch.tensor(batches.waited_s - waited)).item() / group.world_size
    return Speed(what, images, elapsed, mean_waited)


def _stream(
    batches: Batches, batch_size: int, rows: Callable[[int], Iterator[slice]]
) -> Iterator[tuple[int, int, Tensor]]:
    """Epoch, step and indices, without end: an order drawn for each epoch, in batches that are all full."""
    batch_size = min(batch_size, len(batches))
    for epoch in itertools.count():
        order = permutation(len(batches), SEED, epoch).to(batches.labels.device)
        full = order[: len(order) // batch_size * batch_size].split(batch_size)
        batches.expect(batch[own] for batch in full for own in rows(len(batch)))
        for number, batch in enumerate(full):
            yield epoch, number, batch


def _settle(group: Group) -> None:
    """Wait until the device has done what it was given."""
    if group.device.type == "cuda":
        torch.cuda.synchronize(group.device)


def _where(group: Group, mode: str) -> str:
    one = str(describe(group.device)["name"])
    return one if group.world_size == 1 else f"{group.world_size} ranks ({mode}) on {one}"


def _recipe(net: str, batch_size: int, precision: str, **data: Any) -> Recipe:
    """What trains `net` on `data` as a recipe; pictures of at least 256 pixels are cropped to 224."""
    name, options = parse_net(net)
    channels, side = model_info(name).input_size[0], data["size"] or 0
    content = {
        "name": "bench",
        "title": f"How fast {net} trains",
        "model": name,
        "model_options": options,
        "data": data | ({"channels": 3} if channels == 3 else {}),
        "augmentation": {"crop": CROP if side >= CUT_FROM else None, "flip": True},
        "optimizer": {"learning_rate": RATE, "momentum": 0.9, "weight_decay": 5e-4},
        "epochs": 1,
        "batch_size": batch_size,
        "precision": precision,
    }
    return parse_recipe(content, "bench")
