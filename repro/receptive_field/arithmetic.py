"""How far a convolution reaches: the arithmetic of sizes, one axis at a time.

A convolution or pooling layer treats the two axes of an image alike and independently, so every function
here speaks of one axis and counts in pixels. The names are those of `torch.nn.Conv2d`, whose documentation
states the same relation ("Shape"); Dumoulin and Visin, *A guide to convolution arithmetic for deep
learning* (2016), derive it case by case (relationships 1 to 6, and 15 for dilation). Chapter 1 teaches it.

`ReceptiveField` carries the arithmetic through a chain of layers, from the image upwards: Araujo, Norris and Sim,
*Computing receptive fields of convolutional neural networks* (2019), derive the same figures from the top down.
"""

from dataclasses import dataclass


def effective_kernel_size(kernel_size: int, dilation: int = 1) -> int:
    """Pixels from the first to the last position that a kernel reads, the skipped ones included."""
    return dilation * (kernel_size - 1) + 1


def output_size(input_size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Number of places where the kernel fits: floor((n + 2p - d(k - 1) - 1) / s) + 1.

    `padding` is what is added at each of the two ends. Raises ValueError where no such layer exists: a
    size, stride or dilation below 1, a negative padding, or a kernel wider than the padded input (plain
    arithmetic would answer 0 or less there, and a net built on that answer fails far from its cause).
    """
    _check(padding, input_size=input_size, kernel_size=kernel_size, stride=stride, dilation=dilation)
    slack = input_size + 2 * padding - effective_kernel_size(kernel_size, dilation)
    if slack < 0:
        raise ValueError(
            f"a kernel that spans {effective_kernel_size(kernel_size, dilation)} pixels does not fit into "
            f"{input_size + 2 * padding} (input {input_size}, padding {padding} at each end)"
        )
    return slack // stride + 1


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels of the image that the units of one layer read, along one axis; the default is the image itself.

    Unit i reads `size` pixels from pixel `start + i * stride` on. Pixels below 0 or past the end are padding.
    """

    size: int = 1
    stride: int = 1  # pixels from one unit's field to the next one's
    start: int = 0

    def through(self, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "ReceptiveField":
        """The field one layer further up. Raises ValueError for a setting below 1, or padding below 0."""
        _check(padding, kernel_size=kernel_size, stride=stride, dilation=dilation)
        return ReceptiveField(
            size=self.size + (effective_kernel_size(kernel_size, dilation) - 1) * self.stride,
            stride=self.stride * stride,
            start=self.start - padding * self.stride,
        )


def _check(padding: int, **at_least_1: int) -> None:
    if min(at_least_1.values()) < 1 or padding < 0:
        *names, last = at_least_1
        values = ", ".join(map(str, at_least_1.values()))
        raise ValueError(
            f"{', '.join(names)} and {last} must be at least 1 and padding at least 0, got {values} and {padding}"
        )
