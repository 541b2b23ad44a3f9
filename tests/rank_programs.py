"""What the ranks of the tests do: a few steps of a net in one of the modes, and what came of them."""

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repro.models.alexnet import Convolution, Parts, build_2012
from repro.training import state
from repro.training.device import channels_last
from repro.training.fusion import fuse
from repro.training.loop import Trainer
from repro.training.optim import make_optimizer, set_rate
from repro.training.parallel import MODES, Group, OneProcess
from repro.training.parallel.hybrid import Hybrid
from repro.training.parallel.shards import STATE
from repro.training.recipe import Optimizer, Recipe

CLASSES = 10
# The plan of 2012 at an eighth of its width or less, uneven where a share may be.
SMALL = (
    Convolution(12, 11, stride=4),
    Convolution(16, 5, padding=2, groups=2),
    Convolution(24, 3, padding=1),
    Convolution(24, 3, padding=1, groups=2),
    Convolution(16, 3, padding=1, groups=2),
)
HIDDEN = 50
SGD = Optimizer(name="sgd2012", learning_rate=0.01, momentum=0.9, weight_decay=5e-4, bias_rate=2.0)


def small_alexnet(dtype: torch.dtype, **options: Any) -> nn.Module:
    """The net of 2012 with few maps and units, and starting weights large enough that every layer learns."""
    defaults: dict[str, Any] = {
        "lrn": "paper",
        "lrn_in_columns": False,
        "relu1_after_pool": False,
        "within_map_norm": False,
        "overlapping": True,
        "middle_init_std": 0.01,
        "dropout": "2012",
        "round_up": True,
        "hidden": HIDDEN,
    }
    dropout_first = options.pop("dropout_first", False)
    torch.manual_seed(1)
    net = build_2012("small", SMALL, CLASSES, Parts(**defaults | options))
    if dropout_first:  # as the one-tower net of 2014 has it
        layers = dict(net.classifier.named_children())
        order = ["dropout6", "fc6", "relu6", "dropout7", "fc7", "relu7", "fc8"]
        net.classifier = nn.Sequential(OrderedDict((name, layers[name]) for name in order))
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return channels_last(net.to(dtype))


def batch(count: int, dtype: torch.dtype, step: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 224, 224) and their labels, drawn for a step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(count, 3, 224, 224, dtype=dtype, generator=generator)
    return images.to(memory_format=torch.channels_last), torch.randint(CLASSES, (count,), generator=generator)


def train_small(
    group: Group,
    mode: str,
    dtype: torch.dtype,
    counts: list[int],
    accumulate: int = 1,
    scheme: str = "a",
    options: dict[str, Any] | None = None,
    fused: bool = True,
) -> dict[str, Any]:
    """One step for each of `counts`, the sizes of the batches; losses, gradients of the first, state at the end.

    All as rank 0 sees them: of the whole net.
    """
    net = small_alexnet(dtype, **options or {})
    kind = MODES[mode]
    parallel: OneProcess = Hybrid(group, accumulate, scheme) if kind is Hybrid else kind(group, accumulate)
    parts = state.Parts(net, parallel)
    model = parallel.split(net)
    parallel.prepare(fuse(model) if fused else model).train()
    optimizer = make_optimizer(model, SGD)
    loss, measured, gradients = nn.functional.cross_entropy, [], {}
    for step, count in enumerate(counts):
        images, labels = batch(count, dtype, step)
        optimizer.zero_grad(set_to_none=True)
        answers = []
        for piece in parallel.pieces(count):
            torch.manual_seed(step)
            answers.append(parallel.work(images[piece.rows], labels, piece, loss, nullcontext))
        own = sum(float(a.loss) * len(a.labels) for a in answers)
        wrong = sum(int((a.logits.argmax(1) != a.labels).sum()) for a in answers)
        seen = sum(len(a.labels) for a in answers)
        measured.append(group.total(torch.tensor([own, wrong, seen], dtype=torch.float64)).tolist())
        if not step:
            own_gradients = {name: p.grad for name, p in model.named_parameters()}
            gradients = {name: parallel.whole(name, own_gradients.get(name)) for name in parts.parameters}
        set_rate(optimizer, SGD.learning_rate)
        optimizer.step()
    sent = dict(parallel.wire.sent)
    return {
        "measured": measured,
        "gradients": gradients if group.is_first else None,
        "state": parts.collect(model, optimizer) if group.is_first else parts.collect(model, optimizer) and None,
        "sent_in_steps": {key: size for key, size in sent.items() if key[0] != STATE},
    }


def train_recipe(group: Group, recipe: Recipe, mode: str) -> dict[str, Any]:
    """A whole run of a recipe: its epochs, and how many pictures this rank was given in training."""
    trainer, seen = Trainer(recipe, 0, group.device, parallel=MODES[mode](group)), 0
    plain = trainer.train_batches.augmented

    def counted(indices: Tensor, seed: int, epoch: int, part: slice) -> tuple[Tensor, Tensor]:
        nonlocal seen
        seen += len(indices[part])
        return plain(indices, seed, epoch, part)

    trainer.train_batches.augmented = counted  # type: ignore[method-assign,assignment]
    return {"history": [trainer.train_epoch(lambda: None) for _ in range(recipe.epochs)], "seen": seen}


class Moved(TorchDispatchMode):
    """Adds up what a rank sends in the collectives that PyTorch calls, as if the ranks stood in a ring."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.bytes = ranks, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def size(x: Any) -> int:
            return sum(map(size, x)) if isinstance(x, list | tuple) else x.nbytes

        others = self.ranks - 1
        match str(func).split(".")[1]:
            case "send":
                self.bytes += size(args[0])
            case "_allgather_base_":  # (output, input)
                self.bytes += others * size(args[1])
            case "_reduce_scatter_base_":
                self.bytes += others * size(args[0])
            case "all_gather_into_tensor":  # (input, …)
                self.bytes += others * size(args[0])
            case "reduce_scatter_tensor":
                self.bytes += others * size(args[0]) / self.ranks
            case "all_reduce" | "allreduce_":
                self.bytes += 2 * others * size(args[0]) / self.ranks
        return func(*args, **(kwargs or {}))


def bytes_moved(group: Group, mode: str, dtype: torch.dtype, count: int) -> float:
    """What this rank sends in the second step of a small net; the first one arranges its buckets."""
    net, parallel = small_alexnet(dtype), MODES[mode](group)
    model = parallel.split(net)
    parallel.prepare(model).train()
    images, labels = batch(count, dtype, 0)
    for _ in range(2):
        with Moved(group.world_size) as moved:
            for piece in parallel.pieces(count):
                loss = nn.functional.cross_entropy
                parallel.work(images[piece.rows], labels, piece, loss, nullcontext)
    return moved.bytes
