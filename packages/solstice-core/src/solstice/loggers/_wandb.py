"""Log to Weights & Biases."""

import json
import uuid
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from solstice._arguments import mapping, text, text_or_none
from solstice._paths import check_folder, local_path
from solstice._record import Record
from solstice.history._history import as_json
from solstice.loggers._logger import Logger, Start, is_missing, is_number, numbers_of


class WandB(Logger):
    """`WandB("digits", mode="offline")`: a run of a project of Weights & Biases.

    Metrics are "train/loss" and "val/loss", over "step"; those of every so many steps
    "train_steps/loss". Arrays are left out, and named once. Needs `wandb`. What W&B has not written
    itself when the process is killed outright (SIGKILL) is lost to it; after an exception, Ctrl-C
    or SIGTERM nothing is.

    Args:
        project: the name of the project.
        directory: where files go, those of an offline run among them.
        name: the name of the run.
        mode: "online", "offline" or "disabled"; left out, what W&B is set to.
        config: hyper-parameters by name.
        every: log the training metrics of every so many steps too.
        only: names of the metrics to log, without the mode; all by default.
        **options: further arguments of `wandb.init`, such as `tags` or `entity`.

    Attributes:
        run: the run of W&B; None before it began. `run.log` is yours to use.

    Raises:
        ImportError: wandb is not installed.
        ValueError: `every` is not a whole number from 1 on, or `directory` is a URL.
    """

    def __init__(
        self,
        project: str,
        *,
        directory: str | PathLike[str] = ".",
        name: str | None = None,
        mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        every: int | None = None,
        only: Collection[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(every=every, only=only)
        self.project = text("project", project, "digits")
        self.directory = local_path(directory, "directory")
        self._folder = self.directory
        self.run: Any = None
        name, mode = text_or_none("name", name, "first"), text_or_none("mode", mode, "offline")
        self._options: dict[str, Any] = {"name": name, "mode": mode, **options}
        self._config = mapping("config", config, '{"rate": 0.1}')
        self._id: str | None = None
        self._ahead: list[str] = []
        _tools()

    def __repr__(self) -> str:
        return f"WandB({self.project!r}, id={self._id!r})"

    def on_fit_start(self, record: Record) -> None:
        """Takes down where the files are; they stay there if the working directory changes."""
        super().on_fit_start(record)
        if record.mode == "train" or not self._folder.is_absolute():
            self._folder = self.directory.absolute()
        check_folder(self._folder, repr(self))

    def open(self, start: Start) -> None:
        """Begins a run, or goes on with one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wandb = _tools()
        self._id = start.about.get("id") or uuid.uuid4().hex[:8]
        self._ahead = []
        if start.kind == "resumed" and self._written.exists():
            self._ahead = self._written.read_text().splitlines()[start.rows :]
        self.run = wandb.init(
            project=self.project,
            dir=str(self._folder),
            id=self._id,
            resume="allow",
            config=self._config,
            **self._options,
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row, but if an earlier process has written just this row."""
        written = {"step": row["step"], "epoch": row["epoch"], **numbers_of(row)}
        line = as_json(written)
        if self._ahead and _same(self._ahead[0], line):
            self._ahead.pop(0)
            return
        self._ahead = []
        self.run.log(written)
        with self._written.open("a") as file:
            file.write(f"{line}\n")

    def takes(self, value: Any) -> bool:
        """Numbers alone."""
        return is_number(value)

    def close(self, error: BaseException | None) -> None:
        """Tells W&B how the run ended."""
        self.run.finish(exit_code=0 if error is None else 1)

    def about(self) -> dict[str, Any]:
        """The run to go on with."""
        return {} if self._id is None else {"id": self._id}

    def state_key(self) -> dict[str, Any]:
        """The project."""
        return {"project": self.project}

    def state_hint(self) -> dict[str, Any]:
        """Which of several runs of one project."""
        return {**super().state_hint(), "name": self._options["name"]}

    @property
    def _written(self) -> Path:
        """What W&B has been told, since it cannot be asked while it is offline."""
        return self._folder / f"solstice-{self._id}.jsonl"


def _same(one: str, other: str) -> bool:
    return one == other or json.loads(one) == json.loads(other)


def _tools() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise is_missing("wandb", "WandB") from error
    tools: Any = wandb
    return tools
