"""The checks behind the claims of Krizhevsky's paper of 2014, against sums worked by hand."""

import pytest

from repro.claims.checks import krizhevsky2014

# Today's LeNet: 6 and 16 maps of 5×5 kernels on 24×24 and 8×8 places, then 120, 84 and 10 units.
CONVOLUTIONS = 6 * 25 * 24**2 + 16 * 6 * 25 * 8**2
LINEAR = 16 * 4 * 4 * 120 + 120 * 84 + 84 * 10
BIASES = 6 + 16, 120 + 84 + 10


def test_work_by_hand() -> None:
    """Catches a fraction in place of per cent, parameters in place of work, and nets mixed up."""
    whole, head = krizhevsky2014.work_in("", ["lenet5_modern"]), krizhevsky2014.work_in("features", ["lenet5_modern"])
    assert whole == [100]
    assert head == pytest.approx([100 * CONVOLUTIONS / (CONVOLUTIONS + LINEAR)])


def test_parameters_by_hand() -> None:
    """Catches biases left out, and work in place of parameters."""
    convolutions = 6 * 25 + 16 * 6 * 25 + BIASES[0]
    by_hand = 100 * convolutions / (convolutions + LINEAR + BIASES[1])
    assert krizhevsky2014.parameters_in("features", ["lenet5_modern"]) == pytest.approx([by_hand])
