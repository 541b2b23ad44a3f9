"""The picture of a net's columns: what it says is what the model is, and it can be read."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from torch import nn

from repro.models import get_model, model_info
from repro.visualization.architecture import Block, blocks, draw_columns
from repro.visualization.figures import use_book_style


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    with plt.rc_context():
        use_book_style()
        yield
    plt.close("all")


def model(name: str) -> nn.Module:
    """Shapes only: no values are needed to draw."""
    with torch.device("meta"):
        return get_model(name)


def draw(name: str) -> Figure:
    return draw_columns(model(name), model_info(name).input_size)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def arrows(figure: Figure) -> dict[str, bool]:
    """From what each arrow is called to whether it is dashed."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    return {str(arrow.get_gid()): arrow.get_linestyle() != "-" for arrow in found}


def test_the_columns_of_2012_have_the_shapes_of_the_paper() -> None:
    """Catches maps not halved between the columns, an output in two halves, and shapes behind the pooling."""
    shapes = Counter(text for text in texts(draw("alexnet_2012")) if text.replace("×", "").isdecimal())
    assert shapes == {
        "3×224×224": 1, "48×55×55": 2, "128×27×27": 2, "192×13×13": 4, "128×13×13": 2, "2048": 4, "1000": 1,
    }  # fmt: skip


def test_columns_meet_where_the_paper_says() -> None:
    """Catches crossings at every layer or none: section 3.2 has them at layer 3, the fully connected ones read all."""
    drawn = arrows(draw("alexnet_2012"))
    crossing = {gid for gid, dashed in drawn.items() if dashed}
    assert crossing == {f"{name}: column {way}" for name in ("conv3", "fc1", "fc2") for way in ("1 to 2", "2 to 1")}
    within = {f"{name}{i}: column {j} to {j}" for name, last in (("conv", 5), ("fc", 2)) for i in range(1, last + 1)
              for j in (1, 2)} - {"conv1: column 2 to 2"}  # fmt: skip
    both_ends = {"conv1: column 1 to 2", "fc3: column 1 to 1", "fc3: column 2 to 1"}
    assert drawn.keys() - crossing == within | both_ends


def test_what_follows_a_layer_stands_in_its_order() -> None:
    """Catches the order of the paper drawn for the code, and a size behind the pooling that is not the model's."""
    assert "ReLU\nLRN\nmax-pooling\n→ 27×27" in texts(draw("alexnet_2012"))
    assert "LRN\nmax-pooling\nReLU\n→ 27×27" in texts(draw("alexnet_2012_code"))
    assert "conv1\n11×11\nstride 4" in texts(draw("alexnet_2012"))


@pytest.mark.parametrize("name", ["alexnet_one_column", "alexnet", "cuda_convnet_13pct"])
def test_a_net_without_groups_has_one_column(name: str) -> None:
    """Catches two rows drawn for every net, and a legend of crossings where there are none."""
    figure = draw(name)
    drawn = arrows(figure)
    size = model_info(name).input_size
    assert {block.columns for block in blocks(model(name), size)} == {1}
    assert not any(drawn.values())
    assert len(drawn) == len(blocks(model(name), size)) - 1
    assert not any("column" in text for text in texts(figure))
    assert figure.axes[0].get_legend() is None


def test_groups_of_columns_read_each_other() -> None:
    """Catches groups compared with columns by equality: two groups over four columns join them in pairs."""
    block = Block("conv2", (1, 1, 1), columns=4, groups=2, above="", below="")
    read = {(j, i) for j in range(4) for i in range(4) if block.reads(j, i, 4)}
    assert read == {(j, i) for pair in ((0, 1), (2, 3)) for j in pair for i in pair}


def test_sides_go_with_the_root_of_the_pixels() -> None:
    """Catches boxes of one size for all maps, and depth taken for height."""
    fronts = [p.get_xy() for p in draw("alexnet_2012").axes[0].patches if isinstance(p, Polygon)][::3]
    image, conv1, _, conv2 = (corners[:, 1].max() - corners[:, 1].min() for corners in fronts[:4])
    assert image / conv1 == pytest.approx((224 / 55) ** 0.5)
    assert conv1 / conv2 == pytest.approx((55 / 27) ** 0.5)


@pytest.mark.parametrize("name", ["alexnet_2012", "alexnet_2012_code", "alexnet", "alexnet_cifar10", "lenet5_modern"])
def test_everything_can_be_read_at_700_pixels(name: str) -> None:
    """Catches text over text and text cut off at the border of the picture."""
    figure = draw(name)
    figure.draw_without_rendering()  # gives the legend its place
    assert figure.bbox.width == 700
    shown = [text for text in figure.axes[0].texts if text.get_text()]
    legend = figure.axes[0].get_legend()
    extents = [text.get_window_extent() for text in (*shown, *(legend.get_texts() if legend else ()))]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 700 and box.y1 <= figure.bbox.height for box in extents)
    assert not any(a.overlaps(b) for a, b in combinations(extents, 2))
    assert all(text.get_fontsize() >= 8 for text in shown)
