"""The errors of the package: exit codes and the nearest names."""

import pytest

from repro import errors
from repro.errors import ReproError, UnknownName, nearest


def test_every_error_has_its_own_exit_code() -> None:
    """Catches a new error that inherits "1", which says nothing to a script."""
    codes = {
        kind.__name__: kind.exit_code for kind in ReproError.__subclasses__() if kind.__module__ == errors.__name__
    }
    assert codes == {
        "RecipeError": 2,
        "UnknownName": 2,
        "DataError": 3,
        "CheckpointError": 4,
        "NumericsError": 5,
        "ResourceError": 6,
        "Preempted": 75,
    }


def test_a_message_is_printed_as_it_is() -> None:
    """Catches KeyError's habit of printing its argument in quotes."""
    assert str(UnknownName("no model is called 'x'")) == "no model is called 'x'"
    with pytest.raises(KeyError):
        raise UnknownName("also caught as what it is")


def test_nearest_offers_close_names_or_all() -> None:
    """Catches a guess where nothing is near, an empty end of a sentence, and capitals that hide a name."""
    known = ["cifar10", "mnist", "fashion_mnist"]
    assert nearest("mnits", known) == "did you mean mnist?"
    assert nearest("MNIST", known) == "did you mean mnist or fashion_mnist?"
    assert nearest("zebra", known) == "known: cifar10, fashion_mnist, mnist"
    assert nearest("x", []) == "known: none"
