"""Keep the metrics of a run."""

from typing import Any

from solstice._callback import Callback, Record


class History(Callback):
    """`history = History()`, and after the run `history.rows`: keep the metrics of a run.

    A row is a dict: "step" and "epoch", the moment; "mode", of "train", "val" and "test"; "span",
    which is "epoch" where the metrics cover an epoch or an evaluation, and "steps" where they cover
    the training steps since the row before of that span; and the metrics by their names. So
    `pandas.DataFrame(history.rows)` is a table.

    Args:
        every: keep the training metrics of every so many steps too.

    Attributes:
        rows: the rows, oldest first. A new run of training begins anew; one that is resumed has
            those up to where it goes on.
    """

    needs = ("metrics",)

    def __init__(self, *, every: int | None = None) -> None:
        self.every = every
        self.rows: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"History({len(self.rows)} rows)"

    def on_fit_start(self, record: Record) -> None:
        """Begins anew."""
        if record.mode == "train":
            self.rows = []

    def on_step_end(self, record: Record) -> None:
        """Keeps the steps since the last time."""
        if record.mode == "train":
            self._keep(record, "steps")

    def on_epoch_end(self, record: Record) -> None:
        """Keeps the epoch, or the evaluation."""
        if record.epoch_step > 0 and record.mode != "predict":
            self._keep(record, "epoch")

    def state_dict(self) -> dict[str, Any]:
        """The rows, and so that they are kept with a run even if there are none yet."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the rows of a run that is resumed."""
        self.rows = list(state["rows"])

    def _keep(self, record: Record, span: str) -> None:
        moment = {"step": record.step, "epoch": record.epoch, "mode": record.mode, "span": span}
        self.rows.append({**moment, **record.metrics, **moment})
