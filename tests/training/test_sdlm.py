"""The optimizer of 1998 against its formulas, worked out unit by unit."""

import torch

from repro.models.lenet import LeNet5, mse_loss
from repro.training.sdlm import SDLM, diagonal_curvature, squash_slope


def test_a_step_divides_each_gradient_by_its_own_curvature() -> None:
    """Catches the damping left out, one rate for all, and an ascent."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = SDLM([weight], lr=0.1, damping=0.5)
    optimizer.set_curvature({weight: torch.tensor([0.0, 1.5])})
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.1 / 0.5, 1 + 0.1 * 2 / 2.0]))


def test_a_changed_rate_is_followed() -> None:
    """Catches quotients stored once, which would ignore the schedule."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SDLM([weight], lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.25
    weight.grad = torch.ones(1)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.25]))


def test_curvature_of_f6_and_of_a_c5_bias_by_hand() -> None:
    """Catches slopes or weights left unsquared, and a sum over samples where the mean is due."""
    torch.manual_seed(0)
    model = LeNet5().double()
    images = torch.rand(3, 1, 32, 32, dtype=torch.float64)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
        for name in ("c5", "f6")
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    c5, f6 = seen["c5"].flatten(1), seen["f6"]

    def slope(a: torch.Tensor) -> torch.Tensor:
        return 1.7159 * 2 / 3 / torch.cosh(2 / 3 * a) ** 2

    inputs = 1.7159 * torch.tanh(2 / 3 * c5)
    at_f6 = 2 * slope(f6) ** 2  # second derivative of each sample's loss with respect to F6's sums
    expected_f6 = torch.einsum("ni,nj->ij", at_f6, inputs**2) / 3
    at_c5 = slope(c5) ** 2 * (at_f6 @ model.f6.weight.detach() ** 2)
    found = diagonal_curvature(model, images)
    torch.testing.assert_close(found[model.f6.weight], expected_f6)
    torch.testing.assert_close(found[model.f6.bias], at_f6.mean(0))
    torch.testing.assert_close(found[model.c5.bias], at_c5.mean(0))


def test_curvature_of_f6_is_the_second_difference_of_the_loss_for_saturated_targets() -> None:
    """Catches a factor of 2 somewhere: at zero error Gauss–Newton is exact, and finite differences must agree."""
    torch.manual_seed(1)
    model = LeNet5().double()
    image = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    f6: list[torch.Tensor] = []
    hook = model.output.register_forward_pre_hook(lambda _, args: f6.append(args[0]))
    model(image)
    hook.remove()
    model.output.codes = f6[0].detach().expand(10, -1).clone()  # the code is hit exactly: no residual left
    step, target = 1e-4, torch.tensor([0])
    found = diagonal_curvature(model, image)[model.f6.bias]
    for unit in (0, 41, 83):
        losses = []
        for shift in (-step, 0.0, step):
            with torch.no_grad():
                model.f6.bias[unit] += shift
                losses.append(mse_loss(model(image), target).item())
                model.f6.bias[unit] -= shift
        second = (losses[0] - 2 * losses[1] + losses[2]) / step**2
        assert abs(second - found[unit].item()) < 1e-3 * second


def test_curvature_leaves_weights_and_gradients_alone() -> None:
    """Catches gradients that leak into `.grad` and would be added to the next step's."""
    model = LeNet5()
    before = [p.detach().clone() for p in model.parameters()]
    curvature = diagonal_curvature(model, torch.rand(2, 1, 32, 32))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(curvature[p].shape == p.shape and (curvature[p] >= 0).all() for p in model.parameters())


def test_slope_from_the_value_is_the_derivative() -> None:
    """Catches A and S exchanged in the derivative."""
    a = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    value = 1.7159 * torch.tanh(2 / 3 * a)
    (derivative,) = torch.autograd.grad(value.sum(), a)
    torch.testing.assert_close(squash_slope(value.detach()), derivative)
