"""Local response normalisation: as the AlexNet paper prints it, as its code computes it, and as libraries count it.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section
3.3, and the source of its net #145 (Computer History Museum, 2025).  Chapter 5 teaches it.

    b_i = a_i / (k + α Σ_j a_j²)^β        j: the maps around map i, at the same place

The paper's n counts a window of n // 2 maps on either side, so that an even n adds n + 1 squares; the code and PyTorch
add n, and divide α by n; TensorFlow counts maps on one side. `LRNConstants` turns one into another.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from repro.errors import ReproError, nearest
from repro.models.response import Reach, Response
from repro.receptive_field import BOTH_SAME, Slide, Windows, register_window

Convention = Literal["paper", "code"]


class NormalizationError(ReproError, ValueError):
    """Constants of a normalisation that make no sense, or that a convention cannot express."""

    exit_code = 2


@dataclass(frozen=True)
class LRNConstants:
    """One normalisation, whatever convention its constants came in: `from_…` reads one, `as_…` writes one.

    `before` and `after` count the maps of the window beside its own, `alpha` multiplies the plain sum of squares.
    The `as_…` methods raise `NormalizationError` where a convention has no such window.
    """

    before: int
    after: int
    k: float
    alpha: float
    beta: float

    @classmethod
    def from_paper(cls, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> "LRNConstants":
        """The paper's letters: α on the plain sum, n // 2 maps on either side."""
        return cls(*reach(n, "paper"), k, alpha, beta)

    @classmethod
    def from_code(cls, size: int = 5, scale: float = 1e-4, pow: float = 0.75, min_div: float = 2.0) -> "LRNConstants":
        """The names of 2012's layer files: `scale` is divided by `size`, and `size` maps are added."""
        return cls(*reach(size, "code"), min_div, scale / size, pow)

    @classmethod
    def from_pytorch(cls, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> "LRNConstants":
        """`torch.nn.LocalResponseNorm`, with its defaults: the code's convention under other names."""
        return cls.from_code(size, alpha, beta, k)

    @classmethod
    def from_tensorflow(
        cls, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5
    ) -> "LRNConstants":
        """`tf.nn.local_response_normalization`, with its defaults: n = 2 · depth_radius + 1, α on the plain sum."""
        return cls(depth_radius, depth_radius, bias, alpha, beta)

    def as_paper(self) -> dict[str, float]:
        return {"n": 2 * self._radius() + 1, "k": self.k, "alpha": self.alpha, "beta": self.beta}

    def as_code(self) -> dict[str, float]:
        size = self.before + self.after + 1
        if reach(size, "code") != (self.before, self.after):
            raise NormalizationError(f"the code's windows have no {self.before} maps before and {self.after} after")
        return {"size": size, "scale": self.alpha * size, "pow": self.beta, "min_div": self.k}

    def as_pytorch(self) -> dict[str, float]:
        names = {"size": "size", "scale": "alpha", "pow": "beta", "min_div": "k"}
        return {names[name]: value for name, value in self.as_code().items()}

    def as_tensorflow(self) -> dict[str, float]:
        return {"depth_radius": self._radius(), "bias": self.k, "alpha": self.alpha, "beta": self.beta}

    def _radius(self) -> int:
        if self.before != self.after:
            raise NormalizationError(
                f"a window of {self.before} maps before and {self.after} after has no radius; "
                "only the code's convention and PyTorch's have even sizes"
            )
        return self.before


def reach(size: int, convention: Convention) -> Reach:
    """The window of a `size` in a convention; raises NormalizationError where there is no such thing."""
    if convention not in get_args(Convention):
        raise NormalizationError(f"no convention '{convention}'; {nearest(convention, get_args(Convention))}")
    if size < 1:
        raise NormalizationError(f"a window has at least one map, found size {size}")
    return size // 2, size // 2 if convention == "paper" else size - 1 - size // 2


class LocalResponseNorm(nn.Module):
    """Divides each unit by a power of the activity in the maps around it: `(N, C, …)` to the same shape.

    `convention` is how `size` and `alpha` are meant: `paper` as printed, `code` as 2012's code and
    `torch.nn.LocalResponseNorm` have it (α / size, and `size` maps even if that is even). `groups` splits the maps
    into as many equal parts whose border no window crosses; the code of 2012 has two, one on each GPU. In bfloat16 the
    arithmetic is done in float32 and only the result is rounded. Two tensors as large as the input are kept for the
    backward pass, one of them the input. There is no second derivative.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        *,
        convention: Convention = "paper",
        groups: int = 1,
    ) -> None:
        super().__init__()
        reach(size, convention)  # its checks
        if groups < 1:
            raise NormalizationError(f"the maps form at least one group, found {groups}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.convention, self.groups = convention, groups

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.convention, self.groups)

    def extra_repr(self) -> str:
        constants = f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
        return f"{constants}, convention={self.convention}, groups={self.groups}"


class ResponseNormWithinMap(nn.Module):
    """The same over a `size`×`size` window of the unit's own map, with α / size²: `(N, C, H, W)` to the same shape.

    2012's net has one after its second normalisation (size 5, α 1e-3), the nets for CIFAR-10 before it have it alone.
    """

    def __init__(self, size: int, alpha: float, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        reach(size, "code")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise NormalizationError(f"windows within a map need a batch (N, C, H, W), found {tuple(x.shape)}")
        window = reach(self.size, "code")
        return Response((window, window), self.alpha / self.size**2, self.beta, self.k).normalize(x)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"


@register_window(LocalResponseNorm)
def _(layer: nn.Module, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    return BOTH_SAME


@register_window(ResponseNormWithinMap)
def _(layer: Any, input_size: tuple[int, int], output_size: tuple[int, int]) -> Windows:
    before, _ = reach(layer.size, "code")
    window = Slide(layer.size, padding=before)
    return window, window


def local_response_norm(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    convention: Convention = "paper",
    groups: int = 1,
) -> Tensor:
    """`LocalResponseNorm` as a function; raises NormalizationError unless C is a multiple of `groups`."""
    window = reach(size, convention)
    if x.ndim < 2 or x.shape[1] % groups:
        raise NormalizationError(f"{groups} groups need a batch (N, C, …) with C a multiple; found {tuple(x.shape)}")
    scale = alpha if convention == "paper" else alpha / size
    return Response((window,), scale, beta, k, groups).normalize(x)
