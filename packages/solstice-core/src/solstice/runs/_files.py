"""Files: `run.json` in each folder of a run, as the same run."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from solstice import checkpoint
from solstice._paths import free_name
from solstice.checkpoint import CheckpointError
from solstice.runs._facts import facts
from solstice.runs._info import FILE, RunInfo, find, write


class Files:
    """`Files(folders, saved).write(info)`: write `run.json` into each folder; in a thread.

    A run continues the one that it resumes, with its id and its start, if one of its folders has
    the checkpoint. Else it is a new run, and renames the files of earlier ones.

    Args:
        folders: the folders, absolute.
        saved: the checkpoint that is resumed, or None.
    """

    def __init__(self, folders: list[Path], saved: Path | None) -> None:
        self._folders = folders
        home = None if saved is None else _real(checkpoint.absolute(saved).parent)
        self._home = next((folder for folder in folders if _real(folder) == home), None)
        self._fixed: dict[str, Any] | None = None
        self._taken: set[Path] = set()

    def write(self, info: RunInfo) -> None:
        """Writes the files, except where another run has begun to write.

        Raises:
            Exception: of the disk or the bucket, after all folders have been tried; or a
                CheckpointError where another run writes.
        """
        is_first = self._fixed is None
        if self._fixed is None:
            self._fixed = self._start(info)
        errors: list[Exception] = []
        for folder in self._folders:
            try:
                self._write(folder, replace(info, **self._fixed), is_first=is_first)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _start(self, info: RunInfo) -> dict[str, Any]:
        """The fields that stay: the facts, and the start of the run that it continues."""
        before = None if self._home is None else _readable(self._home)
        if before is None:
            return facts()
        parent = info.parent or before.parent
        same = {"id": before.id, "started_at": before.started_at, "parent": parent}
        return {**facts(), **same}

    def _write(self, folder: Path, info: RunInfo, *, is_first: bool) -> None:
        if folder in self._taken:
            return
        if is_first:
            _open(folder, info.id)
        else:
            self._check(folder, info.id)
        write(folder, info)

    def _check(self, folder: Path, own: str) -> None:
        there = find(folder)
        if there is not None and there.id != own:
            self._taken.add(folder)
            raise CheckpointError(
                f"another run writes {folder / FILE} too. Give each run a folder of its own, such "
                f"as {str(folder / 'a')!r}"
            )


def _real(folder: Path) -> Path:
    """One path for a folder that may be given by several."""
    return folder if checkpoint.is_url(folder) else Path(os.path.realpath(folder))


def _open(folder: Path, own: str) -> None:
    """Makes a folder, and renames the file of another run, such as to `run-1.json`."""
    if checkpoint.is_url(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, there = folder / FILE, _readable(folder)
    if path.exists() and (there is None or there.id != own):
        path.rename(free_name(path))


def _readable(folder: Path) -> RunInfo | None:
    """The file in a folder; None if it is damaged, or belongs to another program."""
    with suppress(CheckpointError):
        return find(folder)
    return None
