"""How a gradient passes a ReLU on its way back: the one line in which three methods of looking into a net differ.

The gradient passes where the unit was on in the forward pass, the deconvnet of Zeiler and Fergus (2014, section 2.1)
lets pass what is positive in the signal that comes back, and guided backpropagation asks for both: Springenberg,
Dosovitskiy, Brox and Riedmiller, *Striving for simplicity* (2015), section 3.4 and figure 1. Chapter 17.

Written here because captum (0.9) sets the rule by hooks on `nn.ReLU` modules and on the tensors that enter them. A
ReLU that is called as a function it does not see: the plain gradient comes out, without a word. Where the tensor goes
elsewhere too, as past the ReLU in a residual block, the rule falls on the sum of both signals; and where one module
serves two branches, deconvolution takes the signal of the wrong one. Of modules in a row, in-place or used again, it
is right, and ours are held against it there: `tests/visualization/test_relu_rules.py` shows all of this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from repro.errors import UnknownName, nearest

# name -> (signal from above, output of the ReLU) to the signal that goes on
RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient": lambda signal, output: signal * (output > 0),
    "deconvnet": lambda signal, output: signal * (signal > 0),
    "guided": lambda signal, output: signal * ((output > 0) & (signal > 0)),
}
_RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}  # F.relu_ is torch.relu_; nn.ReLU calls F.relu
_IN_PLACE = {torch.relu_, Tensor.relu_}


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rule: str) -> Tensor:
        output = inputs.clamp(min=0)
        ctx.rule = rule
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return RULES[ctx.rule](signals[0], output), None


class ReluRule(TorchFunctionMode):
    """Calls of a ReLU, however it is written, as one whose backward pass follows a rule; `count` of them were met."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _RELUS:
            return func(*args, **kwargs)
        self.count += 1
        return self._relu(func in _IN_PLACE, *args, **kwargs)

    def _relu(self, overwrite: bool, input: Tensor, inplace: bool = False) -> Tensor:
        output = _Rectify.apply(input, self.rule)
        return input.copy_(output) if overwrite or inplace else output


@contextmanager
def relu_rule(rule: str) -> Iterator[ReluRule]:
    """Within it the backward pass of every ReLU that is run follows `rule`: "gradient", "deconvnet" or "guided".

    It counts for `nn.ReLU`, `F.relu`, `torch.relu`, `Tensor.relu` and those that work in place, used once or several
    times; the forward pass has to run inside, the backward pass need not. `count` of what it gives says how many ReLUs
    were met: with none, the gradient is the ordinary one. Other functions keep their own gradient: leaky ones, ReLU6,
    `clamp(min=0)`, operators called as `torch.ops` and graphs of `torch.jit`. Raises `UnknownName` for another rule.
    """
    if rule not in RULES:
        raise UnknownName(f"rule {rule!r}: there is none of that name; {nearest(rule, RULES)}")
    with ReluRule(rule) as mode:
        yield mode
