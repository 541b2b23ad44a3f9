"""The checks of transfer, on studies made by hand: two draws of two pictures and 1,000 test pictures."""

from pathlib import Path

import pytest

from repro.claims.checks import transferred as checks
from repro.transfer import PIXELS, RANDOM, TRAINED, Study
from repro.transfer.study import Point, write

CLOSE = 0.001  # between two draws: with 1,000 test pictures an interval is then about ± 3 points


def record(
    folder: Path, net: str, trained: list[float], blank: list[float], pixels: float, few: list[float] | None = None
) -> None:
    """A study with these accuracies, layer by layer, at two pictures per class; `few` at one, of the trained net."""
    layers = [f"layer{i}" for i in range(len(trained))]
    means = [(TRAINED, layer, 2, a) for layer, a in zip(layers, trained, strict=True)]
    means += [(TRAINED, layer, 1, a) for layer, a in zip(layers, few or [0.1] * len(trained), strict=True)]
    means += [(RANDOM, layer, n, a) for layer, a in zip(layers, blank, strict=True) for n in (1, 2)]
    means += [(PIXELS, "", n, pixels) for n in (1, 2)]
    points = [
        Point(features=kind, layer=layer, n=n, draw=draw, accuracy=accuracy + draw * CLOSE, strength=1.0)
        for kind, layer, n, accuracy in means
        for draw in range(2)
    ]
    points.append(Point(features=PIXELS, layer="", n=None, draw=0, accuracy=0.6, strength=1.0))
    study = Study(
        net=net, source="", weights_digest="", random_seed=0, random_digest="", target="new", classes=["a", "b"],
        train_digest="", test_digest="", train_pictures=4, test_pictures=1000, layers=layers, widths={},
        numbers=[1, 2], draws=2, seed=0, drawn="", points=points, seconds=0, started="", git={}, versions={}, device={},
    )  # fmt: skip
    write(study, folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRO_RECORDS", str(tmp_path))
    return tmp_path


def test_nets_ahead_by_hand(folder: Path) -> None:
    """Catches a best layer for the last one, overlapping intervals counted, and the last layer of random weights."""
    record(folder, "middle", trained=[0.5, 0.8, 0.52], blank=[0.7, 0.2, 0.2], pixels=0.5)
    record(folder, "end", trained=[0.5, 0.7, 0.9], blank=[0.5, 0.6, 0.5], pixels=0.5)
    studies = [("middle", "new"), ("end", "new")]
    assert checks.nets_ahead(studies, "pixels") == [1, 2]
    assert checks.nets_ahead(studies, "random") == [1, 2]
    record(folder, "blank", trained=[0.5, 0.7, 0.6], blank=[0.7, 0.6, 0.5], pixels=0.5)
    assert checks.nets_ahead([("blank", "new")], "pixels") == [1, 1]
    assert checks.nets_ahead([("blank", "new")], "random") == [0, 0]


def test_pictures_for_all_pixels_by_hand(folder: Path) -> None:
    """All pictures' pixels are right on 0.6. Catches the best layer for the last, and a net that never comes there."""
    record(folder, "late", trained=[0.9, 0.7], blank=[0.9, 0.9], pixels=0.5, few=[0.8, 0.5])
    record(folder, "early", trained=[0.5, 0.7], blank=[0.2, 0.2], pixels=0.5, few=[0.1, 0.65])
    record(folder, "never", trained=[0.9, 0.5], blank=[0.2, 0.2], pixels=0.5, few=[0.8, 0.4])
    assert checks.pictures_for_all_pixels([(net, "new") for net in ("late", "early", "never")]) == [2, 1, 0]


def test_nets_better_with_each_layer_by_hand(folder: Path) -> None:
    """Catches the first layer against the last alone, equal layers, and the random net for the trained one."""
    record(folder, "rising", trained=[0.5, 0.6, 0.7], blank=[0.7, 0.6, 0.5], pixels=0.5)
    record(folder, "dip", trained=[0.5, 0.8, 0.7], blank=[0.5, 0.6, 0.7], pixels=0.5)
    record(folder, "level", trained=[0.5, 0.7, 0.7], blank=[0.5, 0.6, 0.7], pixels=0.5)
    assert checks.nets_better_with_each_layer([(net, "new") for net in ("rising", "dip", "level")]) == 1


def test_without_the_record_nothing_is_said(folder: Path) -> None:
    """Catches a verdict from the studies that happen to be there."""
    record(folder, "there", trained=[0.5, 0.6], blank=[0.5, 0.6], pixels=0.5)
    studies = [("there", "new"), ("missing", "new")]
    assert checks.nets_ahead(studies, "pixels") is None
    assert checks.pictures_for_all_pixels(studies) is None
    assert checks.nets_better_with_each_layer(studies) is None
