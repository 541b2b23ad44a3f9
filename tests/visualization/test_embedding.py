"""Maps of codes, on points whose neighbourhoods are known."""

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UnknownName
from repro.visualization import probe
from repro.visualization.embedding import codes, embed, purity
from repro.visualization.probe import ProbeError


def heaps(each: int = 20, width: int = 12) -> tuple[Tensor, Tensor]:
    """Three heaps of codes far apart, and which heap each is of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(each)
    return 10 * torch.eye(3, width)[labels] + torch.randn(3 * each, width, generator=generator), labels


def test_purity_by_hand() -> None:
    """Catches a code counted as its own neighbour: the lonely 1 among zeros would be half pure."""
    line = torch.tensor([[0.0], [1.0], [2.5], [10.0], [11.0]])
    labels = torch.tensor([0, 1, 0, 2, 2])
    # Nearest: 0→1, 1→0, 2.5→1, 10→11, 11→10.
    assert purity(line, labels, 1) == pytest.approx(2 / 5)
    # Two nearest: {1, 2.5}, {0, 2.5}, {1, 0}, {11, 2.5}, {10, 2.5}.
    assert purity(line, labels, 2) == pytest.approx((1 + 0 + 1 + 1 + 1) / 10)


def test_purity_is_the_loop() -> None:
    """Catches another distance than the Euclidean one, and codes with maps that are not flattened."""
    points = torch.randn(30, 2, 3, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 4
    hits = []
    for i in range(30):
        apart = [(float(((points[i] - points[j]) ** 2).sum()), j) for j in range(30) if j != i]
        hits += [labels[j] == labels[i] for _, j in sorted(apart)[:5]]
    assert purity(points, labels) == pytest.approx(sum(map(int, hits)) / len(hits))


def test_tsne_keeps_heaps_apart() -> None:
    """Catches rows in another order than the codes', and t-SNE in place of PCA or the other way round."""
    points, labels = heaps()
    found = embed(points, perplexity=10)
    assert found.points.shape == (60, 2)
    assert purity(found.points, labels) == 1
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert purity(found.points, labels[mixed]) < 0.6


def test_pca_is_the_singular_value_decomposition() -> None:
    """Catches codes that are not centred, or axes in another order: up to sign the columns are U·S."""
    points, _ = heaps()
    points = points + 100
    u, s, _ = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    expected = (u * s)[:, :2]
    found = embed(points, method="pca").points
    for k in range(2):
        assert torch.allclose(found[:, k].abs(), expected[:, k].abs(), atol=1e-2)


def test_one_seed_one_map() -> None:
    """Catches numpy's global random numbers."""
    points, _ = heaps()
    state = torch.get_rng_state()
    assert torch.equal(embed(points, perplexity=10, seed=3).points, embed(points, perplexity=10, seed=3).points)
    assert torch.equal(torch.get_rng_state(), state)


def test_codes_do_not_depend_on_the_batch() -> None:
    """Catches training mode, a last batch that is dropped, and a layer's codes in the order of another's."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)).train()
    images = torch.randn(7, 3, 8, 8)
    found = codes(net, images, ["4", "1"], memory=1)
    assert net.training
    assert net[1].num_batches_tracked == 0
    with probe.untouched(net), torch.no_grad():
        expected = probe.outputs(net, images, ["4", "1"])
    assert list(found) == ["4", "1"]
    for layer, code in found.items():
        assert code.shape == (7, expected[layer][0].numel())
        assert torch.allclose(code, expected[layer].flatten(1), atol=1e-5)


def test_refusals() -> None:
    """Catches scikit-learn's own messages, which do not say what to give."""
    points, labels = heaps(5)
    with pytest.raises(UnknownName, match="method 'umap'"):
        embed(points, method="umap")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="less than the 15 codes"):
        embed(points)
    with pytest.raises(ProbeError, match="three or more"):
        embed(points[:2])
    with pytest.raises(ProbeError, match="of finite numbers"):
        embed(points.log())
    with pytest.raises(ProbeError, match="1 to 14"):
        purity(points, labels, 15)
    with pytest.raises(ProbeError, match="one for each of 15"):
        purity(points, labels[:3])


def test_figure_has_each_class_once() -> None:
    """Catches a class drawn with another's points."""
    points, labels = heaps(4)
    found = embed(points, method="pca")
    ax = found.figure(labels, ["a", "b", "c"]).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    for k, drawn in enumerate(ax.collections):
        assert torch.allclose(torch.tensor(drawn.get_offsets().data).float(), found.points[labels == k])
