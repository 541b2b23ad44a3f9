"""Row 5, all but disks: no memory, 64 open files, no shared memory, odd paths, a full disk under the log."""

import os
import re
import shutil
from pathlib import Path

import pytest
from faults import PATCH, mounted, told
from helpers import TINY_TOML, encode, random_images, write_parquet
from PIL import Image
from processes import RUN, STEPS, TRAIN, Nursery, differences, resume_tiny, train_tiny
from tier import Finding, amount

from repro.records import read
from repro.training.checkpoint import load_latest

# What asks for more than any machine gives, by whom, and how much of it is said: 2 to the 50 bytes.
ASKING = {
    "numpy": ("numpy.empty(2**50, numpy.uint8)", "1.0 PiB, not to be had on this machine"),
    "PyTorch": ("torch.empty(2**50, dtype=torch.uint8)", "1.0 PiB, not to be had on this machine"),
    "Arrow": ("pyarrow.allocate_buffer(2**50)", "1.0 PiB, not to be had on this machine"),
    "Python": ("bytearray(2**60)", "what was asked for, not to be had on this machine"),
    "a GPU": (
        "raise_(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of "
        "79.11 GiB of which 3.00 GiB is free.'))",
        "20.0 GiB, not to be had on the GPU, of 79.11 GiB",
    ),
    "a GPU's library": (
        "raise_(RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'))",
        "what was asked for (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`), not to be "
        "had on the GPU",
    ),
}
STAGES = (
    "repro.training.setup:open_set",
    "repro.training.setup:get_model",
    "repro.training.loop:Trainer.step",
    "repro.training.loop:Trainer.evaluate",
    "repro.training.loop:Trainer.snapshot",
    "repro.training.checkpoint:save",
)
GREEDY = """
import numpy, pyarrow, torch
def raise_(error):
    raise error
calls = iter(range(1000))
before({stage!r}, lambda *_: {asking} if next(calls) == {after} else None)
"""


