"""Row 14: HTML, scripts and terminal codes in names, titles, metrics, errors and outputs of cells."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import nbformat
import pytest
import torch
import yaml
from helpers import ROOT, drawn_set
from nbformat import NotebookNode
from tier import FULL, Finding
from torch import nn

from book._tools import gates, notebooks, scripts
from repro.claims import chapter, pages, report
from repro.claims.ledger import Source, load_source
from repro.data.color import ColorPCA
from repro.data.preparation import Preparation
from repro.errors import DataError
from repro.models.compare import Comparison, ComparisonRow
from repro.models.summary import layer_table
from repro.receptive_field import command, receptive_field
from repro.records import file_of
from repro.visualization import receptive_field_explorer
from repro.visualization.explorer import FOLDER, augmentation_explorer
from repro.visualization.field_figure import unit_svg
from repro.visualization.occlusion import occlusion
from repro.visualization.occlusion_brush import occlusion_explorer

# Without a full stop, which no layer's name can have.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)' x='",
    "javascript:alert(4)",
    "</td></tr></table><svg onload=alert(5)>",
    "&lt;script&gt;&#60;b onclick=alert(6)&#62;&amp;",
    "</script><script>alert(7)</script>",
    "</h1></title></style></textarea><iframe srcdoc=x>",
    "<!--><script>alert(8)</script>",
    "</div></noscript>]]><?x <a href=javascript:alert(9)>",
)
HARMLESS = "harmless"


def net(name: str) -> nn.Module:
    """A convolution and a linear layer of this name."""
    layers = ("conv", nn.Conv2d(1, 2, 3)), ("flat", nn.Flatten()), (name, nn.Linear(2 * 36, 3))
    return nn.Sequential(OrderedDict(layers))


def ledger(text: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A source with this text wherever text can stand, and its verdicts; an id cannot be anything but a word."""
    claims = [
        {
            "id": f"made-{i}",
            "where": text,
            "statement": text,
            "value": text,
            "unit": text,
            "kind": "historical",
            "check": {"citation": text, "place": text, "value": f"{text}2"},
            "chapter": text,
            "contradicts": ["made-0"],
        }
        for i in range(3)
    ]
    source = Source.model_validate({"key": text, "title": text, "claim": claims})
    for module in (pages, report, chapter):
        patch.setattr(module, "load_sources", lambda: (source,))
    patch.setattr(chapter, "claims", lambda chapter=None: source.claim)
    verdicts = ("does not hold", text, "historical")
    stored = {f"made-{i}": {"verdict": verdict, "found": text, "detail": text} for i, verdict in enumerate(verdicts)}
    (folder / "claims").mkdir(exist_ok=True)
    (folder / "claims" / "verdicts.json").write_text(json.dumps(stored))
    return folder


def runs(text: str, patch: pytest.MonkeyPatch) -> str:
    run = SimpleNamespace(
        recipe=text,
        seed=text,
        counts=True,
        seconds=1.0,
        device={"name": text, "threads": 1},
        last=SimpleNamespace(test_error=0.5),
    )
    patch.setattr(report.records, "load_all", lambda folder: [run])
    return report.runs_html()


def brush(text: str) -> str:
    images = torch.zeros(1, 1, 8, 8)
    found = occlusion(net("fc"), images[0], 4, 4, target=0)
    half = torch.full((1, 1, 1), 0.5)
    prepare = Preparation(8, 8, half, half)
    return occlusion_explorer(prepare, [text, "b", "c"], images, [[found]])._repr_html_()


