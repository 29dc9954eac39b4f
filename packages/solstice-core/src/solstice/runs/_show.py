"""One run as text, for `python -m solstice show`."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from solstice import checkpoint
from solstice._hyperparameters import flat
from solstice._text_table import aligned
from solstice.runs._info import RunInfo, read
from solstice.runs._state import moment, resumable, state_of
from solstice.runs._table import number


def described(folder: str) -> str:
    """The text of `python -m solstice show`.

    Raises:
        CheckpointError: it is not the folder of a run.
    """
    info = read(folder)
    parts = {
        folder: _about(checkpoint.place(folder, "folder"), info),
        "parent": _parent(info.parent or {}),
        "hyperparameters": _pairs(flat(info.hyperparameters)),
        "metrics": _metrics(info),
        "options": _pairs({n: x for n, x in info.options.items() if x is not None}),
        "data": _data(info.data),
        "steps": _steps(info.computation),
        "scalars at the start": _pairs(_table(info.computation.get("scalars"))),
        "versions": _pairs(info.versions),
    }
    lines: list[str] = []
    for name, rows in parts.items():
        if rows:
            left = range(len(rows[0]) if len(rows[0]) == 2 else 1)
            lines += [name, *(f"  {line}" for line in aligned(rows, left=left))]
    return "\n".join(lines)


def _about(folder: Path, info: RunInfo) -> list[list[str]]:
    git, saved = info.git or {}, resumable(folder)
    is_dirty = git.get("is_dirty")
    end = "" if is_dirty is False else ", with changes" if is_dirty else ", maybe with changes"
    limits = [
        "" if info.num_epochs is None else f"{info.num_epochs:,} epochs",
        "" if info.max_steps is None else f"{info.max_steps:,} steps",
    ]
    about = {
        "ended": state_of(folder, info),
        "started": moment(info.started_at),
        "updated": moment(info.updated_at),
        "step": f"{info.step:,}, in epoch {info.epoch + 1:,}",
        "length": " or ".join(filter(None, limits)),
        "resume": saved and f"`trainer.fit(..., resume={str(folder / saved)!r})`",
        "command": shlex.join(info.command),
        "git": git and f"{git.get('commit')}{end}",
        "devices": info.devices,
        "platform": info.platform,
        "process": f"{info.process.get('pid')} on {info.process.get('host')}",
    }
    return _pairs({name: text for name, text in about.items() if text})


def _metrics(info: RunInfo) -> list[list[str]]:
    rows = [
        [
            name,
            number(values.get("newest")),
            number(values.get("best")),
            f"{values.get('best_epoch', math.nan) + 1:,.0f}",
        ]
        for name, values in info.metrics.items()
    ]
    return [["", "newest", "best", "in epoch"], *rows] if rows else []


def _data(data: Mapping[str, Any]) -> list[list[str]]:
    sets = {"training": data.get("identity"), "validation": data.get("validation")}
    return _pairs({name: _identity(about) for name, about in sets.items() if about})


def _identity(about: object) -> str:
    table = _table(about)
    described = _table(table.pop("describe", {}))
    return ", ".join(f"{n} {x}" for n, x in {**table, **described}.items() if x is not None)


def _steps(computation: Mapping[str, Any]) -> list[list[str]]:
    return _pairs(
        {
            name: f"{_table(step).get('digest')!s:.12}"
            for name, step in _table(computation.get("steps")).items()
        }
    )


def _parent(parent: Mapping[str, Any]) -> list[list[str]]:
    changes = cast("list[object]", parent.get("changes") or [])
    where = {"folder": parent.get("folder"), "step": parent.get("step")} if parent else {}
    return [*_pairs(where), *(["changed", str(change)] for change in changes)]


def _pairs(table: Mapping[str, object]) -> list[list[str]]:
    return [[name, str(value)] for name, value in table.items()]


def _table(value: object) -> dict[str, Any]:
    """An entry of the file that should be a table."""
    return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}
