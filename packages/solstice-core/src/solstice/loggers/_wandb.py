"""Logger for Weights & Biases."""

import json
import uuid
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from solstice._arguments import mapping, text, text_or_none
from solstice._history_rows import as_json
from solstice._paths import local_path
from solstice.loggers._logger import Placed, Start, imported, is_shown, numbers_of


class WandB(Placed):
    """`WandB("digits", mode="offline")`: log to a run of a Weights & Biases project.

    Metrics are named "train/loss" and "val/loss", over "step"; with `every`, those between epochs
    "train_steps/loss". Those of a population are "val/loss/best" and "val/loss/median". Other
    arrays are left out; a warning names them once. Needs `wandb`. After SIGKILL W&B loses rows that
    it has not written yet; after an exception, Ctrl-C or SIGTERM none is lost.

    Args:
        project: the name of the project.
        directory: the folder for files, including those of an offline run.
        name: the name of the run.
        mode: "online", "offline" or "disabled"; by default W&B's own setting.
        config: hyper-parameters by name, in addition to those of the Trainer.
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.
        **options: further arguments of `wandb.init`, such as `tags` or `entity`.

    Attributes:
        run: the W&B run; None before the first row. You may call `run.log` too.

    Raises:
        ImportError: wandb is not installed.
        ValueError: `every` is not a whole number of 1 or more, or `directory` is a URL.
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
        self.directory = local_path(directory, "directory")
        super().__init__(self.directory, every=every, only=only)
        self.project = text("project", project, "digits")
        self.run: Any = None
        name, mode = text_or_none("name", name, "first"), text_or_none("mode", mode, "offline")
        self._options: dict[str, Any] = {"name": name, "mode": mode, **options}
        self._config = mapping("config", config, '{"rate": 0.1}')
        self._id: str | None = None
        self._ahead: list[str] = []
        imported("wandb", "WandB")

    def __repr__(self) -> str:
        return f"WandB({self.project!r}, id={self._id!r})"

    def open(self, start: Start) -> None:
        """Creates a run, or continues the run of a resumed one."""
        self._at.mkdir(parents=True, exist_ok=True)
        self._id = start.about.get("id") or uuid.uuid4().hex[:8]
        self._ahead = []
        if start.kind == "resumed" and self._written.exists():
            self._ahead = self._written.read_text().splitlines()[start.rows :]
        self.run = imported("wandb", "WandB").init(
            project=self.project,
            dir=str(self._at),
            id=self._id,
            resume="allow",  # creates the run too, if W&B does not have it
            config={**start.hyperparameters, **self._config},
            **self._options,
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row, unless an earlier process has written the same row."""
        written = {"step": row["step"], "epoch": row["epoch"], **numbers_of(row)}
        line = as_json(written)
        if self._ahead and _same(self._ahead[0], line):
            self._ahead.pop(0)
            return
        self._ahead = []
        self.run.log(written)
        with self._written.open("a") as file:
            file.write(f"{line}\n")

    def takes(self, value: object) -> bool:
        """Whether the value is a number, or a number for each member; other arrays are left out."""
        return is_shown(value)

    def close(self, error: BaseException | None) -> None:
        """Finishes the W&B run; its exit code is 1 after an error."""
        self.run.finish(exit_code=0 if error is None else 1)

    def about(self) -> dict[str, Any]:
        """The id of the W&B run, which a resumed run continues."""
        return {} if self._id is None else {"id": self._id}

    def state_key(self) -> dict[str, Any]:
        """The project, which identifies this logger in a checkpoint."""
        return {"project": self.project}

    def state_hint(self) -> dict[str, Any]:
        """The name of the run, to distinguish several loggers of one project."""
        return {**super().state_hint(), "name": self._options["name"]}

    @property
    def _written(self) -> Path:
        """A file of the rows logged so far, since W&B cannot be queried while offline."""
        return self._at / f"solstice-{self._id}.jsonl"


def _same(one: str, other: str) -> bool:
    return one == other or json.loads(one) == json.loads(other)