def noise(text: str) -> str:
    pictures = drawn_set(1, 8, 8, 3)
    pictures = type(pictures)(**vars(pictures) | {"classes": (text,), "labels": torch.zeros(1, dtype=torch.int64)})
    pca = ColorPCA(torch.tensor([0.04, 0.01, 0.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    return augmentation_explorer(pictures, 6, pca)._repr_html_()


def page(text: str, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """What `repro receptive-field own:NAME --html` writes."""
    patch.setitem(sys.modules, "own", SimpleNamespace(**{text: lambda: net(text)}))  # type: ignore[arg-type]
    command.report(f"own:{text}", "1,8,8", html=folder / "page.html")
    return (folder / "page.html").read_text()


def difference(text: str) -> str:
    return Comparison(text, text, (ComparisonRow(text, text, text, text, same=False),))._repr_html_()


# name -> HTML made of a text; each gets a folder and a patch beside it.
MAKERS: dict[str, Callable[[str, Path, pytest.MonkeyPatch], str]] = {
    "ledger": lambda t, f, p: pages.ledger_html(ledger(t, f, p)),
    "errata": lambda t, f, p: pages.errata_html(ledger(t, f, p)),
    "summary": lambda t, f, p: report.summary_html(ledger(t, f, p)),
    "runs": lambda t, f, p: runs(t, p),
    "claims of a chapter": lambda t, f, p: (ledger(t, f, p), chapter.Chapter(t, {t: ["made-0"]}).claims().data)[1],
    "verdicts of a chapter": lambda t, f, p: (
        chapter.Chapter(t, {t: ["made-0", "made-2"]}).verdicts({}, ledger(t, f, p)).data
    ),
    "table of layers": lambda t, f, p: layer_table(net(t), (1, 8, 8))._repr_html_(),
    "table of fields": lambda t, f, p: receptive_field(net(t), (1, 8, 8))._repr_html_(),
    "comparison": lambda t, f, p: difference(t),
    "field explorer": lambda t, f, p: receptive_field_explorer(net(t), (1, 8, 8))._repr_html_(),
    "page of a net": page,
    "occlusion explorer": lambda t, f, p: brush(t),
    "augmentation explorer": lambda t, f, p: noise(t),
    "picture of a field": lambda t, f, p: unit_svg(receptive_field(net(t), (1, 8, 8)), t, 0, 0),
}


class Structure(HTMLParser):
    """A text as its elements with the names of their attributes, and all that a reader can see or a script can read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[str]]] = []
        self.texts: list[str] = []
        self.values: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, [key for key, _ in attrs]))
        self.values += [value for _, value in attrs if value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append((f"comment {data}", []))

    def shows(self, text: str) -> bool:
        """Whether the text stands in it as it is; in an explorer's values it is written as JSON."""
        written = json.dumps(text)[1:-1]
        return any(text in found or written in found for found in (*self.texts, *self.values))


def test_what_makes_html_escapes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finding: Finding) -> None:
    """Catches a field that goes into a page as it is, an attribute without its quotation marks escaped, and a text that
    is escaped twice or lost: with each payload a page has the elements that it has with a harmless word.
    """
    shown = 0
    for name, make in MAKERS.items():
        expected = Structure(make(HARMLESS, tmp_path, monkeypatch))
        for payload in PAYLOADS:
            html = make(payload, tmp_path, monkeypatch)
            found = Structure(html)
            assert found.elements == expected.elements, f"{name}: {payload}"
            assert found.shows(payload), f"{name}: {payload}"
            if name == "picture of a field":
                ElementTree.fromstring(html)
            walk = scripts.Walk("page")
            walk.run(html)
            assert walk.faults + walk.files == []
            shown += 1
    finding(
        f"{len(PAYLOADS)} payloads in the names, titles, values and errors that {len(MAKERS)} makers of HTML show",
        f"{shown} pages: the same elements as with a harmless word, and the payload to be read as text",
    )


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_id_is_a_word(payload: str, tmp_path: Path) -> None:
    """Catches an id, which goes into addresses, that is anything else."""
    claim = {"where": "p", "statement": "s", "value": 1, "kind": "measured", "needs": "x"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in (claim | {"id": payload}).items()]
    (tmp_path / "made.toml").write_text("\n".join(['key = "made"', 'title = "Made"', "[[claim]]", *lines]))
    with pytest.raises(DataError, match="id"):
        load_source(tmp_path / "made.toml")


def test_our_scripts_make_no_markup_of_text() -> None:
    """Catches a script of ours that would turn an escaped name into elements again."""
    sources = [*FOLDER.glob("*.js"), *(ROOT / "book" / "_static").glob("*.js")]
    assert len(sources) >= 9
    makers = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc")
    makers += ("DOMParser", "createContextualFragment", "javascript:", "import(")
    found = [f"{path.name}: {word}" for path in sources for word in makers if word in path.read_text()]
    assert found == []


# What a cell shows, and what has to be said of it.
PLANTED = (
    ("text/html", "<script>plant(1)</script>", "plant(1)"),
    ("text/html", "<p><img src=x onerror=plant(2)></p>", "plant(2)"),
    ("text/html", '<a href="java&#10;script:plant(3)">x</a>', "plant(3)"),
    ("text/html", "<iframe srcdoc='&lt;script&gt;plant(4)&lt;/script&gt;'></iframe>", "<iframe>"),
    ("text/html", '<script src="https://example.org/plant5.js"></script>', "plant5.js"),
    ("text/html", '<script src="../plant6.js" src="../plant6.js?"></script>', "plant6.js"),
    ("text/html", "<svg><style><img src=x onerror=plant(7)></style></svg>", "plant(7)"),
    ("text/html", "<!--><script>plant(8)</script>-->", "plant(8)"),
    ("text/html", '<noscript><p title="</noscript><img src=x onerror=plant(9)>"></p></noscript>', "plant(9)"),
    ("text/html", '<script type="module" type="text/x-thebe-config">plant(10)</script>', "plant(10)"),
    (
        "text/html",
        '<script>window.MathJax = {"loader": {"load": ["https://example.org/plant11.js"]}}</script>',
        "window.MathJax",
    ),
    ("text/html", "<form><button formaction='&#1;javascript:plant(12)'>x</button></form>", "plant(12)"),
    ("text/html", '<meta http-equiv="refresh" content="0; url=javascript:plant(13)">', "plant(13)"),
    ("text/html", "<script>plant(14)</script x><script>window.x = 1</script>", "plant(14)"),
    (
        "text/html",
        f"{receptive_field_explorer(net('fc'), (1, 8, 8))._repr_html_()[:-9]}plant(15)</script>",
        "Elements with attributes",
    ),
    ("text/markdown", "<b onclick='plant(16)'>x</b>", "plant(16)"),
    ("text/latex", r"$\href{javascript:plant(17)}{x}$", "plant(17)"),
    ("application/javascript", "plant(18)", "plant(18)"),
)


def small_book(root: Path, outputs: list[NotebookNode]) -> None:
    """A checkout with the real configuration, a hostile title, and one chapter with these outputs."""
    (root / "chapters").mkdir(parents=True)
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_tools", "__pycache__", "*.md"))
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    (root / "_config.yml").write_text(yaml.safe_dump(config | {"title": PAYLOADS[1]}))
    toc = {"format": "jb-book", "root": "book/preface", "chapters": [{"file": "chapters/01_small"}]}
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    (root / "book" / "preface.md").write_text("# Preface\n\n```{bibliography}\n```\n")
    new = nbformat.v4
    cells = [new.new_markdown_cell("# Small\n\n$x$ {cite}`lecun1998`, {claim}`lenet-connections`")]
    cells += [new.new_code_cell("1", execution_count=i, outputs=[o]) for i, o in enumerate(outputs, 1)]
    notebooks.write_executed(new.new_notebook(cells=cells), root / "chapters" / "01_small.ipynb")


def shown(kind: str, text: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {kind: text})


def test_the_built_site(tmp_path: Path, finding: Finding) -> None:
    """Catches an output or a title that the build does not escape, and a check that knows scripts by their place: of
    what cells show, what was planted is found, and the payloads in other outputs, which are text, are not.
    """
    explorer = receptive_field_explorer(net(PAYLOADS[0]), (1, 8, 8))._repr_html_()
    outputs = [nbformat.v4.new_output("stream", name="stdout", text="\n".join(PAYLOADS))]
    outputs += [nbformat.v4.new_output("error", ename=p, evalue=p, traceback=[p]) for p in PAYLOADS]
    outputs += [shown("text/plain", p) for p in PAYLOADS]
    outputs += [shown("text/html", explorer)]
    innocent = len(outputs)
    outputs += [shown(kind, text) for kind, text, _ in PLANTED]
    small_book(tmp_path / "book", outputs)
    built = gates.build_book(tmp_path / "book", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    site = tmp_path / "book" / "_build" / "html"
    assert (site / "chapters" / "01_small.html").exists(), built.stdout[-3000:]
    text = "".join(Structure((site / "chapters" / "01_small.html").read_text()).texts)
    assert [p for p in PAYLOADS if text.count(p) < 3] == []
    (site / "_static" / "doctools.js").write_text("plant(19)")
    marks = [mark for _, _, mark in PLANTED]
    in_site, in_outputs = [*marks, "doctools.js: neither"], marks
    for found, planted in ((scripts.in_site(site), in_site), (scripts.in_chapters(tmp_path / "book"), in_outputs)):
        assert [mark for mark in planted if not any(mark in fault for fault in found)] == []
        assert [fault for fault in found if not any(mark in fault for mark in planted)] == []
    finding(
        f"a site with {innocent} outputs of hostile text, and {len(in_site)} planted scripts, handlers and addresses",
        f"the {len(in_site)} planted ones are found, and nothing else",
    )


def test_the_book_as_it_is(tmp_path: Path, finding: Finding) -> None:
    """Catches a script that came into the book with a text or an output: in the full tier the book is built."""
    assert scripts.in_chapters(ROOT) == []
    chapters = sorted((ROOT / "chapters").glob("*.ipynb"))
    outputs = sum(
        len(cell.outputs) for path in chapters for cell in notebooks.code_cells(notebooks.read_executed(path))
    )
    finding(f"{outputs} outputs in {len(chapters)} chapters", "no script, handler or address but the explorers' own")
    if not FULL:
        return
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("book", "chapters"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    gates.build_book(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    site = tmp_path / "_build" / "html"
    assert scripts.in_site(site) == []
    found = [Structure(path.read_text()).elements for path in (site / "chapters").glob("*.html")]
    found += [Structure(path.read_text()).elements for path in (site / "book").glob("*.html")]
    assert len(found) > len(chapters)
    count = sum(tag == "script" for page in found for tag, _ in page)
    finding(
        f"the book as it is built: {len(found)} pages, {count} scripts",
        "each is one of ours or the theme's; no other handler or address",
    )


# Colours, a title, the clipboard, a bell, steps back, codes of one byte, the direction of writing; and rich's markup.
CODES = "\x1b[31m \x1b]0;t\x07 \x1b]52;c;aGk\x07 \b\r \x0b\x85 \x9b31m \u202e [bold]b"
SHOWN = r"\x1b[31m \x1b]0;t\x07 \x1b]52;c;aGk\x07 \x08\r \x0b\x85 \x9b31m \u202e [bold]b"
COMMANDS = """
import json, sys
from repro import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["repro", *arguments]
    print(f"\\n$ {arguments[:2]}", flush=True)
    try:
        cli.main()
    except SystemExit:
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
"""
OWN = """
from collections import OrderedDict
from torch import nn
def net():
    return nn.Sequential(OrderedDict([(NAME, nn.Conv2d(1, 2, 3))]))
"""


def on_a_terminal(folder: Path, commands: list[list[str]], **environment: str) -> str:
    """What a terminal gets from these commands, both streams together, in one process that runs them in turn."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while part := os.read(ours, 65536):
                parts.append(part)
        os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_no_code_reaches_the_terminal(tmp_path: Path, finding: Finding) -> None:
    """Catches a name that is printed as it is, in an error, a table, a traceback or a path, markup of rich that a name
    is taken for, and a guard that takes the colours of our own help away.
    """
    (tmp_path / "own.py").write_text(OWN.replace("NAME", repr(CODES)))
    record = json.loads(min((ROOT / "records").glob("*.json")).read_bytes())
    record |= {"recipe": CODES, "seed": 0, "device": record["device"] | {"name": f"{CODES}[/x]:smile:"}}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / file_of(CODES, 0)).write_text(json.dumps(record))
    (tmp_path / f"{CODES}.toml").write_text("epochs = 1")
    commands = [
        ["train", CODES],
        ["train", f"{CODES}.toml"],
        ["--debug", "train", CODES],
        ["train", "lenet5-modern", "--set", f"{CODES}=1"],
        ["records", "--records-dir", "records"],
        ["receptive-field", "own:net", "--input", "1,8,8"],
        ["receptive-field", f"own:{CODES}"],
        ["receptive-field", "own:net", "--input", "1,8,8", "--layer", CODES],
        ["compare", CODES, "lenet5_modern"],
        ["data", "check", CODES],
        ["evaluate", "lenet5-modern", "--scales", CODES],
        ["transfer", "lenet5-modern", "--to", CODES],
        ["claims", "--source", CODES],
        ["doctor"],
        [f"--{CODES}"],  # what typer says is its own
        ["--help"],
    ]
    said = on_a_terminal(tmp_path, commands, TERM="xterm-256color", COLUMNS="400", REPRO_DATA=str(tmp_path / CODES))
    *parts, usage, help_ = re.sub(r"\x1b\[[0-9;]*m", "", said).split("\r\n$ ")[1:]  # rich's own colours
    assert len(parts) == len(commands) - 2
    assert [part for part in parts if SHOWN not in part or "\u202e" in part] == []
    assert f"{SHOWN}[/x]:smile:" in parts[commands.index(["records", "--records-dir", "records"])]
    for part in (*parts, usage, help_):
        assert {c for c in part.replace("\r\n", "\n") if c != "\n" and unicodedata.category(c) == "Cc"} == set()
    assert "\x1b[1m" in said[said.index("--help") :]
    finding(
        f"{len(parts)} commands on a terminal, each about a name of {len(CODES.split())} kinds of codes and markup",
        "each shows the name written out; no control character gets through",
    )
