"""What an explorer hands to a page. How it behaves there is tested in tests/browser/."""

import base64
import html
import json
import re
from dataclasses import replace

import pytest
import torch

from repro import data
from repro.data.color import ColorPCA
from repro.data.images import ImageSet
from repro.errors import DataError, UnknownName
from repro.visualization import augmentation_explorer, convolution_explorer, explorer
from repro.visualization.explorer import CONVOLUTION_CONTROLS


def values_in(page: str) -> dict:
    return json.loads(html.unescape(re.search(r'data-values="([^"]*)"', page).group(1)))


def test_same_values_give_the_same_text():
    """Catches random ids and timestamps, which would make every execution of a chapter a change."""
    assert convolution_explorer(stride=2)._repr_html_() == convolution_explorer(stride=2)._repr_html_()
    assert convolution_explorer(stride=2)._repr_html_() != convolution_explorer(stride=3)._repr_html_()


def test_values_arrive_and_missing_ones_take_their_start():
    """Catches a control that is dropped on the way, and an initial value that replaces all others."""
    values = values_in(convolution_explorer(stride=3, dilation=2)._repr_html_())
    expected = {name: start for name, (start, _, _) in CONVOLUTION_CONTROLS.items()}
    expected |= {"stride": 3, "dilation": 2}
    assert {name: values[name] for name in CONVOLUTION_CONTROLS} == expected


def test_the_script_is_closed_within_itself(monkeypatch):
    """Catches an import that the page could not resolve, an export, and text that ends the script early."""
    page = convolution_explorer()._repr_html_()
    script = re.search(r'<script type="module">(.*?)</script>', page, flags=re.DOTALL).group(1)
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)
    assert "const explorer = {" in script
    assert "function worked(" in script

    planted = {".js": 'export default { a: "</script>" };\n', "css": ""}
    monkeypatch.setattr(explorer, "_text", lambda file: planted[file[-3:]])
    assert convolution_explorer()._repr_html_().count("</script>") == 1


def test_nothing_is_asked_of_the_network():
    """Catches a font, a script or a style from elsewhere; a namespace is a name and is never fetched."""
    page = convolution_explorer()._repr_html_()
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|url\(|\bfetch\(|src=", page)


def test_an_unknown_control_gets_the_nearest_name():
    """Catches a misspelt control that is silently ignored."""
    with pytest.raises(UnknownName, match="did you mean stride"):
        convolution_explorer(strid=2)


@pytest.mark.parametrize("value", [0, 99, 1.5, "2"])
def test_a_start_outside_the_range_is_refused(value):
    """Catches a value that the slider would move without a word."""
    with pytest.raises(ValueError, match="stride starts at"):
        convolution_explorer(stride=value)


def few_shapes(n: int = 2, size: int = 8) -> ImageSet:
    return data.load("shapes", "test", size=size).subset(torch.arange(n))


def a_pca() -> ColorPCA:
    """λ = 0.04, 0.01, 0 along red, green and blue."""
    return ColorPCA(torch.tensor([0.04, 0.01, 0.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64))


def test_pictures_and_views_arrive():
    """Catches pixels in another order, and a list of views that is not the one the nets are tested with."""
    shapes = few_shapes()
    values = values_in(augmentation_explorer(shapes, crop=6, pca=a_pca())._repr_html_())
    assert (values["side"], values["crop"], values["sigma"]) == (8, 6, 0.1)
    assert values["views"][:5] == [[0, 0, 0], [0, 2, 0], [2, 0, 0], [2, 2, 0], [1, 1, 0]]
    assert [picture["name"] for picture in values["pictures"]] == ["circle", "square"]
    pixels = base64.b64decode(values["pictures"][1]["pixels"])
    assert list(pixels) == shapes.images[1].flatten().tolist()


def test_both_readings_of_the_noise_arrive_in_grey_levels():
    """Catches the two readings exchanged, and noise in units of 0…1, which nobody would see."""
    values = values_in(augmentation_explorer(few_shapes(), crop=6, pca=a_pca())._repr_html_())
    assert [values["root"][i][i] for i in range(3)] == pytest.approx([51, 25.5, 0])
    assert [values["printed"][i][i] for i in range(3)] == pytest.approx([10.2, 2.55, 0])


@pytest.mark.parametrize("wrong", ["large", "none", "grey", "oblong"])
def test_pictures_that_a_page_cannot_carry_are_refused(wrong):
    """Catches a page of megabytes, one without a picture, and pictures that would be drawn as noise."""
    shapes = few_shapes()
    images = {
        "large": torch.zeros(9, 64, 64, 3, dtype=torch.uint8),
        "none": shapes.images[:0],
        "grey": shapes.images[..., :1],
        "oblong": shapes.images[:, :6],
    }[wrong]
    with pytest.raises(DataError, match="square RGB pictures"):
        augmentation_explorer(replace(shapes, images=images), crop=6, pca=a_pca())


def test_a_window_larger_than_the_pictures_is_refused():
    """Catches a window that would read beyond the pixels."""
    with pytest.raises(DataError, match="crop of 9"):
        augmentation_explorer(few_shapes(), crop=9, pca=a_pca())


def test_the_augmentation_explorer_keeps_to_itself():
    """Catches a script that imports, exports or asks the network, and a page that differs from run to run."""
    page = augmentation_explorer(few_shapes(), crop=6, pca=a_pca())._repr_html_()
    script = re.search(r'<script type="module">(.*?)</script>', page, flags=re.DOTALL).group(1)
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|src=", page)
    assert page == augmentation_explorer(few_shapes(), crop=6, pca=a_pca())._repr_html_()
