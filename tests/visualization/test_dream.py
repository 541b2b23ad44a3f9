"""Dreams: on nets whose gradient is known by hand, and on a trained one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repro import weights
from repro.errors import UnknownName
from repro.visualization import probe
from repro.visualization.dream import Until, dream, pictures
from repro.visualization.natural import spectral_slope
from repro.visualization.probe import ProbeError

SIZE = (2, 6, 6)


class Seen(nn.Module):
    """A linear classifier, whose gradient is its weights, and what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(72, 4)
        self.images: list[Tensor] = []
        self.input_size = SIZE

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.detach().clone())
        return self.linear(x.flatten(1))

    def way(self, k: int) -> Tensor:
        """The step of length 1 for class k."""
        way = self.linear.weight[k].detach().view(1, *SIZE)
        return way / (way**2).mean().sqrt()


class Divide(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by


class Twice(nn.Module):
    """A net with dropout and batch norm that uses one layer twice, and a head for images of 8×8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3 * 64, 4)
        self.behind = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.mix(self.relu(self.drop(self.norm(self.conv(x))))))
        self.behind += 1
        return self.head(x.flatten(1))


def test_steps_are_those_of_the_gradient() -> None:
    """Catches a descent, a step of another length, and the softmax's probability in place of the score."""
    net = Seen()
    found = dream(net, 2, steps=5, rate=0.1)
    assert torch.allclose(found.images - found.start, 5 * 0.1 * net.way(2), atol=1e-5)
    with torch.no_grad():
        assert found.before.item() == pytest.approx(net(found.start)[0, 2].item(), abs=1e-5)
        assert found.after.item() == pytest.approx(net(found.images)[0, 2].item(), abs=1e-5)
    rises = found.scores[1:] - found.scores[:-1]
    assert torch.allclose(rises, rises[0].expand_as(rises), rtol=1e-3)
    assert found.scores.shape == (5, 1)
    assert torch.allclose(found.scores[0], found.before)


def test_jitter_shifts_what_is_seen_and_shifts_back() -> None:
    """Catches a gradient that is not shifted back, one shifted twice, and a shift beyond the limit."""
    found = set()
    for seed in range(12):
        net = Seen()
        one = dream(net, 1, steps=1, jitter=2, rate=0.1, seed=seed)
        seen = net.images[2]  # the first two were to try the net and to see its maps
        shifts = [
            (a, b) for a in range(-2, 3) for b in range(-2, 3) if torch.equal(seen, one.start.roll((a, b), (2, 3)))
        ]
        assert len(shifts) == 1
        a, b = shifts[0]
        assert torch.allclose(one.images - one.start, 0.1 * net.way(1).roll((-a, -b), (2, 3)), atol=1e-6)
        found.add(shifts[0])
    assert len(found) > 5


def test_octaves_go_from_small_to_full() -> None:
    """Catches octaves in the wrong order, of another ratio, and a class asked about an image of the wrong size."""
    sides: list[int] = []
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 20 * 20, 4))
    net[0].register_forward_hook(lambda _m, inputs, _o: sides.append(inputs[0].shape[-1]))
    dream(net, "1", steps=2, octaves=3, ratio=1.4, input_size=(2, 20, 20))
    assert [side for side in sides if side != 20] == [10, 10, 14, 14]
    sides.clear()
    found = dream(net, 1, steps=2, octaves=3, ratio=1.4, input_size=(2, 20, 20))
    assert set(sides) == {20}
    assert found.images.shape == (1, 2, 20, 20)


def test_octaves_add_to_a_photograph_and_do_not_blur_it() -> None:
    """Catches small octaves that are enlarged themselves, and not only what was found in them."""
    net = Seen()
    photograph = torch.randn(1, *SIZE)
    found = dream(net, 0, photograph, steps=2, octaves=3, rate=1e-6)
    assert torch.allclose(found.images, photograph, atol=1e-4)
    assert torch.equal(found.start, photograph)


