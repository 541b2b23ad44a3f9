"""The `repro` command as a person meets it: help, exit codes, one line for an error, tables that survive a pipe."""

import sys
from pathlib import Path

import pytest
from helpers import TINY_TOML, own_set, register_tiny

from repro import cli, records
from repro.errors import ReproError
from repro.records import read, write

Run = tuple[int, str, str]


class Command:
    """Calls `repro` in this process: exit code, stdout, stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: str) -> Run:
        self.monkeypatch.setattr(sys, "argv", ["repro", *arguments])
        self.capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        return code, *self.capfd.readouterr()


@pytest.fixture
def repro(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "80")
    return Command(monkeypatch, capfd)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with the tiny recipe at one epoch."""
    register_tiny()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY_TOML.replace("epochs = 6", "epochs = 1"))
    return tmp_path


TRAIN = ("train", "tiny.toml", "--threads", "1")
COMMANDS = [[], ["train"], ["recipes"], ["models"], ["compare"], ["records"], ["doctor"], ["data"], ["bench"]]
COMMANDS += [["receptive-field"], ["evaluate"], ["predict"], ["transfer"], ["weights"], ["claims"], ["run"]]
COMMANDS += [["data", c] for c in ("prepare", "make-imagenet", "list", "check")]
COMMANDS += [["bench", c] for c in ("train", "loader")]
COMMANDS += [["weights", c] for c in ("list", "make")]
COMMANDS += [["claims", c] for c in ("check", "update")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(command: list[str], repro: Command) -> None:
    """Catches a command or an option without a word of explanation."""
    code, out, err = repro(*command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: repro" in out
    rows = [line.strip("│ ") for line in out.splitlines() if line.startswith("│ ")]
    assert all(len(row.split()) > 3 or not row.startswith("--") for row in rows), out
    if command in (["train"], ["compare"], ["data", "prepare"], ["bench", "train"], ["bench", "loader"]):
        assert f"Try repro {' '.join(command)} " in out.replace("`", "")


def test_the_start_says_where_to_begin(repro: Command) -> None:
    """Catches an empty answer to the bare command."""
    _, out, _ = repro()
    assert "repro doctor" in out
    assert "--debug" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "lenet_5"], 2, "recipe 'lenet_5': did you mean lenet5"),
        (["train", "lenet5", "--set", "epoch=1"], 2, "lenet5.toml: unknown key 'epoch': did you mean epochs?"),
        (["train", "lenet5", "--set", "model=lenet"], 2, "no model is called 'lenet'; did you mean lenet5"),
        (["train", "lenet5", "--set", "data.name=mnits"], 2, "data set 'mnits': did you mean mnist"),
        (["train", "lenet5-modern", "--set", "data.name=digits", "--set", "data.border=1"], 2, "lenet5_modern expects"),
        (["train", "lenet5", "--device", "cuda:77"], 6, "device 'cuda:77' is not there"),
        (["compare", "lenet", "lenet5"], 2, "no model is called 'lenet'; did you mean lenet5"),
        (["compare", "lenet5", "lenet5_modern:classes=3"], 2, "lenet5_modern has no option 'classes'"),
        (["compare", "lenet5", "lenet5_modern:"], 2, "expected NAME:KEY=VALUE,KEY=VALUE, found 'lenet5_modern:'"),
        (["data", "prepare", "mnits"], 2, "data set 'mnits': did you mean mnist"),
        (["data", "check", "broken"], 3, "not readable as parquet"),
        (["records", "--records-dir", "damaged"], 4, "damaged/r-0.json: not a record"),
    ],
)
def test_errors_are_one_line_with_their_own_exit_code(
    arguments: list[str], code: int, message: str, repro: Command, data: Path, tiny: Path
) -> None:
    """Catches a stack trace, an error on stdout, and 1 for everything."""
    (data / "broken").mkdir()
    (data / "broken" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    (tiny / "damaged").mkdir()
    (tiny / "damaged" / "r-0.json").write_bytes(b"{")
    found, out, err = repro(*arguments)
    assert (found, out) == (code, "")
    last = err.splitlines()[-1]
    assert last.startswith("repro: ")
    assert message in last
    assert "Traceback" not in err


def test_debug_shows_where_it_was_raised(repro: Command) -> None:
    """Catches a --debug that is swallowed, or needs to stand in one place."""
    for arguments in (["--debug", "train", "nothing"], ["train", "nothing", "--debug"]):
        with pytest.raises(ReproError):
            repro(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["train", "lenet5", "--seed", "-1"], ["train", "lenet5", "--threads", "0"], ["tarin"],
     ["train", "lenet5", "--save-every", "-1"], ["data", "prepare", "digits", "--size", "0"]],
)  # fmt: skip
def test_wrong_usage_is_2(arguments: list[str], repro: Command) -> None:
    """Catches a negative seed or no thread at all that reaches torch."""
    code, out, err = repro(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: repro" in err


def test_a_run_writes_its_record_and_says_where(repro: Command, tiny: Path) -> None:
    """Catches progress on stdout, a record under another name, and a finished run that is trained again."""
    code, out, err = repro(*TRAIN)
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("records/tiny-0.json: test error ")
    assert "epoch   1/1 " in err
    record = read(tiny / "records" / "tiny-0.json")
    assert (record.status, record.command) == ("complete", "repro train tiny.toml --threads 1")
    (tiny / "records" / "tiny-0.json").unlink()
    again = repro(*TRAIN)
    assert again[:2] == (0, out)
    assert "runs/tiny-0: already complete" in again[2]
    assert read(tiny / "records" / "tiny-0.json") == record


def test_what_a_run_predicts_is_written_beside_its_record(repro: Command, tiny: Path) -> None:
    """Catches a file in another place than the one told, and a run that is asked for before it is there."""
    assert repro("predict", "tiny.toml")[0] == 4
    repro(*TRAIN)
    code, out, _ = repro("predict", "tiny.toml")
    assert (code, out) == (0, "records/predictions/tiny-0.json\n")
    assert (tiny / out.strip()).exists()


def test_seeds_and_overrides_make_runs_of_their_own(repro: Command, tiny: Path) -> None:
    """Catches two experiments that share a folder or a record."""
    code, out, _ = repro(*TRAIN, "--seed", "1", "--seed", "4", "--set", "batch_size=64", "--set", "title='a/b'")
    assert code == 0
    names = [f"tiny+batch_size=64+title=_a_b_-{seed}" for seed in (1, 4)]
    assert [line.split(": ")[0] for line in out.splitlines()] == [f"records/{n}.json" for n in names]
    assert sorted(p.name for p in (tiny / "runs").iterdir()) == names


def test_a_changed_recipe_is_not_the_run_that_was_finished(repro: Command, tiny: Path) -> None:
    """Catches "already complete" for a recipe that was edited since."""
    repro(*TRAIN)
    (tiny / "tiny.toml").write_text((tiny / "tiny.toml").read_text().replace("0.05", "0.02"))
    code, _, err = repro(*TRAIN)
    assert code == 2
    assert "runs/tiny-0: holds a run of tiny as it was before; remove it to run anew" in err


def test_nan_ends_with_5_and_one_line(repro: Command, tiny: Path) -> None:
    """Catches a run that trains on with NaN to exit code 0."""
    code, out, err = repro(*TRAIN, "--set", "optimizer.learning_rate=1e30", "--set", "epochs=3")
    assert (code, out) == (5, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("repro: tiny+optimizer.learning_rate=1e30+epochs=3 seed 0: ")


def test_tables_are_whole_in_a_pipe(repro: Command, tiny: Path) -> None:
    """Catches columns squeezed into slivers at 80 characters, with words cut and stacked."""
    name = "a_recipe_with_a_rather_long_name+optimizer.learning_rate=0.001"
    repro(*TRAIN)
    record = read(tiny / "records" / "tiny-0.json")
    git = {"commit": "c" * 40, "dirty": True}
    write(record.model_copy(update={"recipe": name, "git": git}), tiny / "records" / records.file_of(name, 0))
    code, out, _ = repro("records", "--records-dir", "records")
    assert code == 0
    header, first, second = out.splitlines()
    assert [h.strip() for h in header.split("  ") if h.strip()] == [
        "recipe", "seed", "status", "epochs", "test error (last)", "best (peeked)", "seconds", "device", "commit"
    ]  # fmt: skip
    assert first.startswith(name)
    assert first.rstrip().endswith("cccccccc (does not count)")
    assert second.startswith("tiny ")
    assert len(repro("records", "tiny", "--records-dir", "records")[1].splitlines()) == 2
    for listing, expected in ((("recipes",), "lenet5-modern"), (("data", "list"), "mnist")):
        lines = repro(*listing)[1].splitlines()
        widths = {len(line) for line in lines}
        assert len(widths) == 1, "a row was folded"
        assert any(line.startswith(expected) for line in lines)


def test_models_are_listed_with_their_parameters(repro: Command) -> None:
    """Catches a count that is typed in."""
    _, out, _ = repro("models")
    (row,) = [line for line in out.splitlines() if line.startswith("lenet5_modern")]
    assert row.split()[1:3] == ["1×28×28", "44,426"]


def test_compare_shows_differences_and_all_on_request(repro: Command) -> None:
    """Catches --all that changes nothing, options lost on the way, and lines broken at the terminal's width."""
    nets = ("lenet5", "lenet5_modern:num_classes=5")
    code, out, err = repro("compare", *nets)
    assert (code, err) == (0, "")
    assert any(len(line) > 80 for line in out.splitlines())
    assert "lenet5_modern:num_classes=5" in out.splitlines()[0]
    everything = repro("compare", *nets, "--all")[1]
    count = out.splitlines()[-1]  # "D different, E equal"
    assert everything.splitlines()[-1] == count
    assert len(everything.splitlines()) - len(out.splitlines()) == int(count.split()[2]) > 0


def test_data_is_prepared_listed_and_checked(repro: Command, data: Path, cache: Path) -> None:
    """Catches a split that is left out, and a set of one's own that the list does not know."""
    own_set(data)
    code, out, _ = repro("data", "prepare", "pets")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["pets test", "pets train"]
    assert [line.split(": ")[-1] for line in repro("data", "check", "pets")[1].splitlines()] == ["whole", "whole"]
    (row,) = [line for line in repro("data", "list")[1].splitlines() if line.startswith("pets")]
    assert row.split() == ["pets", "cache", "your", "own,", "under", "REPRO_DATA"]
    assert repro("data", "prepare", "pets", "--size", "3", "--force")[1].startswith("pets test: 3 images 3×3×3")
