"""`repro receptive-field`: models by name, what is printed, the files it writes, and its errors."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from repro.errors import RecipeError, UnknownName
from repro.receptive_field import receptive_field
from repro.receptive_field.command import find_model, report

OWN = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))

def two():
    return 2
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    (tmp_path / "fields_of_my_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "fields_of_my_own"


def test_models_are_found_by_every_kind_of_name(own_module: str) -> None:
    """Catches an option dropped, a folder left on the path, and a table of another net than the one named."""
    assert report("alexnet") == str(receptive_field(find_model("alexnet")[0], (3, 224, 224)))
    assert report("torchvision:squeezenet1_1", "3,64,96").splitlines()[1].split()[-1] == "31×47"
    assert report(f"{own_module}:net", "16").splitlines()[-1].split() == [
        "1",
        "MaxPool2d",
        "2",
        "2",
        "1",
        "4",
        "2",
        "0",
        "7",
    ]
    assert "norm1" not in report("alexnet_2012:lrn=none")
    assert "norm1" in report("alexnet_2012")


def test_one_unit_in_words_and_its_files(own_module: str, tmp_path: Path) -> None:
    """Catches row and column swapped, an end that is off by one, and files of another unit."""
    files = [tmp_path / f"t.{kind}" for kind in ("csv", "json", "html", "svg")]
    text = report(f"{own_module}:net", "16,12", "1", "2,1", *files)
    assert text.splitlines() == [
        "unit (2, 1) of 1, which has 7×5; input 1×16×12",
        "by the arithmetic     rows 4…7, columns 2…5 (4×4)",
        "pixels of the image   rows 4…7, columns 2…5 (4×4), 16 of them read",
        "0  rows 4…5, columns 2…3 (2×2)",
    ]
    assert files[0].read_text().count("\n") == 3
    assert json.loads(files[1].read_text())["input_size"] == [1, 16, 12]
    page = files[2].read_text()
    HTMLParser().feed(page)
    assert page.startswith("<!doctype html>")
    assert "<title>Receptive fields of fields_of_my_own:net</title>" in page
    picture = ET.fromstring(files[3].read_text())
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert picture.findtext("svg:title", None, names) == "Receptive field of unit (2, 1) of 1"
    read, maps = (
        [
            (float(rect.get("height", 0)), float(rect.get("width", 0)))
            for rect in picture.iterfind(f".//svg:rect[@class='{kind}']", names)
        ]
        for kind in ("read", "map")
    )
    shares = [(r[0] / m[0], r[1] / m[1]) for r, m in zip(read, maps, strict=True)]
    expected = [(4 / 16, 4 / 12), (2 / 14, 2 / 10), (1 / 7, 1 / 5)]
    assert [pytest.approx(share, abs=1e-3) for share in expected] == shares


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("alexnett",), UnknownName, "did you mean alexnet"),
        (("torchvision:resnet5",), UnknownName, "resnet50"),
        (("no_such_module:net",), UnknownName, "no module in"),
        (("fields_of_my_own:nets",), UnknownName, "did you mean net"),
        (("fields_of_my_own:two",), RecipeError, "has to return a torch.nn.Module, found int"),
        (("alexnet", "224x224"), RecipeError, "--input is N or N,N or N,N,N"),
        (("alexnet", None, None, "1,1"), RecipeError, "--unit needs the --layer"),
        (("alexnet", None, "features.0", "1"), RecipeError, "--unit is N,N"),
    ],
)
def test_what_is_wrong_is_told(
    own_module: str, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """Catches a traceback in place of a line that says what to do."""
    with pytest.raises(error, match=message):
        report(*arguments)
