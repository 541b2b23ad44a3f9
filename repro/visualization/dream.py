"""Images that a net answers strongly to, made by climbing its answer's gradient: class images and dreams.

Simonyan, Vedaldi and Zisserman (2014) maximise a class's score minus an L2 penalty, from a blank image; Mordvintsev,
Olah and Tyka (2015, "Inceptionism") enhance what a layer finds in noise or in a photograph, at several sizes (octaves)
and shifted at random (jitter), under the constraint that the image keep the statistics of natural ones. Chapter 19
adds these one by one.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import ReproError, UnknownName, nearest
from repro.progress import track
from repro.visualization import probe
from repro.visualization.natural import PRIORS, TINY, Prior
from repro.visualization.probe import ProbeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.data.preparation import Preparation

Target = int | str | tuple[str, int | tuple[int, ...]]
Targets = Target | Sequence[int]
Bounds = tuple[Tensor, Tensor]

START_NOISE = 0.1  # standard deviation of the noise to start from, in units of `contrast`
ACROSS = 5  # dreams in a row of a figure


@dataclass(frozen=True)
class Dream:
    """What `dream` found: standardised images (N, C, H, W) before and after, and their scores on the way (T, N).

    `scores` holds the scores of what the net saw before each step: shifted, and at the size of the octave. `before` and
    `after` (N,) are those of `start` and `images` themselves.
    """

    target: Targets
    start: Tensor
    images: Tensor
    scores: Tensor
    before: Tensor
    after: Tensor

    def figure(self, prepare: "Preparation | None" = None, titles: Sequence[str] | None = None) -> "Figure":
        """The dreams, `ACROSS` in a row; of a single one the start and the score on the way, too.

        Without `prepare` each image is on a scale of its own. Titles are the targets unless given.
        """
        from matplotlib import pyplot as plt

        from repro.visualization import figures

        single = len(self.images) == 1
        shown = pictures(torch.cat([self.start, self.images]) if single else self.images, prepare)
        if titles is None:
            titles = (
                [str(t) for t in self.target] if isinstance(self.target, Sequence) else [str(self.target)] * len(shown)
            )
        across = 3 if single else min(ACROSS, len(shown))
        rows = 1 if single else -(-len(shown) // across)
        figure, axes = plt.subplots(rows, across, figsize=(7, rows * (7 / across + 0.25)), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, picture, title in zip(axes.flat, shown, ["start", *titles] if single else titles, strict=False):
            ax.imshow(picture)
            ax.set_title(title, fontsize=10)
        if single:
            axes[0, 2].set_axis_on()
            axes[0, 2].plot(self.scores.numpy(), color=figures.BLUE)
            axes[0, 2].set_title("score", fontsize=10)
            axes[0, 2].set_xlabel("step", fontsize=10)
        return figure


def dream(
    model: nn.Module,
    target: Targets,
    images: Tensor | None = None,
    *,
    steps: int = 16,
    octaves: int = 1,
    ratio: float = 1.4,
    jitter: int = 0,
    prior: str | Prior = "none",
    rate: float = 0.1,
    seed: int = 0,
    bounds: Bounds | None = None,
    input_size: Sequence[int] | None = None,
    control: bool = False,
    memory: int = probe.MEMORY,
) -> Dream:
    """Images whose `target` the net scores highly, found by `steps` steps up the gradient in each of `octaves`.

    `target` is a class, whose unnormalised score counts; a layer and a unit in it (a map, whose mean counts, or a map,
    row and column); a layer alone, whose mean square counts; or several classes, one for each image. `images` are
    standardised images (N, C, H, W) to start from; without them each starts from the same noise of `input_size`
    (C, H, W), by default the net's own. As many images pass at once as `memory` bytes hold, and the number makes no
    difference to what comes out.

    Each step is the gradient, divided by its root mean square, plus what the `prior` (one of `PRIORS`, or your own)
    adds, times `rate`, in units of `contrast`; then pixels are held within `bounds`, the `Preparation`'s
    black and white. `jitter` shifts what the net sees by up to so many pixels each step, around the edges. Octaves go
    from small to full size, `ratio` apart. A layer sees the image at the octave's size, as Mordvintsev et al. have it;
    a class sees it enlarged to full size, for a classifier takes only one.

    With `control` the pixels of each gradient are shuffled: steps of the same lengths in directions that mean nothing.

    The same arguments give the same image to the bit, on one machine and number of threads; no other random numbers are
    touched. Raises `ProbeError` and `UnknownName`.
    """
    chosen = _check(prior, steps, octaves, ratio, jitter)
    generator = torch.Generator().manual_seed(seed)
    start = _start(model, target, images, input_size, generator, contrast(bounds))
    start = start if bounds is None else clamp(start, bounds)
    climb = Climb(chosen, rate, jitter, bounds, generator, control, contrast(bounds))
    sides = [[max(1, round(side / ratio**o)) for side in start.shape[2:]] for o in reversed(range(octaves))]
    drawn = generator.get_state()
    with probe.untouched(model):
        score = Score(model, target, start)
        size = probe.batch_size(model, start.shape[1:], memory, gradients=True, answer=score.answer)
        parts = []
        for numbers in torch.arange(len(start)).split(size):
            generator.set_state(drawn)
            parts.append(_climb(climb, score.of(numbers.tolist()), start[numbers], sides, steps))
    x, scores, before, after = (torch.cat(each, -1 if each[0].ndim == 2 else 0) for each in zip(*parts, strict=True))
    return Dream(target, start, x, scores, before, after)


def _climb(
    climb: "Climb", score: "Score", start: Tensor, sides: Sequence[Sequence[int]], steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One batch: images (N, C, H, W), scores of each step (T, N), before and after (N,); `sides` of the octaves."""
    x, detail, scores = start, torch.zeros_like(start), []
    for step in track(range(steps * len(sides)), steps * len(sides), "dreaming"):
        if step % steps == 0:  # the next octave: what was found so far, enlarged, on the image it was found in
            base = _resize(start, sides[step // steps])
            x = base + _resize(detail, base.shape[2:])
        x, value = climb.step(x, score)
        scores.append(value)
        detail = x - base
    with torch.no_grad():
        before, after = score(start).cpu(), score(x).cpu()
    return x, torch.stack(scores).cpu(), before, after


@dataclass(frozen=True)
class Climb:
    """The rule by which images are changed step by step: the arguments of `dream` of these names, and `contrast`."""

    prior: Prior
    rate: float
    jitter: int
    bounds: Bounds | None
    generator: torch.Generator
    control: bool
    unit: float

    def step(self, x: Tensor, score: "Score") -> tuple[Tensor, Tensor]:
        """The next images (N, C, H, W), and the scores (N,) of what the net saw before this step."""
        shift = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=self.generator).tolist()
        seen = torch.roll(x, shift, (2, 3)).requires_grad_()
        value = score(seen)
        (pull,) = torch.autograd.grad(value.sum(), seen)
        pull = torch.roll(pull, [-s for s in shift], (2, 3))
        if self.control:
            order = torch.randperm(pull[0].numel(), generator=self.generator).to(pull.device)
            pull = pull.flatten(1)[:, order].view_as(pull)
        x = x + self.rate * self.unit * self.prior.direction(x / self.unit, pull)
        return (x if self.bounds is None else clamp(x, self.bounds)), value.detach()


class Score:
    """What a dream climbs: of images (N, C, H, W) one number each, (N,). Call it inside `probe.untouched`.

    `example` are images of full size to try the net with. A class is asked about images enlarged to that size.
    """

    def __init__(self, model: nn.Module, target: Targets, example: Tensor) -> None:
        layer, units = _parts(target)
        self.full = None if layer else example.shape[2:]
        self.answer = Until(model, layer, example[:1]) if layer else model
        with torch.no_grad():
            shape = tuple(self.answer(example[:1]).shape[1:])
        self.units = [probe.check_unit(layer or "class", shape, unit) for unit in units]
        if len(units) not in (0, 1, len(example)):
            raise ProbeError(
                f"target: {len(units)} classes for {len(example)} images; give one for each, or one for all"
            )

    def of(self, numbers: Sequence[int]) -> "Score":
        """The same for some of the images, by number."""
        part = copy(self)
        part.units = [self.units[i] for i in numbers] if len(self.units) > 1 else self.units
        return part

    def __call__(self, images: Tensor) -> Tensor:
        answer = self.answer(images if self.full is None else _resize(images, self.full))
        if not self.units:
            return answer.square().flatten(1).mean(1)
        units = self.units * len(answer) if len(self.units) == 1 else self.units
        return torch.stack([one[unit].mean() for one, unit in zip(answer, units, strict=True)])


class Until:
    """A net up to and with a layer: what lies behind is not computed, and need not fit the image.

    Of a layer that is used several times the last use counts, as in `probe.outputs`; `example` (N, C, H, W) shows how
    often that is. Call it inside `probe.untouched`. Raises `UnknownName`, or `ProbeError` for a layer that the net
    never calls or that gives no tensor.
    """

    def __init__(self, model: nn.Module, layer: str, example: Tensor) -> None:
        self.model, self.layer, self.module = model, layer, probe.find_layer(model, layer)
        self.uses = 0
        try:
            with torch.no_grad():
                self._run(example, last=None)
        except (RuntimeError, ReproError):
            if not self.uses:
                raise
        if not self.uses:
            raise ProbeError(f"layer {layer}: the net does not call it for this image")

    def __call__(self, images: Tensor) -> Tensor:
        """The layer's output (N, …) for images (N, C, H, W)."""
        try:
            self._run(images, last=self.uses)
        except _Reached as reached:
            return reached.output
        raise ProbeError(f"layer {self.layer}: the net calls it less often for this image than for others")

    def _run(self, images: Tensor, last: int | None) -> None:
        uses = 0

        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal uses
            uses += 1
            if not isinstance(output, Tensor):
                given = type(output).__name__
                raise ProbeError(f"layer {self.layer}: gives {given}, not a tensor; choose one inside it")
            if uses == last:
                raise _Reached(output)
            if last is None:
                self.uses = uses

        handle = self.module.register_forward_hook(hook)
        try:
            self.model(images)
        finally:
            handle.remove()


class _Reached(Exception):
    """Carries a layer's output out of the middle of a net."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _check(prior: str | Prior, steps: int, octaves: int, ratio: float, jitter: int) -> Prior:
    if isinstance(prior, str) and prior not in PRIORS:
        raise UnknownName(f"prior {prior!r}: {nearest(prior, PRIORS)}")
    limits = (("steps", steps, 1), ("octaves", octaves, 1), ("ratio", ratio, 1), ("jitter", jitter, 0))
    for name, value, least in limits:
        if value < least:
            raise ProbeError(f"{name}={value}: at least {least} is needed")
    return PRIORS[prior] if isinstance(prior, str) else prior


def _parts(target: Targets) -> tuple[str, list[Any]]:
    """The layer, "" for the net's answer, and the units or classes in it: none for the whole layer."""
    if isinstance(target, str):
        return target, []
    if isinstance(target, int):
        return "", [target]
    if len(target) == 2 and isinstance(target[0], str):
        return target[0], [target[1]]
    if not target or not all(isinstance(k, int) for k in target):
        raise ProbeError(f"target: a class, classes, a layer, or a layer and a unit is needed, found {target!r}")
    return "", list(target)


def _start(
    model: nn.Module,
    target: Targets,
    images: Tensor | None,
    input_size: Sequence[int] | None,
    generator: torch.Generator,
    unit: float,
) -> Tensor:
    """The images to start from, as `probe.images_for` has them: those given, or the same noise for each class."""
    if images is None:
        size = input_size or getattr(model, "input_size", None)
        if size is None:
            raise ProbeError("images: this net does not tell its input size; give input_size=(C, H, W) or images")
        count = max(1, len(_parts(target)[1]))
        images = START_NOISE * unit * torch.randn(1, *size, generator=generator).repeat(count, 1, 1, 1)
    return probe.images_for(model, images)


def _resize(images: Tensor, sides: Sequence[int]) -> Tensor:
    """Bilinear, and antialiased where images shrink."""
    same = tuple(images.shape[2:]) == tuple(sides)
    return images if same else F.interpolate(images, tuple(sides), mode="bilinear", antialias=True)


def contrast(bounds: Bounds | None) -> float:
    """A photograph's standard deviation in what a net takes: about a quarter of the way from black to white.

    Some nets take pixels of deviation 1, others of 60 around a mean image. Without bounds it is 1.
    """
    return 1.0 if bounds is None else (bounds[1] - bounds[0]).mean().item() / 4


def clamp(images: Tensor, bounds: Bounds) -> Tensor:
    """Pixels held between black and white; where these differ from pixel to pixel, they are resized to the image."""
    low, high = (b.to(images) if b.shape[2:] == (1, 1) else _resize(b.to(images), images.shape[2:]) for b in bounds)
    return images.clamp(low, high)


def pictures(images: Tensor, prepare: "Preparation | None") -> Any:
    """Standardised images (N, C, H, W) as arrays of 0…1 for matplotlib: (N, H, W, 3).

    Where they are of another size than a `prepare` with a mean for each pixel, that mean is resized.
    """
    if prepare is None:
        images = images.detach().cpu().float()
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        shown = (images - low) / (high - low).clamp_min(TINY)
    else:
        black, white = (_resize(b, images.shape[2:]) if b.shape[2] > 1 else b for b in prepare.bounds)
        shown = ((images.detach().cpu() - black) / (white - black)).clamp(0, 1)
    return shown.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
