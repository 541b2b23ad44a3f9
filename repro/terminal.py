"""What the `repro` command prints of names, files and errors: never a control character of theirs.

A file's name can hold the codes by which a program colours a terminal, moves its cursor, sets its title or fills its
clipboard, and an archive from elsewhere brings its own names. `guard` stands between plain prints and the terminal;
`PlainConsole` prints tables, for which rich writes such codes itself.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

# Control characters but tab and newline, line ends that are not ours, and marks that turn the direction of writing.
_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with its control characters written out, as `\\x1b`."""
    return _FOREIGN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Plain:
    """A stream of text through which no control character passes; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """Where rich writes: it looks for this name, and its tables and colours need their codes."""

    def write(self, text: str) -> int:
        """Write the text, printable."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, printable."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard() -> None:
    """From here on plain prints of this process are printable, tracebacks among them."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Plain):
            setattr(sys, name, cast(TextIO, Plain(stream)))


class PlainConsole(Console):
    """A console for what others have named: a name is shown as it is, without its control characters or markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        """Text as rich prints it; every string comes through here, those in cells of tables too."""
        return super().render_str(printable(text), **how)
