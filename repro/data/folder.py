"""Read a set of pictures from folders, one for each class: `SPLIT/CLASS/*.jpg`, as torchvision's ImageFolder does.

Class names are those of the folders of all splits together, sorted, so that a class has the same label in each split.
A file that cannot be read is named and left out: real collections have them, and one should not stop the rest.
"""

from dataclasses import dataclass, field
from pathlib import Path

from repro.errors import DataError


def splits(folder: Path) -> dict[str, list[str]]:
    """The splits under `folder` with their class folders; a folder without class folders that hold files is none."""
    found = {split.name: [c.name for c in _folders(split) if files(c)] for split in _folders(folder)}
    return {split: classes for split, classes in found.items() if classes}


@dataclass
class Files:
    """The encoded pictures and labels of one split, where each stands, and what could not be read."""

    folder: Path
    split: str
    classes: tuple[str, ...] = ()
    paths: list[Path] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    """Picture: why it is left out."""

    def __post_init__(self) -> None:
        self.classes = tuple(sorted({c for classes in splits(self.folder).values() for c in classes}))
        for kind in _folders(self.folder / self.split):
            found = files(kind)
            if not found:
                raise DataError(f"{kind}: no pictures of this class; put some there, or remove the folder")
            for path in found:
                self._read(path, self.classes.index(kind.name))

    def place(self, i: int) -> str:
        """The path of the i-th sample under the set's folder, for messages."""
        return self.paths[i].relative_to(self.folder).as_posix()

    def _read(self, path: Path, label: int) -> None:
        try:
            content = path.read_bytes()
        except OSError as e:
            content = b""
            self.faults[len(self.paths)] = f"{path.relative_to(self.folder)}: {e.strerror or e}"
        self.paths.append(path)
        self.images.append(content)
        self.labels.append(label)

    def require_each_class(self) -> None:
        """Raise DataError when of some class all pictures have faults."""
        kept = {label for i, label in enumerate(self.labels) if i not in self.faults}
        for label in sorted(set(self.labels) - kept):
            first = self.faults[self.labels.index(label)]
            raise DataError(f"class '{self.classes[label]}' has no picture that can be read; the first: {first}")


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def files(folder: Path) -> list[Path]:
    """All that lies there, whatever it is called: what is no picture will be named as such."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
