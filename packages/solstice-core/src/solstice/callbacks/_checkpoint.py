"""Checkpoint: saves a run while it trains, so that it can be resumed."""

from contextlib import ExitStack, closing, suppress
from os import PathLike
from pathlib import Path
from typing import Literal

from solstice import checkpoint
from solstice._arguments import positive, switch, whole, whole_or_none
from solstice._better import better
from solstice._keywords import keywords_explained
from solstice._monitor import Monitor
from solstice._record import Record
from solstice._saver import Saver
from solstice.callbacks._lock import FolderLock, lock_of
from solstice.callbacks._saving import Retention, Saving
from solstice.checkpoint import CheckpointError, Folder, of_newest_run


class Checkpoint(Saver):
    """`Checkpoint("runs/a", every=1000)`: save the run while it trains.

    ```python
    trainer = solstice.Trainer([solstice.callbacks.Checkpoint("runs/a", every=1000)])
    exp = trainer.fit(exp, train_ds, num_epochs=10, resume="last")
    ```

    If the run ends for any reason, start the script again: training continues from the last
    checkpoint, and the results have the same bits as without the interruption. Each checkpoint is a
    folder such as `runs/a/step-1000`; `solstice.checkpoint.load(path, like=exp)` reads only the
    Experiment.

    A thread writes checkpoints while training continues, one at a time. Of a state of more than
    64 MiB, the arrays are written before the next step, because a copy of them would take memory,
    and the thread brings them to the disk. After SIGTERM or Ctrl-C,
    the current call finishes, a validation is cut short, and the run is saved. Then the process
    exits with code 143 (128 + SIGTERM), or KeyboardInterrupt is raised. A second signal ends the
    run at once.

    In several processes of `jax.distributed`, all save together into one folder that all of them
    see: each writes its parts of the arrays with Orbax, and the first one does the rest.

    Args:
        directory: a folder for the checkpoints of this run; one run at a time saves into it. Only
            folders named `step-<digits>` that `Checkpoint` wrote are ever removed; other files
            stay, and so do links to checkpoints. A relative path is resolved at the start of a
            run, so a later change of the working directory has no effect. A folder in a bucket,
            such as "gs://bucket/run", is for one process: see `solstice.checkpoint.save`. There, a
            new run takes the folder from an earlier one that may still run, whose next save raises.
        every: save after this number of training steps; None for never.
        minutes: save after this number of minutes, at the end of the current call. Several
            processes cannot, since their clocks differ.
        every_epochs: save after this number of epochs; None for never.
        keep: number of newest checkpoints to keep, 1 or more.
        monitor: a metric with its mode, such as "val/loss". Checkpoints that are saved at the step
            where it was measured are ranked by it; those of a population by its best member.
        mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
            decides: smaller for a loss, an error, a perplexity and the like, else larger. NaN is
            never best.
        keep_best: number of best checkpoints to keep in addition, 0 or more.
        overwrite: if a new run finds checkpoints of an earlier run in the folder, remove them after
            its own first save. Of linked checkpoints, only the links are removed.

    Raises:
        ValueError: an argument is out of range, `directory` is another URL, "val/" is monitored
            without a `val_ds`, or several processes save every few `minutes`.
        CheckpointError: at the start of a run, another run saves into the folder, the folder is
            not writable, or it has checkpoints and the run is not resumed. A failed write raises
            at the next save or at the end of the run.
        ImportError: at the start of a run, safetensors is not installed, or Orbax in several
            processes, or for a bucket the extra `cloud`.
        KeyError: the metric does not exist; the message lists the existing ones. It is raised
            before the first step, or later if the names depend on computed values.
    """

    modes = ("train", "val")
    needs = ("snapshot",)

    @keywords_explained
    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        every: int | None = None,
        minutes: float | None = None,
        every_epochs: int | None = 1,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep_best: int = 1,
        overwrite: bool = False,
    ) -> None:
        self.directory = checkpoint.place(directory, "directory")
        self.every = whole_or_none("every", every, 1, "steps")
        watched = None if monitor is None else Monitor(monitor, mode)
        self.monitor, self.mode = monitor, better("", mode) if watched is None else watched.mode
        self._minutes = None if minutes is None else positive("minutes", minutes)
        self._every_epochs = whole_or_none("every_epochs", every_epochs, 1, "epochs")
        self._retention = Retention(
            whole("keep", keep, 1, "checkpoints"),
            whole("keep_best", keep_best, 0, "checkpoints"),
            watched,
        )
        self._overwrite = switch("overwrite", overwrite)
        self._folder = Folder(self.directory)
        self._run: Saving | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.directory)!r})"

    @property
    def run_folder(self) -> Path:
        """The folder of the checkpoints, in which the Trainer keeps `run.json`."""
        return self.directory if self._run is None else self._folder.path

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, or None."""
        return self._find("last", self._folder)

    @property
    def best(self) -> Path | None:
        """The best checkpoint by `monitor`, or None."""
        return self._find("best", self._folder)

    def find(self, which: Literal["last", "best"]) -> Path | None:
        """`checkpoint.find("best")`: the folder of a checkpoint, or None if there is none.

        It is the checkpoint from which a new run would resume. Between runs, a relative `directory`
        is resolved in the current working directory, whereas the properties `last` and `best` use
        the folder of the newest run.

        Raises:
            ValueError: `which` is "best" and there is no `monitor`.
            CheckpointError: `which` is "best" and no checkpoint has a value of `monitor`.
        """
        self._check_knows(which)
        peers = checkpoint.Peers(f"{self!r} is searched")
        found = peers.first(lambda: self._search(which))
        return None if found is None else checkpoint.place(found, "directory")

    def _search(self, which: Literal["last", "best"]) -> str | None:
        folder = Folder(self.directory) if self._run is None else self._folder
        found = self._find(which, folder)
        saved = [] if found is not None or self._run is not None else folder.saved()
        if saved:
            raise CheckpointError(
                f"{str(self.directory)!r} has {len(saved)} checkpoints, and none has a value of "
                f"{self.monitor!r}: it was NaN, or was not measured where they were saved. Write "
                f'`resume="last"`, or the path of one: `resume={str(saved[-1].path)!r}`'
            )
        return None if found is None else str(found)

    def _check_knows(self, which: Literal["last", "best"]) -> None:
        if which == "best" and self.monitor is None:
            raise ValueError(
                f"{self!r} does not know which checkpoint is best: write "
                f'`Checkpoint({str(self.directory)!r}, monitor="val/loss")`'
            )

    def _find(self, which: Literal["last", "best"], folder: Folder) -> Path | None:
        self._check_knows(which)
        if self._run is not None:
            self._run.wait()
        elif folder.has_left():
            with (
                suppress(CheckpointError, OSError),  # another process writes, and will clean up
                closing(FolderLock(folder.path, self, _clash)),
            ):
                folder.settle()
        # A damaged checkpoint must not be passed over in silence.
        saved = folder.saved(strict=True)
        own = of_newest_run(saved) if self._run is None else self._run.of_this_run(saved)
        newest_last = own if which == "last" else self._retention.best_first(own)[::-1]
        return newest_last[-1].path if newest_last else None

    def on_fit_start(self, record: Record) -> None:
        """Locks the folder, removes half-written checkpoints, and checks for an earlier run."""
        if record.mode != "train":
            return
        if self._retention.monitor is not None:
            self._retention.monitor.check(record, type(self).__name__)
        self._close()  # a run whose `on_exception` a second Ctrl-C cut short
        # Absolute, because the thread would follow a later change of the working directory.
        self._folder = Folder(checkpoint.absolute(self.directory))
        peers = checkpoint.Peers(f"{self!r} starts")
        self._check_clock(peers)
        peers.check_same({"the folder": str(self._folder.path)})
        peers.each(lambda: checkpoint.check_writable(self._folder.path / ".new", repr(self)))
        self._run = peers.each(lambda: self._open(record, peers))

    def _check_clock(self, peers: checkpoint.Peers) -> None:
        if self._minutes is not None and not peers.is_alone:
            raise ValueError(
                f"{self!r} saves every {self._minutes:g} minutes, and the clocks of "
                f"{peers.count} processes differ, so they would not save at the same step. Give "
                f"a number of steps instead: `every=1000`"
            )

    def _open(self, record: Record, peers: checkpoint.Peers) -> Saving:
        if not peers.is_first:
            return Saving(self._folder, None, self._retention, record)
        if checkpoint.is_url(self._folder.path):
            self._check_empty(record)  # else a refused run would take the lock from a live one
        with ExitStack() as held:
            lock = held.enter_context(closing(lock_of(self._folder.path, self, _clash)))
            self._folder.settle()
            self._check_empty(record)
            run = Saving(self._folder, lock, self._retention, record)
            held.pop_all()  # from here, the run closes the lock
        return run

    def _check_empty(self, record: Record) -> None:
        """Raises if a new run would write between the checkpoints of an earlier one."""
        there = self._folder.saved()
        if record.step == 0 and there and not self._overwrite:
            raise CheckpointError(
                f"{self.directory} has the checkpoints of another run, up to "
                f'{there[-1].path.name}. Continue it with `fit(..., resume="last")`, give '
                f"this run another folder, or write `overwrite=True` to remove them"
            )

    def on_step_end(self, record: Record) -> None:
        """Saves every `every` steps."""
        if record.mode == "train":
            self._saving().save(record, is_closed=False)

    def on_call_end(self, record: Record) -> None:
        """Saves if `minutes` have passed, or a signal ends the run."""
        if record.mode != "train":
            return
        run = self._saving()
        is_due = self._minutes is not None and run.seconds >= 60 * self._minutes
        if is_due or record.interrupted:
            run.save(record, is_closed=False)
        if record.interrupted:  # the process may exit next, so the write must finish
            run.wait()

    def on_epoch_end(self, record: Record) -> None:
        """Reads the monitored metric, and saves every `every_epochs` epochs."""
        if self._run is not None:  # else it is an evaluation outside of `fit`
            self._run.measure(record)
        due = self._every_epochs is not None and (record.epoch + 1) % self._every_epochs == 0
        if record.mode == "train" and due:
            self._saving().save(record, is_closed=True)

    def on_fit_end(self, record: Record) -> None:
        """Waits for the last write."""
        if record.mode == "train":
            self._close()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Waits for the last write, so that the run can resume from it."""
        if record.mode == "train":
            self._close()

    def _saving(self) -> Saving:
        """The run that saves now."""
        if self._run is None:
            raise CheckpointError(
                f"{self!r} saved another run within this one, and gave the folder up at its end: "
                f"give each run a Checkpoint and a folder of its own"
            )
        return self._run

    def _close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()


def _clash(one: Checkpoint, other: Checkpoint) -> str:
    """The error message for two Checkpoints of one process with the same folder."""
    names = [(c.monitor or "newest").replace("/", "-") for c in (other, one)]
    names = names if names[0] != names[1] else ["a", "b"]
    lines = " and ".join(_line(c, name) for c, name in zip((other, one), names, strict=True))
    return (
        f"two Checkpoints save into {str(one.directory)!r} at once, and would remove each other's "
        f"checkpoints. Give each its own folder: {lines}"
    )


def _line(saver: Checkpoint, name: str) -> str:
    """The code for the same Checkpoint in a subfolder."""
    monitor = "" if saver.monitor is None else f', monitor="{saver.monitor}"'
    mode = "" if saver.mode == better(saver.monitor or "") else f', mode="{saver.mode}"'
    return f"`Checkpoint({str(saver.directory / name)!r}{monitor}{mode})`"
