"""How far a convolution reaches: the arithmetic of sizes, one axis at a time.

A convolution or pooling layer treats the two axes of an image alike and independently, so every function
here speaks of one axis and counts in pixels. The names are those of `torch.nn.Conv2d`, whose documentation
states the same relation ("Shape"); Dumoulin and Visin, *A guide to convolution arithmetic for deep
learning* (2016), derive it case by case (relationships 1 to 6, and 15 for dilation). Chapter 1 teaches it.
"""


def effective_kernel_size(kernel_size: int, dilation: int = 1) -> int:
    """Pixels from the first to the last position that a kernel reads, the skipped ones included."""
    return dilation * (kernel_size - 1) + 1


def output_size(input_size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Number of places where the kernel fits: floor((n + 2p - d(k - 1) - 1) / s) + 1.

    `padding` is what is added at each of the two ends. Raises ValueError where no such layer exists: a
    size, stride or dilation below 1, a negative padding, or a kernel wider than the padded input (plain
    arithmetic would answer 0 or less there, and a net built on that answer fails far from its cause).
    """
    if min(input_size, kernel_size, stride, dilation) < 1 or padding < 0:
        raise ValueError(
            "input_size, kernel_size, stride and dilation must be at least 1 and padding at least 0, got "
            f"{input_size}, {kernel_size}, {stride}, {dilation} and {padding}"
        )
    slack = input_size + 2 * padding - effective_kernel_size(kernel_size, dilation)
    if slack < 0:
        raise ValueError(
            f"a kernel that spans {effective_kernel_size(kernel_size, dilation)} pixels does not fit into "
            f"{input_size + 2 * padding} (input {input_size}, padding {padding} at each end)"
        )
    return slack // stride + 1
