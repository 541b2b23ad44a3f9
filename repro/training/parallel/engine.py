"""What PyTorch offers ready-made: FSDP2, which shards the whole net, and tensor parallelism of fully connected layers.

Both keep parameters as DTensors, of which each rank holds a part, and exchange what a step needs. What is left here is
to say which layers, along which dimension, and how a batch that does not divide is weighted. Chapter 10 compares them
with the same done by hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from repro.training.parallel.data import DataParallel
from repro.training.parallel.group import Group, ParallelError
from repro.training.parallel.hybrid import HEAD, Hybrid


class FullySharded(DataParallel):
    """A share of the pictures on every rank, and a share of each parameter, its gradient and its momentum.

    Before a layer is computed its parameters are gathered from all ranks, and freed after it; backward its gradients
    are averaged and each rank keeps its share of them. Each fully connected layer is a unit of its own, all else
    another: AlexNet and VGG have nine tenths of their weights in the former.
    """

    mode = "fsdp"

    def split(self, model: nn.Module) -> nn.Module:
        self.model = model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no channels-last weights
        return self.model

    def averaged(self, called: nn.Module) -> nn.Module:
        mesh = _mesh(self.group)
        # The root, too: while its parameters are gathered, those that the optimizer knows are not in the net.
        for unit in (*(m for m in called.modules() if isinstance(m, nn.Linear)), called):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        self.shards.as_distributed(self.model)
        return called

    @contextmanager
    def exchange(self, last: bool) -> Iterator[None]:
        assert isinstance(self.called, FSDPModule)
        self.called.set_requires_gradient_sync(last)
        yield

    def net(self, images: Tensor) -> Tensor:
        # Parameters that are gathered in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            logits: Tensor = self.called(images)
        return logits


class TensorParallel(Hybrid):
    """A share of the pictures in the convolutions, and the units of the fully connected layers split by DTensor.

    The first of them splits by outputs (columns of the product), the others by inputs (rows): what a layer gives is
    what the next one takes, and each sum over the ranks leaves every rank its own units; all have the logits.
    """

    mode = "tensor"

    def split(self, model: nn.Module) -> nn.Module:
        linear, ranks = self.head_layers(model), self.group.world_size
        for name, layer in linear[:-1]:
            if layer.out_features % ranks:
                raise ParallelError(
                    f"--parallel {self.mode}: {HEAD}.{name} has {layer.out_features} units, which {ranks} ranks cannot "
                    "share equally; --parallel hybrid shares them as equally as possible"
                )
        head = model.get_submodule(HEAD)
        for module in head.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # autograd forbids it on a rank's part of a DTensor
        parallelize_module(head, _mesh(self.group), _plan([name for name, _ in linear]))
        self.shards.as_distributed(model)
        return model

    def gathered(self, features: Tensor, sizes: list[int]) -> Tensor:
        # The first layer has summed the gradient over the ranks already.
        return self.wire.gather_same(features, 0, sizes, "features")


def _plan(layers: list[str]) -> dict[str, ParallelStyle]:
    """How each of the fully connected layers, in their order, is split."""
    first, *others = layers
    plan: dict[str, ParallelStyle] = {first: ColwiseParallel(output_layouts=None if others else Replicate())}
    for name in others:
        plan[name] = RowwiseParallel(output_layouts=Replicate() if name == others[-1] else Shard(-1))
    return plan


def _mesh(group: Group) -> DeviceMesh:
    return init_device_mesh(group.device.type, (group.world_size,))