def test_octaves_keep_what_was_found() -> None:
    """Catches a dream that forgets its small octaves: three octaves rise about three times as far as one."""
    net = Seen()
    with torch.no_grad():  # weights that survive being shrunk
        net.linear.weight[0] = 1.0
    rises = [
        (d.after - d.before).item() for d in (dream(net, 0, steps=3, octaves=n, ratio=1.2, rate=0.05) for n in (1, 3))
    ]
    assert rises[1] == pytest.approx(3 * rises[0], rel=0.2)


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (3, lambda net, x: net(x)[:, 3]),
        ("conv", lambda net, x: (net.conv(x) ** 2).mean((1, 2, 3))),
        (("conv", 1), lambda net, x: net.conv(x)[:, 1].mean((1, 2))),
        (("conv", (1, 2, 5)), lambda net, x: net.conv(x)[:, 1, 2, 5]),
        (("head", 3), lambda net, x: net(x)[:, 3]),
    ],
)
def test_what_counts_as_the_score(target: object, score: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Catches a sum for a mean, a unit of the wrong axis, and a layer's mean for its mean square."""
    net = Twice().eval()
    images = torch.randn(2, 2, 8, 8)
    found = dream(net, target, images, steps=2, rate=0.01)
    with torch.no_grad():
        assert torch.allclose(found.before, score(net, images), atol=1e-5)
        assert torch.allclose(found.after, score(net, found.images), atol=1e-5)
    assert (found.after > found.before).all()


def test_several_classes_are_those_one_by_one() -> None:
    """Catches a gradient that is mixed between the images, and a class given to the wrong one."""
    net = Twice()
    together = dream(net, [2, 0], steps=4, jitter=1, input_size=(2, 8, 8), prior="spectrum")
    for i, k in enumerate((2, 0)):
        alone = dream(net, k, steps=4, jitter=1, input_size=(2, 8, 8), prior="spectrum")
        assert torch.equal(alone.start[0], together.start[i])
        assert torch.allclose(alone.images[0], together.images[i], atol=1e-4)


def test_the_memory_bound_changes_nothing() -> None:
    """Images one at a time or all at once. Catches a jitter that goes on from batch to batch, and classes that are
    given to the first images of each batch."""
    arguments = {"steps": 3, "octaves": 2, "jitter": 2, "prior": "spectrum", "input_size": (2, 8, 8)}
    at_once = dream(Twice(), [2, 0, 1], **arguments)
    singly = dream(Twice(), [2, 0, 1], memory=1, **arguments)
    torch.testing.assert_close(singly.images, at_once.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(singly.scores, at_once.scores, atol=1e-4, rtol=1e-4)
    assert singly.scores.shape == (6, 3)


def test_pixels_stay_between_black_and_white() -> None:
    """Catches bounds that are not kept, and a mean image's bounds that do not fit an octave."""
    net = Seen()
    low = -torch.rand(1, *SIZE)
    bounds = (low, low + 0.5)
    for octaves in (1, 2):
        found = dream(net, 0, steps=20, octaves=octaves, rate=0.5, bounds=bounds)
        assert (found.images >= bounds[0]).all()
        assert (found.images <= bounds[1]).all()
        assert torch.allclose(found.start.clamp(*bounds), found.start)


def test_steps_are_in_the_contrast_of_the_net() -> None:
    """Catches steps of a fixed size: a net that takes pixels of 0…255 would see next to nothing change.

    The same net behind a division by 60 has the same dream, 60 times as large.
    """
    net, bounds = Seen(), (torch.full((1, 2, 1, 1), -2.0), torch.full((1, 2, 1, 1), 2.0))
    coarse = nn.Sequential(Divide(60), net)
    for prior in ("l2", "variation", "spectrum"):
        one = dream(net, 1, prior=prior, bounds=bounds, steps=4)
        large = dream(coarse, 1, prior=prior, bounds=(60 * bounds[0], 60 * bounds[1]), input_size=SIZE, steps=4)
        assert torch.allclose(60 * one.images, large.images, atol=1e-3)


def test_one_seed_one_dream() -> None:
    """Catches global random numbers, drawn from or set: the state afterwards is the one before."""
    net = weights.load("lenet5-modern").model
    torch.manual_seed(5)
    state = torch.get_rng_state()
    options = {"steps": 4, "jitter": 2, "octaves": 2, "prior": "spectrum"}
    first, second, other = (dream(net, 3, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(dream(net, 3, seed=1, **options).images, first.images)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_the_control_takes_steps_of_the_same_length_elsewhere() -> None:
    """Catches a control that is no control: shorter steps, or the gradient itself."""
    net = Seen()
    way, control = (dream(net, 1, steps=1, rate=0.1, control=c) for c in (False, True))
    steps = [(d.images - d.start).flatten() for d in (way, control)]
    assert torch.allclose(steps[0].sort().values, steps[1].sort().values, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(*steps, dim=0) < 0.5


def test_a_trained_net_answers_its_dreams() -> None:
    """Catches a climb that does not arrive: ten digits' scores rise at least 20 times as far as the controls'.

    Each dream is its class's to the net, with a probability of 0.99; with the prior the spectrum falls more steeply.
    """
    found = weights.load("lenet5-modern")
    digits = list(range(10))
    dreams, controls, natural = (
        dream(
            found.model, digits, bounds=found.prepare.bounds, input_size=found.prepare.input_size, steps=40, **options
        )
        for options in ({}, {"control": True}, {"prior": "spectrum"})
    )
    rise, by_luck = (dreams.after - dreams.before).mean(), (controls.after - controls.before).abs().mean()
    assert rise > 20 * by_luck
    with torch.no_grad():
        assert found.model(dreams.images).softmax(1).diagonal().min() > 0.99
    slopes = [spectral_slope(d.images).mean() for d in (dreams, natural)]
    assert slopes[1] < slopes[0] - 0.3


@pytest.mark.parametrize("training", [True, False])
def test_the_net_is_left_as_it_was(training: bool) -> None:
    """Catches training mode, gradients, hooks and running statistics that a dream changes, after an error too."""
    net = Twice().train(training)
    net.conv.weight.requires_grad_(False)
    net.norm.train(not training)
    handle = net.mix.register_forward_hook(lambda *_: None)
    state = {name: t.clone() for name, t in net.state_dict().items()}

    def kept() -> None:
        assert [m.training for m in (net, net.norm, net.drop)] == [training, not training, training]
        assert net.relu.inplace
        assert [net.conv.weight.requires_grad, net.mix.weight.requires_grad] == [False, True]
        assert all(p.grad is None for p in net.parameters())
        assert list(net.mix._forward_hooks) == [handle.id]
        assert not net.relu._forward_hooks
        assert all(torch.equal(state[name], t) for name, t in net.state_dict().items())

    dream(net, "mix", steps=2, input_size=(2, 8, 8))
    dream(net, 1, steps=2, input_size=(2, 8, 8))
    kept()
    with pytest.raises(RuntimeError):
        dream(net, 1, steps=2, input_size=(2, 9, 9))
    kept()


def test_until_is_the_last_use_of_a_layer() -> None:
    """Catches the first use, a pass that goes on behind the layer, and a head that cannot take a larger image."""
    net = Twice()
    images = torch.randn(2, 2, 8, 8)
    with probe.untouched(net), torch.no_grad():
        until = Until(net, "relu", images)
        behind = net.behind
        assert torch.equal(until(images), probe.outputs(net, images, ["relu"])["relu"])
        assert net.behind == behind + 1  # that of probe.outputs
        large = torch.randn(1, 2, 11, 13)
        assert Until(net, "mix", large)(large).shape == (1, 3, 11, 13)


def test_refusals() -> None:
    """Catches silence: each wrong argument is named with what it may be."""
    net = Seen()
    with pytest.raises(UnknownName, match=r"prior 'spectra'.*spectrum"):
        dream(net, 0, prior="spectra")
    with pytest.raises(UnknownName, match=r"layer 'lineal'.*linear"):
        dream(net, "lineal")
    with pytest.raises(ProbeError, match="out of range: 0 to 3"):
        dream(net, 4)
    with pytest.raises(ProbeError, match="2 classes for 3 images"):
        dream(net, [0, 1], torch.zeros(3, *SIZE))
    with pytest.raises(ProbeError, match="a layer and a unit is needed"):
        dream(net, [])
    with pytest.raises(ProbeError, match="steps=0"):
        dream(net, 0, steps=0)
    with pytest.raises(ProbeError, match="give input_size"):
        dream(nn.Sequential(nn.Flatten(), nn.Linear(72, 4)), 0)
    with pytest.raises(ProbeError, match="float16"):
        dream(Seen().half(), 0)
    idle = Twice()
    idle.unused = nn.ReLU()
    with pytest.raises(ProbeError, match="does not call"):
        dream(idle, "unused", input_size=(2, 8, 8))


def test_figures_show_what_was_found() -> None:
    """Catches pictures of the wrong scale, and a title beside the wrong image."""
    found = weights.load("lenet5-modern")
    several = dream(found.model, [7, 1], steps=1, input_size=found.prepare.input_size)
    figure = several.figure(found.prepare)
    assert [ax.get_title() for ax in figure.axes] == ["7", "1"]
    drawn = torch.from_numpy(figure.axes[1].images[0].get_array().data[..., 0].copy())
    shown = found.prepare.show(several.images)[1, ..., 0]
    assert torch.allclose(drawn, shown, atol=1e-6)
    single = dream(found.model, 7, steps=3, input_size=found.prepare.input_size)
    assert [ax.get_title() for ax in single.figure().axes] == ["start", "7", "score"]
    scaled = pictures(several.images, None)
    assert scaled.min() == 0
    assert scaled.max() == 1
