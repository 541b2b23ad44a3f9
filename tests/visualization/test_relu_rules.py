"""The three backward rules of a ReLU, by hand, against captum where captum is right, and where it is not."""

import warnings
from collections.abc import Callable

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UnknownName
from repro.visualization.relu_rules import relu_rule

CAPTUM = {"guided": GuidedBackprop, "deconvnet": Deconvolution}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "F.relu_ of a view": lambda x: F.relu_(x.view(-1)).view(x.shape),
}
FUNCTIONS = [kind for kind in KINDS if "module" not in kind]


class Chain(nn.Module):
    """Two convolutions, each with a ReLU that is written as `kind` says; one ReLU serves both."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.relu = KINDS[kind]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


class Skip(nn.Module):
    """A residual block whose shortcut passes its ReLU by; `copied` gives the ReLU a tensor of its own."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.head, self.copied = nn.ReLU(), nn.Linear(6, 4), copied

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x + self.conv2(self.relu(x.clone() if self.copied else x))
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Two branches that meet in a product, with a ReLU each or one for both."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 5, padding=2)
        self.relu1, self.head = nn.ReLU(), nn.Linear(6, 4)
        self.relu2 = self.relu1 if shared else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv1(x), self.conv2(x)
        return self.head((self.relu1(first) * self.relu2(second)).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def ours(net: nn.Module, images: Tensor, rule: str) -> Tensor:
    with relu_rule(rule):
        inputs = images.clone().requires_grad_()
        return torch.autograd.grad(net(inputs)[:, 1].sum(), inputs)[0]


def captums(net: nn.Module, images: Tensor, rule: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it sets hooks, and that the image needs a gradient
        return CAPTUM[rule](net).attribute(images.clone(), target=1)


def plain(net: nn.Module, images: Tensor) -> Tensor:
    return Saliency(net).attribute(images.clone().requires_grad_(), target=1, abs=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gradient", [[-2, 0, -1], [6, 0, 0], [0, -1, 3]]),
        ("deconvnet", [[0, 3, 0], [6, 0, 1], [2, 0, 3]]),
        ("guided", [[0, 0, 0], [6, 0, 0], [0, 0, 3]]),
    ],
)
def test_the_example_of_figure_1(kind, rule, expected):
    """Springenberg et al. 2015, figure 1. Catches rules that are exchanged, and a way to call a ReLU that is missed."""
    given = torch.tensor([[1.0, -1, 5], [2, -5, -7], [-3, 2, 4]], requires_grad=True)
    signal = torch.tensor([[-2.0, 3, -1], [6, -3, 1], [2, -1, 3]])
    with relu_rule(rule) as met:
        output = KINDS[kind](given.clone())
    assert output.tolist() == [[1, 0, 5], [2, 0, 0], [0, 2, 4]]
    output.backward(signal)
    assert given.grad is not None
    assert given.grad.tolist() == expected
    assert met.count == 1


def test_nothing_passes_at_exactly_zero():
    """As torch's own ReLU has it. Catches a rule with >= 0 in place of > 0."""
    given = torch.zeros(3, requires_grad=True)
    for rule in ("gradient", "guided"):
        with relu_rule(rule):
            output = F.relu(given)
        assert torch.autograd.grad(output.sum(), given)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_rule_is_the_gradient(kind, images):
    """Catches a forward pass or a chain of in-place calls that the rule changes."""
    net = Chain(kind)
    assert torch.equal(ours(net, images, "gradient"), plain(net, images))


@pytest.mark.parametrize("rule", CAPTUM)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_call_a_relu_gives_what_captum_gives_for_modules(kind, rule, images):
    """Catches a net whose maps depend on how its ReLUs are written."""
    expected = captums(Chain("module"), images, rule)
    assert (ours(Chain(kind), images, rule) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (plain(Chain(kind), images) - expected).abs().max() > 0.1 * expected.abs().max()  # the rule does something


@pytest.mark.parametrize("rule", CAPTUM)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_captum_gives_the_plain_gradient_for_functions(kind, rule, images):
    """The reason for a rule of our own: when captum sees functions too, this fails, and ours can go."""
    net = Chain(kind)
    assert torch.equal(captums(net, images, rule), plain(net, images))


@pytest.mark.parametrize("rule", CAPTUM)
def test_a_shortcut_past_the_relu(rule, images):
    """Catches the rule applied to the shortcut's signal as well, as captum applies it."""
    expected = captums(Skip(copied=True), images, rule)
    assert (ours(Skip(copied=False), images, rule) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (captums(Skip(copied=False), images, rule) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("rule", CAPTUM)
def test_one_module_in_two_branches(rule, images):
    """Catches the signal of one branch given to the other, as captum's deconvolution gives it."""
    expected = captums(Branches(shared=False), images, rule)
    assert (ours(Branches(shared=True), images, rule) - expected).abs().max() < 1e-5 * expected.abs().max()
    if rule == "deconvnet":
        assert (captums(Branches(shared=True), images, rule) - expected).abs().max() > 0.1 * expected.abs().max()


def test_the_rule_ends_with_the_block(images):
    """Catches a patched function that stays behind, after an error too."""
    net = Chain("F.relu")
    expected = plain(net, images)
    with pytest.raises(ZeroDivisionError), relu_rule("guided"):
        raise ZeroDivisionError
    assert torch.equal(plain(net, images), expected)


def test_a_net_without_relu_is_counted_as_such(images):
    """Catches a count that says that a rule was applied where it was not."""
    with relu_rule("guided") as met:
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.LeakyReLU())(images)
    assert met.count == 0


def test_an_unknown_rule_is_refused():
    """Catches a misspelt rule that gives the plain gradient."""
    with pytest.raises(UnknownName, match="did you mean deconvnet"), relu_rule("deconv"):
        pass
