"""What the occlusion explorer hands to a page. How it behaves there is tested in tests/browser/."""

import base64
import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from repro.data.preparation import Preparation
from repro.visualization import occlusion_explorer
from repro.visualization.occlusion import occlusion
from repro.visualization.probe import ProbeError

CLASSES = ("daisy", "rose", "tulip")
PREPARE = Preparation(24, 24, torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.25))


def a_net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, classes)
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def responses(images):
    """Two sizes of the window each; the last places of the second hang over the border."""
    sizes = [(8, 4), (9, 5)]
    return [[occlusion(a_net(), image, *size, target=i + 1) for size in sizes] for i, image in enumerate(images)]


def values_in(explorer) -> dict:
    return json.loads(html.unescape(re.search(r'data-values="([^"]*)"', explorer._repr_html_()).group(1)))


def unpacked(text: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The bytes by hand: the lower one of each pair first."""
    low, high = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(-1, 2).astype(np.int64).T
    return torch.from_numpy(low + 256 * high).double().view(shape) / 65535


def test_the_answers_arrive(images, responses):
    """Catches rows and columns exchanged, another order of the classes, and coarser numbers than are promised."""
    values = values_in(occlusion_explorer(PREPARE, CLASSES, images, responses))
    assert [one["name"] for one in values["classes"]] == list(CLASSES)
    for i, (picture, row) in enumerate(zip(values["pictures"], responses, strict=True)):
        assert (picture["name"], picture["target"]) == (CLASSES[i + 1], i + 1)
        for sent, one in zip(picture["windows"], row, strict=True):
            assert (sent["size"], sent["stride"], sent["places"]) == (
                list(one.size),
                list(one.stride),
                list(one.logits.shape[:2]),
            )
            found = unpacked(sent["probabilities"], one.logits.shape)
            assert (found - one.logits.double().softmax(2)).abs().max() <= 0.5 / 65535 + 1e-6
            low, high = sent["range"]
            shares = unpacked(sent["activation"], one.activation.shape)
            assert (low + (high - low) * shares - one.activation).abs().max() <= (high - low) / 131070 + 1e-4
        assert picture["activation"] == pytest.approx(row[0].clean_activation)
        assert picture["clean"] == pytest.approx(row[0].clean_logits.softmax(0).tolist())


def pixels(address: str) -> torch.Tensor:
    kind, data = address.split(",")
    assert kind == "data:image/jpeg;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))).float()


def test_photographs_and_the_window_look_as_they_do_to_the_net(responses):
    """Catches standardised values shown as colours, images exchanged, and a window of another colour than was used."""
    plain = torch.tensor([[0.8, 0.2, 0.4], [0.1, 0.6, 0.3]])  # of 0…1, for two images of one colour each
    images = ((plain - 0.4) / 0.25)[:, :, None, None].expand(-1, -1, 24, 24)
    value = (torch.tensor([0.9, 0.5, 0.1]) - 0.4) / 0.25
    values = values_in(occlusion_explorer(PREPARE, CLASSES, images, responses, value))
    for colour, picture in zip(plain, values["pictures"], strict=True):
        assert (pixels(picture["photo"]) - 255 * colour).abs().max() <= 4  # JPEG's own loss
    assert (pixels(values["hidden"]) - 255 * torch.tensor([0.9, 0.5, 0.1])).abs().max() <= 4


def test_of_many_classes_the_targets_and_the_most_probable_are_shown(images):
    """Catches a bar for each of a thousand classes, and a true class without a bar because it is improbable."""
    net = a_net(30)
    answers = occlusion(net, images[0], 8, 4)
    target = int(answers.logits.amax((0, 1)).argmin())
    one = occlusion(net, images[0], 8, 4, target=target)
    values = values_in(occlusion_explorer(PREPARE, [f"class {k}" for k in range(30)], images[:1], [[one]]))
    largest = one.logits.softmax(2).amax((0, 1)).tolist()
    others = sorted((k for k in range(30) if k != target), key=lambda k: -largest[k])[:7]
    expected = sorted([target, *others])
    assert [c["name"] for c in values["classes"]] == [f"class {k}" for k in expected]
    window = values["pictures"][0]["windows"][0]
    found = unpacked(window["probabilities"], (*one.logits.shape[:2], 8))
    assert (found - one.logits.double().softmax(2)[..., expected]).abs().max() <= 1e-5


def test_images_of_one_class_are_numbered(images, responses):
    """Catches a list in which two photographs cannot be told apart."""
    same = [responses[0], [replace(one, target=1) for one in responses[1]]]
    values = values_in(occlusion_explorer(PREPARE, CLASSES, images, same))
    assert [picture["name"] for picture in values["pictures"]] == ["rose 1", "rose 2"]


def test_grey_images_are_shown_too(images):
    """Catches a picture of three channels that is asked of a net for digits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 22 * 22, 3))
    prepare = Preparation(24, 24, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    grey = torch.full((1, 1, 24, 24), 0.6)
    values = values_in(occlusion_explorer(prepare, CLASSES, grey, [[occlusion(net, grey[0], 8, 8)]]))
    assert (pixels(values["pictures"][0]["photo"]) - 153).abs().max() <= 3


def test_responses_that_do_not_belong_are_refused(images, responses):
    """Catches a page that shows one photograph with another's answers, or two classes' as one's."""
    with pytest.raises(ProbeError, match="1 rows for"):
        occlusion_explorer(PREPARE, CLASSES, images, responses[:1])
    with pytest.raises(ProbeError, match="one class and one map"):
        occlusion_explorer(PREPARE, CLASSES, images[:1], [[responses[0][0], responses[1][1]]])
    with pytest.raises(ProbeError, match="2 names"):
        occlusion_explorer(PREPARE, CLASSES[:2], images, responses)
    with pytest.raises(ProbeError, match="the images have"):
        occlusion_explorer(PREPARE, CLASSES, images[:, :, :20], responses)


def test_a_page_of_megabytes_is_refused(images, responses):
    """Catches a page that a phone would load for a minute."""
    with pytest.raises(ProbeError, match="more than 350,000 bytes"):
        occlusion_explorer(PREPARE, CLASSES, images.repeat(200, 1, 1, 1), responses * 200)


def test_the_explorer_keeps_to_itself(images, responses):
    """Catches a script that imports, exports or asks the network, and a page that differs from run to run."""
    page = occlusion_explorer(PREPARE, CLASSES, images, responses)._repr_html_()
    script = re.search(r'<script type="module">(.*?)</script>', page, flags=re.DOTALL).group(1)
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|\bfetch\(", page)
    assert page == occlusion_explorer(PREPARE, CLASSES, images, responses)._repr_html_()
