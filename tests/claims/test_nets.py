"""Checks that count nets, against figures worked by hand or printed elsewhere."""

from repro.claims.checks import find


def test_counts() -> None:
    """By hand: conv 1 of the lectures' LeNet has 6·(25 + 1) parameters and applies 150 weights at 24·24 places. Catches
    biases that are left out, and a part taken for the whole."""
    assert find("parameters")("lenet5_modern", "features.0") == 156
    assert find("parameters")("alexnet") == 61_100_840
    assert find("multiply_adds")("lenet5_modern", "features.0") == 150 * 24 * 24
    assert find("output_shape")("lenet5_modern", "features.0") == [6, 24, 24]
    assert find("units")("lenet5_modern", "features.0") == 6 * 24 * 24
    assert find("field_size")("lenet5_modern", "features.5") == 16
    assert find("count_layers")("vgg16", "Conv2d") == 13
    assert find("parameters")("vgg16", num_classes=10) == 134_301_514
