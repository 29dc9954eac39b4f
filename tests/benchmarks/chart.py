"""`python chart.py docs/benchmarks.md docs/benchmarks.png`: the tables of the page, as a chart."""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Table = dict[str, dict[str, str]]
"""What stands in each row, by its contender, and by the first column of each name."""

SHOWN = {
    "ready-made Experiment, default callbacks": ("Solstice, ready-made", "tab:orange"),
    "Experiment by hand, no callbacks": ("Solstice, step by hand", "moccasin"),
    "hand-written loop, donated": ("loop by hand", "tab:gray"),
    "Keras 3": ("Keras", "tab:red"),
    "Flax NNX": ("Flax NNX", "tab:green"),
    "PyTorch, one thread": ("PyTorch", "tab:purple"),
    "Lightning": ("Lightning", "tab:blue"),
}
"""The rows that the chart shows, with shorter names: one chart of all would not be readable."""

BASE = {"C": "x hand-written"}
"""The column that is shown, where it is not "x the limit": the scan of C is not a limit."""


def draw(page: Path, path: Path) -> None:
    """`draw(Path("benchmarks.md"), Path("benchmarks.png"))`: a row of points for each workload."""
    tables = read(page.read_text())
    trained = {
        title: table
        for title, table in tables.items()
        if title[0].isupper() and title.partition(":")[0] in ("A", "B32", "B128", "C", "D", "E")
    }
    figure, axis = plt.subplots(figsize=(9, 0.62 * len(trained) + 1.9))
    for at, (title, table) in enumerate(trained.items()):
        _points(axis, at, table, BASE.get(title.partition(":")[0], "x the limit"))
    axis.set_yticks(range(len(trained)), [_label(title) for title in trained])
    axis.set_ylim(len(trained) - 0.4, -0.6)
    axis.set(xscale="log", xlabel="time, relative to one compiled scan (C: to the loop by hand)")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "2357" else "")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", which="both", alpha=0.25)
    for name, color in SHOWN.values():
        if any(row.get("quartiles") for table in trained.values() for row in _rows(table, name)):
            axis.scatter([], [], s=70, color=color, label=name)
    figure.legend(*axis.get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    figure.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(figure)


def read(page: str) -> dict[str, Table]:
    """`read(text)["Leaf scaling"]["`nnx.jit`"]["10 leaves"]`: the tables of a page by title."""
    tables: dict[str, Table] = {}
    for section in page.replace("\n### ", "\n## ").split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        if not lines:
            continue
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        tables[section.splitlines()[0]] = {
            # Of two columns of one name, the first stays.
            row[0]: dict(reversed([*zip(head, row, strict=True)]))
            for row in rows
        }
    return tables


def _points(axis: Any, at: int, table: Table, column: str) -> None:
    """A point for each contender: its median. That of the first, on top, has its number."""
    first = next(iter(SHOWN))
    for row_name, (_, color) in reversed(SHOWN.items()):
        row = table.get(row_name)
        if not row or not row.get("quartiles"):
            continue
        median = float(row[column])
        axis.scatter(median, at, s=70, color=color, edgecolor="white", zorder=3)
        if row_name == first:
            axis.annotate(
                row[column], (median, at), (0, 8), textcoords="offset points", ha="center"
            )


def _rows(table: Table, short: str) -> list[dict[str, str]]:
    """The rows that have this short name."""
    return [table[name] for name, (shown, _) in SHOWN.items() if shown == short and name in table]


def _label(title: str) -> str:
    """A title on two lines: "A: MLP 784-64-10", "batch 32"."""
    first, *rest = title.split(", ")
    return "\n".join([first, ", ".join(rest)])


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
