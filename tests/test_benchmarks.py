"""What the benchmarks rest on: turns, ratios, verdicts, and a baseline that is what it says."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import augmentation, readme, run
from benchmarks.harness import OURS, Comparison, alternate, require_close
from benchmarks.tutorial import dataset
from repro.data import load
from repro.data.augmentation import Augmentation, Batches
from repro.data.color import ColorPCA
from repro.training import load_recipe


def test_sides_take_turns_and_the_warm_up_is_forgotten() -> None:
    """Catches a harness that runs one side after the other, or counts the first, slow round."""
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    kept = alternate("x", {"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert kept == {"a": [4.0, 5.0, 8.0], "b": [3.0, 6.0, 7.0]}


def test_ratio_is_against_the_fastest_other_side() -> None:
    """Catches a ratio against the slower of two baselines, or of a maximum or mean."""
    c = Comparison("s", "d", {OURS: [2.0, 9.0, 1.0], "slow": [8.0, 8.0, 8.0], "fast": [9.0, 3.0, 9.0]}, goal=3.0)
    assert (c.baseline, c.ratio, c.median_ratio) == ("fast", 3.0, 4.5)
    assert c.reached
    assert Comparison("s", "d", c.seconds, goal=3.1).reached is False
    assert Comparison("s", "d", c.seconds, limit=0.9).reached is False
    assert Comparison("s", "d", c.seconds).reached is None


def test_share_of_a_peak() -> None:
    """Catches a share taken of the baseline's time, or of another peak."""
    c = Comparison("s", "d", {OURS: [2.0], "b": [4.0]}, flop=100.0, peaks={"convolution": 200.0})
    assert c.share("convolution") == 0.25
    assert c.share("matrix product") is None


def test_different_work_is_refused() -> None:
    """Catches a check that lets NaN pass, or compares absolute differences."""
    a = torch.tensor([1e-6, 2e-6])
    require_close("x", a, a * (1 + 1e-4), tolerance=1e-3)
    for wrong in (a * 1.1, a * torch.nan):
        with pytest.raises(AssertionError, match="not the same work"):
            require_close("x", wrong, a, tolerance=1e-3)


def test_augmented_pixels_are_torchvisions() -> None:
    """Catches a baseline, or a side of ours, that crops, mirrors or standardises differently."""
    images = load("shapes")
    batches = Batches(images, images.mean, images.std, augmentation=Augmentation(crop_padding=4, flip=True))
    augmentation.require_torchvision_pixels(images, batches)
    wrong = Batches(images, images.mean, (0.5, 0.5, 0.5), augmentation=batches.augmentation)
    with pytest.raises(AssertionError):
        augmentation.require_torchvision_pixels(images, wrong)


def test_pixels_with_colour_noise_are_torchvisions() -> None:
    """Catches noise of another strength on one side, and a chain of transforms without one of the parts."""
    images = load("shapes")
    pca = ColorPCA.of(images)
    noisy = Augmentation(crop=20, flip=True, color_noise=0.1)
    batches = Batches(images, images.mean, images.std, augmentation=noisy, pca=pca)
    augmentation.require_torchvision_pixels(images, batches)
    transform = augmentation.pipeline(images, noisy, pca).transform  # type: ignore[attr-defined]
    names = [type(t).__name__ for t in transform.transforms]
    assert names == ["RandomCrop", "RandomHorizontalFlip", "ToTensor", "ColorNoise", "Normalize"]
    assert transform.transforms[0].size == (20, 20)
    grey = torch.full((3, 2, 2), 0.5)
    drawn = torch.stack([transform.transforms[3](grey) - grey for _ in range(4000)])[:, :, 0, 0].double()
    along = (drawn @ pca.vectors).var(0)
    torch.testing.assert_close(along, (0.1 * pca.eigenvalues) ** 2, rtol=0.15, atol=0)


def test_tutorial_has_the_recipe_s_augmentation() -> None:
    """Catches a baseline spared the crop and flip, or burdened with them where the recipe has none."""
    images = load("shapes")
    transform = dataset(images, load_recipe("alexnet-cifar10")).transform  # type: ignore[attr-defined]
    names = [type(t).__name__ for t in transform.transforms]
    assert names == ["RandomCrop", "RandomHorizontalFlip", "ToTensor", "Normalize"]
    plain = dataset(load("digits"), load_recipe("lenet5-modern")).transform  # type: ignore[attr-defined]
    assert [type(t).__name__ for t in plain.transforms] == ["ToTensor", "Normalize"]


def test_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a run whose table or file lacks what was measured, where and with which versions."""
    measured = Comparison("a subject", "d", {OURS: [1.0], "b": [2.5]}, goal=2.0)
    monkeypatch.setitem(run.SUBJECTS, "fake", lambda rounds: [measured])
    run.main(["fake", "--output", str(tmp_path / "r.json")])
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["comparisons"][0]["ratio"] == 2.5
    assert written["comparisons"][0]["seconds"] == measured.seconds
    assert {"date", "git", "versions", "machine"} <= set(written)
    assert "2.50" in capsys.readouterr().out


def test_the_readme_shows_what_was_measured(tmp_path: Path) -> None:
    """Catches a figure typed or left over in the README, and a table that replaces what stands around it."""
    report = json.loads(run.RESULTS.read_text("utf-8"))
    text = readme.README.read_text("utf-8")
    assert readme.START + readme.table(report) + readme.END in text
    copy = tmp_path / "README.md"
    copy.write_text(text, "utf-8")
    report["comparisons"][0]["seconds"]["ours"] = [1234.5]
    readme.write(report, copy)
    assert "1.23e+03 s" in copy.read_text("utf-8")
    assert copy.read_text("utf-8").partition(readme.END)[2] == text.partition(readme.END)[2]