def test_out_of_memory(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a stack trace of whichever library was refused memory, a recipe or a file that is blamed for it, and a
    checkpoint that suffers.
    """
    whole = [(stage, who) for stage in STAGES for who in ASKING]
    cases = amount(list(zip(STAGES, ASKING, strict=True)), whole)
    going_on = 0
    for number, (stage, who) in enumerate(cases):
        folder, (asking, amounts) = tmp_path / str(number), ASKING[who]
        folder.mkdir()
        after = {"open_set": 1, "get_model": 0, "Trainer.step": 30}.get(stage.partition(":")[2], 3)
        prelude = PATCH + GREEDY.format(stage=stage, asking=asking, after=after)
        train_tiny(nursery, folder, "--save-every", "0" if after == 30 else "60", prelude=prelude)
        assert nursery.wait() == 6, (folder / "stderr").read_text()
        line = told(folder, begun=after > 1)
        assert line.startswith(f"memory: {amounts}"), line
        if after > 1:
            found = load_latest(folder / "runs" / RUN)
            assert found
            assert found.state["epoch"] * STEPS + found.state["step"] >= 26
            resume_tiny(nursery, folder)
            assert differences(folder, undisturbed) == []
            going_on += 1
    finding(
        f"memory refused to {len(ASKING)} libraries at {len(STAGES)} places, {len(cases)} runs (of GPUs injected)",
        f"one line with the amount and exit 6; {going_on} resumed, 0 differences",
    )


LENET = ("train", "lenet5-modern", "--set", "data.name=digits")
TOO_LARGE = [
    ([*LENET, "--set", "data.size=100000"], f"{1500 * 100_000**2 / 2**40:.1f} TiB"),
    ([*LENET, "--set", "data.border=100000"], f"{1500 * 200_028**2 / 2**40:.1f} TiB"),
    ([*LENET, "--set", "model_options.num_classes=1000000000000"], f"{84e12 * 4 / 2**40:.1f} TiB"),
    ([*TRAIN, "--set", "data.size=1000000000"], "what was asked for (array is too big"),
    ([*TRAIN, "--set", f"data.size={10**20}"], "what was asked for (Maximum allowed dimension exceeded)"),
    ([*TRAIN, "--set", "data.border=10000000000"], "what was asked for (Storage size calculation overflowed"),
    ([*TRAIN, "--set", "augmentation.crop_padding=100000"], f"{400 * 200_028**2 / 2**40:.1f} TiB"),
    (["data", "prepare", "digits", "--size", "200000"], f"{1500 * 200_000**2 / 2**40:.1f} TiB"),
]


def test_more_than_there_is(tmp_path: Path, nursery: Nursery, finding: Finding) -> None:
    """Catches a stack trace of numpy's or PyTorch's for a slip in the number of pixels, and 1 for an exit code."""
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    for arguments, asked in TOO_LARGE:
        nursery.start(tmp_path, *arguments)
        assert nursery.wait() == 6, (tmp_path / "stderr").read_text()
        assert told(tmp_path).startswith(f"memory: {asked}"), told(tmp_path)
        assert not list(tmp_path.rglob("step-*"))
    finding(
        f"{len(TOO_LARGE)} commands that ask for too much", "one line with the amount and exit 6, before the first step"
    )


LIMITED = """
import resource
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {more}, taken + {more}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing tells how much memory a process has")
def test_a_limit_of_memory(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches what only a real limit shows: a file that is called damaged, and prepared again, for lack of memory."""
    mebibytes = amount([0, 4], [0, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64])
    stopped = 0
    for more in mebibytes:
        folder = tmp_path / str(more)
        folder.mkdir()
        train_tiny(nursery, folder, prelude=LIMITED.format(more=int(more * 2**20)))
        if nursery.wait() == 0:
            assert differences(folder, undisturbed) == []
            continue
        assert told(folder, begun=True).startswith("memory: ")
        stopped += 1
        resume_tiny(nursery, folder)
        assert differences(folder, undisturbed) == []
    assert stopped
    finding(
        f"{len(mebibytes)} limits of memory, from none to {mebibytes[-1]} MiB more than at the start",
        f"{stopped} runs stopped with a line, and went on without the limit; the others ended; 0 differences",
    )


FEW = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))\n"
PLACES = "import os; os.environ.update(REPRO_DATA={data!r}, REPRO_CACHE={cache!r})\n"
EACH_A_SHARD = f"{PATCH}before('repro.data.imagenet:_jobs', lambda half, found, how: setattr(how, 'shard_size', 1))\n"
PREPARE = ("data", "prepare", "imagenet", "--source", "copy", "--partial", "--workers")


def write_many(folder: Path, count: int) -> None:
    """A set `pets` in `count` parquet files under `data`, and a copy of ImageNet of as many pictures in `copy`."""
    for number, pixels in enumerate(random_images(count, 16)):
        picture, label = encode(Image.fromarray(pixels)), number % 3
        write_parquet(folder / "data" / "pets" / f"train-{number:05d}-of-{count:05d}.parquet", [picture], [label])
        for split in ("train", "val")[: 2 if number < 3 else 1]:
            path = folder / "copy" / split / f"c{label}" / f"{number}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
    write_parquet(folder / "data" / "pets" / "test-00000-of-00001.parquet", [picture], [label])


def test_few_open_files(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a file that stays open for each shard or each part of a set, and a cache that is called damaged because
    no more files can be opened.
    """
    count = amount(65, 130)
    write_many(tmp_path, count)
    prelude = FEW.format(count=64) + PLACES.format(data="data", cache="cache") + EACH_A_SHARD
    loader = ("bench", "loader", "imagenet", "--seconds", "0", "--batch-size", "16")
    commands = [("data", "prepare", "pets"), ("data", "check", "pets"), (*PREPARE, "1"), ("data", "check", "imagenet")]
    for arguments in (*commands, loader):
        nursery.start(tmp_path, *arguments, prelude=prelude)
        assert nursery.wait() == 0, (tmp_path / "stderr").read_text()
    assert len(list((tmp_path / "cache").rglob(f"*-of-{count:05d}.arrow"))) == count
    limits, stopped = amount([4, 7, 64], [*range(4, 25), 32, 64]), 0
    for limit in limits:
        folder = tmp_path / str(limit)
        folder.mkdir()
        train_tiny(nursery, folder, prelude=FEW.format(count=limit))
        if nursery.wait() == 0:
            assert differences(folder, undisturbed) == []
            continue
        assert limit < 16
        assert re.search(r"Too many open files\)?; .*$", told(folder))
        stopped += 1
    finding(
        f"64 open files: training, and {count} parquet files and {count} shards made, checked and read; "
        f"{len(limits)} limits from {limits[0]} to {limits[-1]}",
        f"64 are enough; {stopped} of the limits stop a run with a line before the first step",
    )


NO_SEMAPHORE = """
def refuse(*_):
    raise FileNotFoundError(2, "No such file or directory")
before("multiprocessing.synchronize:SemLock.__init__", refuse)
"""


def test_no_shared_memory(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a stack trace from the pool of processes, and a run that needs what a container does not give it."""
    write_many(tmp_path, 4)
    with mounted(Path("/dev/shm"), "ro") as disk:
        prelude = (disk.enter if disk else PATCH + NO_SEMAPHORE) + PLACES.format(data="data", cache="cache")
        train_tiny(nursery, tmp_path, prelude=prelude)
        assert nursery.wait() == 0, (tmp_path / "stderr").read_text()
        assert differences(tmp_path, undisturbed) == []
        nursery.start(tmp_path, *PREPARE, "2", prelude=prelude + EACH_A_SHARD)
        assert nursery.wait() == 6, (tmp_path / "stderr").read_text()
        assert re.match("2 processes: they get no memory to share.*; give --workers 1$", told(tmp_path))
        nursery.start(tmp_path, *PREPARE, "1", prelude=prelude + EACH_A_SHARD)
        assert nursery.wait() == 0, (tmp_path / "stderr").read_text()
    finding("no /dev/shm: training, and preparing shards with 2 processes and 1", "only 2 processes need it: one line")


ODD = (
    "two words",
    "漢字 ünï 🐈",
    'quote\'d "twice"',
    "-dash",
    "%s {0} $HOME `id`; #",
    "[a]*?",
    "..dots..",
    "new\nline\tand tab",
    "bell\a and \x1b[31mcolour",
    os.fsdecode(b"\xff\xfe, which is not UTF-8"),
    "n" * 255,
    "/".join(["deep"] * 300),
)


def test_odd_paths(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a path that is taken for a pattern or an option, one that no record can hold, and one that makes two
    lines of a message or colours the terminal.
    """
    names = amount(ODD[-3:], ODD)
    write_many(tmp_path, 3)
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        (folder / name).mkdir(parents=True)
        shutil.copytree(tmp_path / "data", folder / name / "data")
        places = PLACES.format(data=f"{name}/data", cache=f"{name}/cache")
        utf8 = name.encode(errors="replace").decode() == name
        where = [f"--run-dir={name}/runs", f"--records-dir={name}/records", f"--trace={name}/traces"]
        train_tiny(nursery, folder, *where, prelude=places if utf8 else "")
        assert nursery.wait() == 0, (folder / "stderr").read_text(errors="replace")
        result = (folder / "stdout").read_bytes()
        assert result.startswith(os.fsencode(name)) or not re.search(rb"[\x00-\x1f]", result.strip())
        assert f"/records/{RUN}.json: test error".encode() in result
        assert differences(folder / name, undisturbed) == []
        assert read(folder / name / "records" / f"{RUN}.json").status == "complete"
        for command in ("prepare", "check"):
            nursery.start(folder, "data", command, "pets", prelude=places)
            assert nursery.wait() == (0 if utf8 else 6), (folder / "stderr").read_text(errors="replace")
            assert utf8 or "is not UTF-8" in told(folder)
        (folder / name / "records" / f"{RUN}.json").write_bytes(b"{")
        nursery.start(folder, "records", f"--records-dir={name}/records")
        assert nursery.wait() == 4
        assert f"/records/{RUN}.json: not a record: " in told(folder)
        assert not re.search(r"[\x00-\x08\x1b]", told(folder))
    # A name that is too long for a file, of a recipe that was changed in many places.
    for end in "ab":
        train_tiny(nursery, tmp_path, "--set", f"title='{'x' * 300}{end}'")
        assert nursery.wait() == 0, (tmp_path / "stderr").read_text()
    assert len(list((tmp_path / "records").iterdir())) == 2
    finding(f"{len(names)} odd paths and 2 names of 300 letters", "all runs undisturbed, each message one line")


def test_a_full_disk_under_the_output(tmp_path: Path, nursery: Nursery, undisturbed: Path, finding: Finding) -> None:
    """Catches a result that was not written and an exit code of 0, or one of Python's own."""
    for descriptor in (1, 2):
        folder = tmp_path / str(descriptor)
        folder.mkdir()
        train_tiny(nursery, folder, prelude=f"import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {descriptor})")
        assert nursery.wait() == 6
    assert "No space left on device" in told(tmp_path / "1", begun=True)
    assert differences(tmp_path / "1", undisturbed) == []
    finding("output and log on a full disk", "exit 6, by a line where one can be written; the run is kept")
