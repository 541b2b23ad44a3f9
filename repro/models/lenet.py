"""LeNet-5: the net as published in 1998, and the net that goes by its name today.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86
(1998), section II; the modern net follows Fleuret's deep-learning course, lecture 8.2 (2020).  Chapter 2 builds
both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.layers import (
    RBFOutput,
    ScaledTanh,
    SparseConv2d,
    TrainableSubsampling,
    check_input,
    init_by_fan_in,
)
from repro.models.registry import register

LENET5_INPUT = (1, 32, 32)
MODERN_INPUT = (1, 28, 28)

# Table I of the paper: the maps of S2 that each map of C3 reads.
C3_TABLE = (
    *[tuple((first + i) % 6 for i in range(3)) for first in range(6)],  # three neighbours, in a ring
    *[tuple((first + i) % 6 for i in range(4)) for first in range(6)],  # four neighbours, in a ring
    *[(first, first + 1, (first + 3) % 6, (first + 4) % 6) for first in range(3)],  # two pairs with a gap
    tuple(range(6)),  # all of them
)

# What a digit should look like to layer F6: 12 rows of 7, as in the paper's figure 3, which shows the codes
# but prints no values. These are drawn anew; ink is +1 and paper −1.
DIGIT_BITMAPS = """
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
..###..  ...#...  .#####.  .#####.  ....##.  #######  ..####.  #######  .#####.  .#####.
.#...#.  ..##...  #.....#  #.....#  ...#.#.  #......  .#.....  ......#  #.....#  #.....#
#.....#  .#.#...  ......#  ......#  ..#..#.  #......  #......  .....#.  #.....#  #.....#
#.....#  ...#...  ......#  ......#  .#...#.  #......  #......  .....#.  #.....#  #.....#
#.....#  ...#...  .....#.  ..####.  #....#.  ######.  #.####.  ....#..  .#####.  .######
#.....#  ...#...  ....#..  ......#  #....#.  ......#  ##....#  ....#..  #.....#  ......#
#.....#  ...#...  ...#...  ......#  #######  ......#  #.....#  ...#...  #.....#  ......#
#.....#  ...#...  ..#....  ......#  .....#.  ......#  #.....#  ...#...  #.....#  ......#
.#...#.  ...#...  .#.....  #.....#  .....#.  #.....#  #.....#  ..#....  #.....#  .....#.
..###..  .#####.  #######  .#####.  .....#.  .#####.  .#####.  ..#....  .#####.  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""


def digit_codes() -> Tensor:
    """The targets of F6: float32 `(10, 84)` of ±1, each row a 7×12 bitmap read line by line."""
    lines = [line.split() for line in DIGIT_BITMAPS.split("\n") if line]
    drawings = ["".join(rows) for rows in zip(*lines, strict=True)]  # one string of 84 characters per digit
    return torch.tensor([[1.0 if mark == "#" else -1.0 for mark in drawing] for drawing in drawings])


class LeNet5(nn.Module):
    """LeNet-5 of 1998: digits `(N, 1, 32, 32)` to logits `(N, 10)`, the negative distances to the ten codes.

    Every layer up to F6 is squashed. 60,000 parameters, 340,908 connections as the paper counts them.
    Its input is meant to have background −0.1 and ink 1.175 (section II-B).
    """

    input_size = LENET5_INPUT

    def __init__(self) -> None:
        super().__init__()
        codes = digit_codes()
        self.c1 = nn.Conv2d(1, 6, kernel_size=5)
        self.s2 = TrainableSubsampling(6)
        self.c3 = SparseConv2d(6, C3_TABLE, kernel_size=5)
        self.s4 = TrainableSubsampling(16)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, codes.shape[1])
        self.output = RBFOutput(codes)
        self.squash = ScaledTanh()
        for layer in (self.c1, self.c5, self.f6):
            fan_in = layer.weight[0].numel()
            for parameter in layer.parameters():
                init_by_fan_in(parameter, fan_in)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, LENET5_INPUT, "lenet5")
        x = self.squash(self.c1(x))  # (N, 6, 28, 28)
        x = self.squash(self.s2(x))  # (N, 6, 14, 14)
        x = self.squash(self.c3(x))  # (N, 16, 10, 10)
        x = self.squash(self.s4(x))  # (N, 16, 5, 5)
        x = self.squash(self.c5(x))  # (N, 120, 1, 1)
        x = self.squash(self.f6(torch.flatten(x, 1)))  # (N, 84): an image of 12 rows of 7
        return self.output(x)


class LeNet5Modern(nn.Module):
    """What most lectures now call LeNet-5: `(N, 1, 28, 28)` to logits `(N, num_classes)`.

    ReLU for the scaled tanh, max-pooling for trainable subsampling, full connections, a linear output, no
    border. 44,426 parameters with ten classes.
    """

    input_size = MODERN_INPUT

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5),  # (N, 6, 24, 24)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),  # (N, 6, 12, 12)
            nn.Conv2d(6, 16, kernel_size=5),  # (N, 16, 8, 8)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),  # (N, 16, 4, 4)
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 4 * 4, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, MODERN_INPUT, "lenet5_modern")
        return self.classifier(torch.flatten(self.features(x), 1))


def mse_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Equation 8: the mean penalty of the right class, that is F6's squared distance to its code.

    `logits` are `−y`, `(N, 10)`; `target` is int64 `(N,)`. It says nothing about the other classes.
    """
    return -logits.gather(1, target[:, None]).mean()


def map_loss(logits: Tensor, target: Tensor, j: float = 0.1) -> Tensor:
    """Equation 9: the mean of `y_target + log(e^−j + Σ_i e^−y_i)`, for logits `−y` of shape `(N, 10)`.

    That is the cross entropy with an eleventh class, "rubbish", whose penalty is the constant `j`. The paper
    asks for a positive `j` and gives no value.
    """
    rubbish = logits.new_full((len(logits), 1), -j)
    return F.cross_entropy(torch.cat([logits, rubbish], dim=1), target)


@register("lenet5", input_size=LENET5_INPUT, source="LeCun et al. 1998, section II")
def lenet5() -> LeNet5:
    """LeNet-5 exactly as published; it has no options."""
    return LeNet5()


@register("lenet5_modern", input_size=MODERN_INPUT, source="Fleuret 2020, lecture 8.2")
def lenet5_modern(num_classes: int = 10) -> LeNet5Modern:
    """The net of today's lectures."""
    return LeNet5Modern(num_classes)
