"""`python chart.py docs/benchmarks.md docs/benchmarks.png`: the tables of the page, as a chart."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Table = dict[str, dict[str, str]]
"""What stands in each row, by its contender, and by the first column of each name."""


def draw(page: Path, path: Path) -> None:
    """`draw(Path("benchmarks.md"), Path("benchmarks.png"))`: a panel for each table."""
    tables = read(page.read_text())
    rows = (len(tables) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(13, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    for axis, (title, table) in zip(axes.flat, tables.items(), strict=False):
        axis.set_title(title, fontsize=10)
        draw_panel = _bars if "x the limit" in next(iter(table.values())) else _lines
        draw_panel(axis, table)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def read(page: str) -> dict[str, Table]:
    """`read(text)["Leaf scaling"]["`nnx.jit`"]["10 leaves"]`: the tables of a page by title."""
    tables: dict[str, Table] = {}
    for section in page.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        tables[section.splitlines()[0]] = {
            # Of two columns of one name, the first stays.
            row[0]: dict(reversed([*zip(head, row, strict=True)]))
            for row in rows
        }
    return tables


def _bars(axis: Any, table: Table) -> None:
    shown = {name.replace("`", ""): row for name, row in table.items() if row["quartiles"]}
    top = 0.0
    for at, (name, row) in enumerate(shown.items()):
        low, high = map(float, row["quartiles"].split(" to "))
        axis.barh(
            at,
            float(row["x the limit"]),
            color="tab:orange" if name.startswith("Solstice") else "tab:blue",
        )
        axis.plot([low, high], [at, at], color="black")
        text = row["x the limit"]
        axis.annotate(text, (high, at), (4, 0), textcoords="offset points", va="center")
        top = max(top, high)
    axis.set_yticks(range(len(shown)), list(shown))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * top)
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set_xlabel("time of an epoch, x the limit (median, quartiles)")


def _lines(axis: Any, table: Table) -> None:
    for name, row in table.items():
        points: list[tuple[int, float]] = []
        for column, cell in row.items():
            with contextlib.suppress(ValueError):  # the contender, or why there is none
                points.append((int(column.split()[0]), float(cell)))
        counts, times = zip(*sorted(points), strict=True) if points else ([], [])
        axis.plot(counts, times, marker="o", label=name.replace("`", ""))
    axis.set(xscale="log", yscale="log", xlabel="leaves", ylabel="microseconds a step")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7, frameon=False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
