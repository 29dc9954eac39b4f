"""The runs of a folder as a table, for `python -m solstice runs`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from solstice import checkpoint
from solstice._text_table import aligned
from solstice.checkpoint import CheckpointError
from solstice.runs._info import FILE, RunInfo, find
from solstice.runs._state import folders_in, moment, resumable, state_of

_METRICS = 3
"""The most metrics in the table."""

_WIDTH = 60
"""The most characters of a cell."""


def listing(folder: str) -> str:
    """The table of `python -m solstice runs`.

    Raises:
        CheckpointError: there is no such folder, or none has a run.
    """
    place = checkpoint.place(folder, "folder")
    if not checkpoint.is_url(place) and not place.is_dir():
        raise CheckpointError(
            f"there is no folder {folder!r}: write `python -m solstice runs PATH`"
        )
    found: dict[Path, RunInfo | CheckpointError] = {}
    for path in folders_in(place):
        try:
            info = find(path)
        except CheckpointError as error:
            found[path] = error
        else:
            found |= {} if info is None else {path: info}
    if not found:
        raise CheckpointError(f"no folder in {folder!r} has a {FILE}")
    return "\n".join(_rows(found))


def _rows(found: Mapping[Path, RunInfo | CheckpointError]) -> list[str]:
    runs = {path: info for path, info in found.items() if isinstance(info, RunInfo)}
    names = _chosen(list(runs.values()))
    head = ["run", "started", "steps", *names, "ended", "checkpoint"]
    ordered = sorted(runs.items(), key=lambda item: item[1].started_at)
    rows = [_row(path, info, names) for path, info in ordered]
    damaged = [
        [str(path), *[""] * (len(names) + 2), _cut(f"unreadable: {error}"), ""]
        for path, error in found.items()
        if not isinstance(error, RunInfo)
    ]
    last = len(head) - 1
    return aligned([head, *rows, *damaged], left=[0, 1, last - 1, last])


def _row(path: Path, info: RunInfo, names: list[str]) -> list[str]:
    best = [number(info.metrics.get(name, {}).get("best")) for name in names]
    ended, saved = _cut(state_of(path, info)), resumable(path) or ""
    return [str(path), moment(info.started_at), f"{info.step:,}", *best, ended, saved]


def _chosen(infos: list[RunInfo]) -> list[str]:
    """The metrics to show: those of validations first, and those that most runs have."""
    counts = Counter(name for info in infos for name in info.metrics if not _is_bar(name, info))
    order = {"val": 0, "test": 1}
    ranked = sorted(counts, key=lambda name: (order.get(name.split("/")[0], 2), -counts[name]))
    return ranked[:_METRICS]


def _is_bar(name: str, info: RunInfo) -> bool:
    """Whether a metric is an error bar of another one."""
    return any(
        name.removesuffix(end) in info.metrics
        for end in ("_low", "_high", "_se")
        if name.endswith(end)
    )


def number(value: float | None) -> str:
    """A value of a metric in a table."""
    return "" if value is None else f"{value:.4g}"


def _cut(text: str) -> str:
    """A text in one line of a table."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
