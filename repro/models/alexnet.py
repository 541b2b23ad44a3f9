"""AlexNet and what follows its plan.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012.
"""

import torch
from torch import Tensor, nn

from repro.models.layers import check_input
from repro.models.registry import register

# The five convolutions of the small version: output channels, and whether a 2×2 max-pooling follows.
CIFAR10_CONVOLUTIONS = ((64, True), (192, True), (384, False), (256, False), (256, True))
CIFAR10_INPUT = (3, 32, 32)


class AlexNetCIFAR10(nn.Module):
    """AlexNet's plan at CIFAR-10's size: `(N, 3, 32, 32)` to logits `(N, num_classes)`.

    Five 3×3 convolutions of stride 1 that keep the size, three 2×2 poolings that halve it (32, 16, 8, 4), and
    three fully connected layers, the first two followed by dropout. 23,238,474 parameters with ten classes.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size, _ = CIFAR10_INPUT
        for out_channels, pooled in CIFAR10_CONVOLUTIONS:
            layers += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            if pooled:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * size * size, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(1024, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, CIFAR10_INPUT, "alexnet_cifar10")
        x = self.features(x)  # (N, 256, 4, 4)
        return self.classifier(torch.flatten(x, 1))


@register(
    "alexnet_cifar10",
    input_size=CIFAR10_INPUT,
    source="after Krizhevsky et al. 2012, for CIFAR-10",
)
def alexnet_cifar10(num_classes: int = 10, dropout: float = 0.5) -> AlexNetCIFAR10:
    """AlexNet's plan for 32×32 colour images; see `AlexNetCIFAR10`."""
    return AlexNetCIFAR10(num_classes, dropout)
