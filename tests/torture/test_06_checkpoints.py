"""Row 6: damaged, swapped and foreign checkpoints."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import told
from helpers import register_tiny, tiny_recipe
from processes import RUN, STEPS, STOPPED, Nursery, differences, part, train_tiny
from tier import Finding, amount

from repro.errors import CheckpointError
from repro.records import read
from repro.training import load_recipe, setup, train
from repro.training.checkpoint import Checkpoint, load, load_latest, save
from repro.training.loop import Trainer


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """The run's folder in a copy, `tmp_path / "runs" / RUN`."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / RUN


def damages(draw: random.Random, whole: bytes, flips: int, cuts: int) -> list[bytes]:
    """The content with one bit flipped each, or cut short, at drawn places, none twice."""
    found = []
    for bit in draw.sample(range(8 * len(whole)), flips):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        found.append(bytes(flipped))
    return found + [whole[:length] for length in draw.sample(range(len(whole)), cuts)]


@pytest.mark.parametrize(("kind", "flips", "cuts"), [("safetensors", 200, 80), ("json", 200, 80), ("record", 100, 40)])
def test_damaged(
    kind: str, flips: int, cuts: int, run: Path, finding: Finding, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches what torch.load and safetensors take without a word in 195 and 200 of 200 trials, and a start from the
    first step.
    """
    path, older = part(run, kind), load(part(run, "json", STOPPED - 2))
    whole, noticed = path.read_bytes(), 0
    before = read(path) if kind == "record" else None
    for damaged in damages(random.Random(kind), whole, flips, cuts):
        path.write_bytes(damaged)
        if kind == "record":
            with pytest.raises(CheckpointError, match=r"record\.json: (damaged|not a record): "):
                assert read(path) != before
        else:
            found = load_latest(run)
            assert found
            assert found.state == older.state
            assert all(torch.equal(t, found.tensors[name]) for name, t in older.tensors.items())
            error = capfd.readouterr().err
            assert error.count("\n") == 1
            assert re.search(rf"^repro: {run}/step-0+19.*: damaged: .*; using step-0+18 instead$", error)
        noticed += 1
    path.write_bytes(whole)
    assert read(path) == before if kind == "record" else load_latest(run)
    what = {"safetensors": "file of tensors", "json": "manifest", "record": "record"}[kind]
    used = "each named" if kind == "record" else "the checkpoint before used each time, with a warning"
    finding(f"{flips} flipped bits and {cuts} cuts of a {what}", f"{noticed} of {flips + cuts} noticed, {used}")


def test_resumed_from_damage(
    tmp_path: Path, stopped: Path, nursery: Nursery, undisturbed: Path, finding: Finding
) -> None:
    """Catches a resume from damaged weights, one that loses more than an interval, and one that fails for a record that
    the checkpoints can replace.
    """
    draw, runs = random.Random(0), amount(3, 24)
    for number in range(runs):
        folder, kind = tmp_path / str(number), ("safetensors", "json", "record")[number % 3]
        shutil.copytree(stopped, folder)
        path = part(folder / "runs" / RUN, kind)
        whole = path.read_bytes()
        path.write_bytes(draw.choice(damages(draw, whole, 1, 1)))
        train_tiny(nursery, folder, "--resume")
        error = (folder / "stderr").read_text() if nursery.wait() == 0 else pytest.fail((folder / "stderr").read_text())
        (warning,) = [line for line in error.splitlines() if line.startswith("repro: ")]
        assert warning.endswith("; it is written anew" if kind == "record" else "; using step-000000018 instead")
        assert differences(folder, undisturbed) == []
    finding(f"{runs} damaged runs resumed", "each with a warning; 0 differences from an undisturbed run")


def test_nothing_left(tmp_path: Path, stopped: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a silent start from the first step, which looks like a resumed run; files that are removed although they
    might be rescued; and the weights of an earlier epoch measured as the result of the last one.
    """

    def no_manifest(path: Path) -> None:
        for kind in ("json", "safetensors"):
            part(path, kind, STOPPED - 2).unlink()
        part(path, "json").write_bytes(b"")

    ways: dict[str, Callable[[Path], Any]] = {
        "none of the checkpoints is whole": lambda path: [p.write_bytes(b"x") for p in path.glob("*.safetensors")],
        "one checkpoint, damaged": no_manifest,
        "no checkpoint, and a record of an epoch": lambda path: [p.unlink() for p in path.glob("step-*")],
    }
    for number, act in enumerate(ways.values()):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder)
        act(folder / "runs" / RUN)
        there = {p.name: p.read_bytes() for p in (folder / "runs" / RUN).glob("[!.]*")}
        train_tiny(nursery, folder, "--resume")
        assert nursery.wait() == 4, (folder / "stderr").read_text()
        assert re.search(rf"no (older )?checkpoint is .*remove (the folder|runs/{RUN}) to start anew$", told(folder))
        assert {p.name: p.read_bytes() for p in (folder / "runs" / RUN).glob("[!.]*")} == there
    empty = tmp_path / "empty"
    empty.mkdir()
    train_tiny(nursery, empty, "--resume")
    assert nursery.wait() == 0
    assert f"runs/{RUN}: no checkpoint is there; starting at the first step\n" in (empty / "stderr").read_text()
    finished = tmp_path / "finished"
    shutil.copytree(undisturbed, finished)
    path = max((finished / "runs" / RUN).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    nursery.start(finished, "evaluate", "tiny.toml", "--views", "one")
    assert nursery.wait() == 4, (finished / "stderr").read_text()
    assert re.search(r"epoch of its last whole checkpoint is 5, its record's 6", (finished / "stderr").read_text())
    finding(
        f"{len(ways)} runs without a whole checkpoint; one evaluated whose last is damaged",
        f"{len(ways) + 1} refused with a line, no file changed; a resume of nothing says that it starts anew",
    )


def test_swapped(run: Path, finding: Finding, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches tensors and places in training that are each whole but do not belong together, and an older checkpoint
    under a newer name.
    """
    newer, older = ({kind: part(run, kind, s) for kind in ("json", "safetensors")} for s in (STOPPED - 1, STOPPED - 2))
    swaps = 0
    for kinds in (["json"], ["safetensors"], ["json", "safetensors"]):
        for ours, theirs in ((newer, older), (older, newer)):
            whole = {path: path.read_bytes() for path in ours.values()}
            for kind in kinds:
                ours[kind].write_bytes(theirs[kind].read_bytes())
            with pytest.raises(CheckpointError, match="damaged"):
                load(ours["json"])
            found = load_latest(run)
            assert found
            assert found.state["epoch"] * STEPS + found.state["step"] == STOPPED - (1 if theirs is newer else 2)
            for path, content in whole.items():
                path.write_bytes(content)
            swaps += 1
    # Whole in itself, tensors and all: only its name is another's.
    for path in older.values():
        path.rename(path.with_name(path.name.replace("0018", "0025")))
    with pytest.raises(CheckpointError, match="damaged: it is the manifest of step 18"):
        load(run / "step-000000025.json")
    found = load_latest(run)
    assert found
    assert found.state["step"] == (STOPPED - 1) % STEPS
    finding(f"{swaps} swaps of files between two checkpoints, and one under another name", f"{swaps + 1} noticed")


State, Tensors = dict[str, Any], dict[str, torch.Tensor]
MOMENTUM = "optimizer/layers.0.weight/momentum_buffer"


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Tensors, State], None]:
    """Change, add or leave out a tensor."""

    def act(tensors: Tensors, state: State) -> None:
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors.get(name, torch.zeros(2)))

    return act


def field(name: str, *value: Any) -> Callable[[Tensors, State], None]:
    """Set a field of the state, or leave it out."""

    def act(tensors: Tensors, state: State) -> None:
        state.pop(name)
        state.update((name, v) for v in value)

    return act


# By what the message has to name first.
MISMATCHES: dict[str, Callable[[Tensors, State], None]] = {
    "recipe is other, this run's is tiny": field("recipe", "other"),
    "seed is 1, this run's is 0": field("seed", 1),
    "seed is None, this run's is 0": field("seed"),
    "recipe_digest is 0": field("recipe_digest", "0" * 64),
    "train_digest is 0": field("train_digest", "0" * 64),
    "test_digest is 0": field("test_digest", "0" * 64),
    "device is cuda, this run's is cpu": field("device", "cuda"),
    "precision is bf16, this run's is float32": field("precision", "bf16"),
    "threads is 16, this run's is 1": field("threads", 16),
    "model/layers.0.weight is not there, this run's is float32 4×1×5×5": tensor("model/layers.0.weight", None),
    "model/layers.0.weight is float64 4×1×5×5, this": tensor("model/layers.0.weight", torch.Tensor.double),
    "model/layers.0.weight is float32 4×1×5×4, this": tensor("model/layers.0.weight", lambda t: t[..., 1:]),
    "model/layers.1.running_var is not there": tensor("model/layers.1.running_var", None),
    "model/layers.9.weight is float32 2, this run's is not there": tensor("model/layers.9.weight", lambda t: t),
    "model/../../../escape is float32 2, this": tensor("model/../../../escape", lambda t: t),
    f"{MOMENTUM} is not there": tensor(MOMENTUM, None),
    f"{MOMENTUM} is float64 4×1×5×5, this": tensor(MOMENTUM, torch.Tensor.double),
    f"{MOMENTUM} is float32 100, this": tensor(MOMENTUM, torch.Tensor.flatten),
    f"{MOMENTUM}s is float32 2, this run's is not there": tensor(f"{MOMENTUM}s", lambda t: t),
    "sums/loss is not there": tensor("sums/loss", None),
    "sums/wrong is float32 alone, this run's is int64 alone": tensor("sums/wrong", torch.Tensor.float),
    "history: Field required": field("history"),
    "history is [], after epoch 1 it would be [1]": field("history", []),
    "history.0.test_loss: Field required": lambda _, state: state["history"][0].pop("test_loss"),
    "epoch: Input should be greater than or equal to 0": field("epoch", -1),
    "step is 14, after epoch 1 it would be 13": field("step", 14),
    "count is 3, after epoch 1 it would be 192": field("count", 3),
    "seconds: Input should be a valid number": field("seconds", "long"),
    "restarts: Input should be a valid integer": field("restarts", 0.5),
    "git: Input should be a valid dictionary": field("git", "clean"),
}


@pytest.fixture
def _one_thread() -> None:
    register_tiny()
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_foreign(run: Path, tmp_path: Path, finding: Finding) -> None:
    """Catches a resume that goes on with another learning rate under the old name, of which one half saw other
    pictures, or whose momentum starts at zero; and a stack trace for what is not there.
    """
    whole = load(part(run, "json"))
    recipe = load_recipe(tmp_path / "tiny.toml")
    for number, (message, change) in enumerate(MISMATCHES.items()):
        found = load(part(run, "json"))
        change(found.tensors, found.state)
        folder = tmp_path / f"foreign-{number}"
        save(folder, STOPPED - 2, whole)
        save(folder, STOPPED - 1, found)
        there = sorted(p.name for p in folder.iterdir())
        with pytest.raises(CheckpointError) as e:
            train(recipe, run_dir=folder, resume=True)
        expected = rf"checkpoint of \w+ seed \w+: {re.escape(message)}.*; resume with what .* another --run-dir$"
        assert re.match(expected, str(e.value)), str(e.value)
        assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == there
    both = load(part(run, "json"))
    for name in ("seed is 1, this run's is 0", "threads is 16, this run's is 1", "sums/loss is not there"):
        MISMATCHES[name](both.tensors, both.state)
    save(tmp_path / "both", 1, both)
    with pytest.raises(CheckpointError, match="seed is 1"):
        train(recipe, run_dir=tmp_path / "both", resume=True)
    finding(
        f"{len(MISMATCHES)} checkpoints that differ from the run", f"{len(MISMATCHES)} named by the first difference"
    )


@pytest.mark.usefixtures("_one_thread")
def test_of_another_run(tmp_path: Path, finding: Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the same for runs that are changed, not checkpoints: seed, name, batch, rate, pictures, threads, net."""
    trainer = Trainer(tiny_recipe(), 0, torch.device("cpu"))
    trainer.train_epoch(lambda: None)
    saved = trainer.snapshot()
    save(tmp_path, 7, Checkpoint(saved.tensors, saved.state | {"started": "", "git": {}}))
    refused: list[str] = []

    def refuses(message: str, seed: int = 0, **changes: Any) -> None:
        with pytest.raises(CheckpointError, match=f"checkpoint of tiny seed 0: {message}.*--run-dir$"):
            train(tiny_recipe(**changes), seed, run_dir=tmp_path, resume=True)
        refused.append(message)

    refuses("seed is 0, this run's is 1", seed=1)
    refuses("recipe is tiny, this run's is other", name="other")
    refuses("recipe_digest is", batch_size=16)
    refuses("recipe_digest is", optimizer={"learning_rate": 0.06, "momentum": 0.9})
    real, other = setup.open_set, {"train": "test", "test": "train"}
    for split in other:
        with monkeypatch.context() as patch:
            patch.setattr(setup, "open_set", lambda n, s, split=split, **how: real(n, other[s] if s == split else s))
            refuses(f"{split}_digest is")
    torch.set_num_threads(2)
    refuses("threads is 1, this run's is 2")
    torch.set_num_threads(1)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with monkeypatch.context() as patch:
        patch.setattr(setup, "get_model", lambda name: linear)
        refuses("model/1.bias is not there, this run's is float32 10")
    train(tiny_recipe(), run_dir=tmp_path, resume=True)
    finding(f"a checkpoint resumed by {len(refused)} other runs", f"{len(refused)} refused by the first difference")
