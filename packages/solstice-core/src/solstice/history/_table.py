"""The table of a history, as text and in HTML."""

import html
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from solstice._better import better
from solstice._bounds import is_bound
from solstice._history_rows import is_number, metrics_in
from solstice._per_member import best_of, is_vector, summary
from solstice._text_table import aligned

_SHOWN = 10
"""The most epochs in a text."""

_WIDTH = 100
"""Characters in a line of a text without a terminal."""

_Row = Mapping[str, Any]


def as_text(rows: Iterable[_Row], names: list[str]) -> str:
    """The epochs as lines, with the metrics that fit in a line; "" without epochs."""
    head, *lines = _cells(rows, names, _in_one)
    if not lines:
        return ""
    if len(lines) > _SHOWN:
        lines[4 : 4 - _SHOWN] = [["...", *[""] * (len(head) - 1)]]
    count, room = len(head), shutil.get_terminal_size((_WIDTH, 24)).columns
    table = aligned([head, *lines])
    while len(table[0]) > room and count > 4:
        count -= 1
        table = aligned([line[:count] for line in (head, *lines)])
    if head[count:]:
        table.append(f"and {len(head) - count} columns more, such as {head[count]}")
    if any("[" in cell for line in lines for cell in line):
        table.append("of the members: the best [its number] (the mean)")
    return "\n".join(table)


def as_html(rows: Iterable[_Row], names: list[str]) -> str:
    """The epochs as a table, with all metrics."""
    head, *lines = _cells(rows, names, _in_several)
    tags = [_html_row("th", head), *(_html_row("td", line) for line in lines)]
    return f"<table>{''.join(tags)}</table>"


def _cells(
    rows: Iterable[_Row], names: list[str], cells_of: Callable[[str, Any], dict[str, str]]
) -> list[list[str]]:
    """A head, and a line for each epoch or evaluation step, with the metrics of all modes."""
    all_names = {*names}
    names = [name for name in names if not is_bound(name, all_names)]
    lines: dict[tuple[int, int], dict[str, str]] = {}
    columns: dict[str, dict[str, None]] = {name: {} for name in _by_metric(names)}
    for row in rows:
        if row["span"] == "epoch":
            line = lines.setdefault((row["epoch"], row["step"]), {})
            for metric, value in metrics_in(row).items():
                name = f"{row['mode']}/{metric}"
                cells = cells_of(name, value)
                columns.get(name, {}).update(dict.fromkeys(cells))
                line |= cells
    head = [column for found in columns.values() for column in found]
    table = [
        [*_moment(epoch, step), *(line.get(column, "") for column in head)]
        for (epoch, step), line in lines.items()
    ]
    return [["epoch", "step", *head], *table]


def _in_one(name: str, value: Any) -> dict[str, str]:
    """The cell of a metric: a number; or of a population, its best member and the mean."""
    if not is_vector(value):
        return _in_several(name, value)
    best, mean, _ = _in_several(name, value).values()
    return {name: f"{best} ({mean})"}


def _in_several(name: str, value: Any) -> dict[str, str]:
    """The cells of a metric by column: a number; or of a population, its best member and spread."""
    if is_number(value):
        return {name: f"{value:.4g}"}
    if not is_vector(value):
        return {}
    member = best_of(value, better(name))[0]
    best, _, mean, std = summary(name, value).values()
    texts = f"{best:.4g}" + ("" if member is None else f" [{member}]"), f"{mean:.4g}", f"{std:.4g}"
    return dict(zip((f"{name} best", f"{name} mean", f"{name} std"), texts, strict=True))


def _html_row(tag: str, cells: list[str]) -> str:
    """A row of an HTML table; escaped, because names may come from another person's file."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _by_metric(names: list[str]) -> list[str]:
    """The names sorted so that a metric's modes are next to each other."""
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in names))
    return sorted(names, key=lambda name: metrics.index(name.partition("/")[2]))


def _moment(epoch: int, step: int) -> list[str]:
    return [str(epoch + 1), f"{step:,}"] if step else ["-", "-"]  # an evaluation by itself
