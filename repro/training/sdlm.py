"""The optimizer of 1998: stochastic diagonal Levenberg–Marquardt, one sample at a time.

LeCun et al. 1998, appendix C.  Every parameter k has its own rate η / (μ + h_k), where h_k estimates the second
derivative of the loss: large steps where the loss is flat, small ones where it is curved. h is measured on 500
samples before each pass and then kept.  Chapter 2 uses it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from repro.models.layers import ScaledTanh
from repro.models.lenet import LeNet5

DAMPING = 0.02  # μ: bounds the rate where the curvature is near zero
CURVATURE_SAMPLES = 500


class SDLM(torch.optim.Optimizer):
    """Gradient descent with the rate `lr / (damping + curvature)` for each parameter.

    Until `set_curvature` is called every curvature is 1 − damping, so that a step is one of plain gradient descent.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, damping: float = DAMPING) -> None:
        super().__init__(params, {"lr": lr, "damping": damping})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["curvature"] = torch.full_like(p, 1 - damping)

    @torch.no_grad()
    def set_curvature(self, curvature: dict[nn.Parameter, Tensor]) -> None:
        """Replace the second derivatives, a non-negative tensor of the parameter's shape for each."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["curvature"].copy_(curvature[p])

    def rates(self) -> list[Tensor]:
        """The learning rate of every parameter, in the optimizer's order."""
        return [
            group["lr"] / (group["damping"] + self.state[p]["curvature"])
            for group in self.param_groups
            for p in group["params"]
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in moving]
            # Each step divides anew: a stored quotient would have to follow every change of the rate.
            scales = torch._foreach_add([self.state[p]["curvature"] for p in moving], group["damping"])
            torch._foreach_addcdiv_(moving, gradients, scales, value=-group["lr"])


def diagonal_curvature(model: LeNet5, images: Tensor) -> dict[nn.Parameter, Tensor]:
    """The diagonal of the Gauss–Newton Hessian of equation 8, averaged over `images` `(N, 1, 32, 32)`.

    The paper's recursion runs backwards like the gradient's, with every weight and every input squared and the
    slope of the squashing function squared: ∂²E/∂a_i² = f′(a_i)² Σ_k u_ki² ∂²E/∂a_k² and
    ∂²E/∂u_ij² = x_j² ∂²E/∂a_i², summed over the places that share a weight. All layers are linear in their
    weights and in their input, so that is the ordinary gradient of a net whose layers hold squared weights, see
    squared inputs, and pass squared slopes on: autograd does the rest.
    """
    squares = {p: p.detach().square().requires_grad_() for p in model.parameters()}

    def squared_layer(layer: nn.Module, squared_input: Tensor) -> Tensor:
        own = {name: squares[p] for name, p in layer.named_parameters()}
        return torch.func.functional_call(layer, own, (squared_input,))

    signal, squared = images, images.square()
    for layer in (model.c1, model.s2, model.c3, model.s4, model.c5, model.f6):
        if layer is model.f6:
            signal, squared = signal.flatten(1), squared.flatten(1)
        with torch.no_grad():
            activation = layer(signal)
            signal = model.squash(activation)
            slope = squash_slope(signal)
        linear = squared_layer(layer, squared)
        # The value is the next layer's squared input; the derivative with respect to `linear` is the squared slope.
        squared = signal.square() + slope.square() * (linear - linear.detach())
    # y is the sum of (x − w)² over F6, so its second derivative for each x is 2.
    loss = 2 * squared.sum() / len(images)
    gradients = torch.autograd.grad(loss, list(squares.values()))
    return dict(zip(squares, gradients, strict=True))


def squash_slope(squashed: Tensor) -> Tensor:
    """The derivative of `A tanh(S a)`, from its value: S (A − value² / A)."""
    amplitude, slope = ScaledTanh.AMPLITUDE, ScaledTanh.SLOPE
    return slope * (amplitude - squashed.square() / amplitude)
