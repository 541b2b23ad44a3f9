"""What an explorer hands to a page. How it behaves there is tested in tests/browser/test_convolution_explorer.py."""

import html
import json
import re

import pytest

from repro.errors import UnknownName
from repro.visualization import convolution_explorer, explorer
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
