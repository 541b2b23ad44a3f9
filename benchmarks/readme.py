"""The README's table, written from `results.json`: nobody types a figure."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.harness import OURS, Comparison, duration, goal, percent

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- benchmarks: written by `make bench` -->\n", "<!-- end of benchmarks -->\n"


def table(report: dict[str, Any]) -> str:
    """The comparisons of a report as a Markdown table, with what they were measured on."""
    machine, versions = report["machine"], report["versions"]
    lines = [
        "| | ours | the tutorial's | ratio (median) | goal | of the convolution peak |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["comparisons"]:
        c = Comparison(**{f.name: row[f.name] for f in fields(Comparison)})
        lines.append(
            f"| {c.subject}, {c.data} | {duration(c.minimum(OURS))} | {duration(c.minimum(c.baseline))} ({c.baseline}) "
            f"| {c.ratio:.2f} ({c.median_ratio:.2f}) | {goal(c)} | {percent(c.share('convolution'))} |"
        )
    about = (
        f"Minima, sides alternating in one run: {machine['name']}, {machine['threads']} threads, "
        f"torch {versions['torch']}, commit {str(report['git']['commit'])[:8]}, {report['date'][:10]}."
    )
    return "\n".join([*lines, "", about, ""])


def write(report: dict[str, Any], path: Path = README) -> None:
    """Put the table between its marks in the README."""
    before, _, rest = path.read_text("utf-8").partition(START)
    path.write_text(before + START + table(report) + END + rest.partition(END)[2], "utf-8")
