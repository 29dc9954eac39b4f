"""Test that a killed and resumed run ends with the same bits."""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import pytest

from solstice import _tree, checkpoint
from solstice._arguments import function, positive, whole
from solstice._callback import Callback, Phase, named
from solstice._experiment import Experiment
from solstice._plain import from_plain, to_plain
from solstice._record import Record
from solstice._trainer import Trainer

_SAVED, _FINAL, _ERROR = "saved", "final", "error.txt"


@dataclass
class Run:
    """`Run(experiment, train_ds, num_epochs=3)`: the arguments of a Trainer and of its `fit`.

    Attributes:
        experiment: the initial Experiment.
        train_ds, val_ds, num_epochs, max_steps, batch_size: as in `Trainer.fit`.
        callbacks: callbacks whose state is compared; a `Checkpoint` is not needed.
        trainer: further arguments of the `Trainer`, by name.
    """

    experiment: Experiment
    train_ds: object
    val_ds: object = None
    callbacks: Iterable[Callback] = ()
    num_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict[str, Any])


def verify_resume(
    make_run: Callable[[], Run], kill_at: Sequence[int], *, timeout: float | None = None
) -> None:
    """`verify_resume(make_run, kill_at=[3, 17])`: assert that resumed runs have the same bits.

    ```python
    def make_run():                       # at the top of a module
        return Run(make_experiment(), train_ds, val_ds, [EarlyStopping()], num_epochs=3)

    def test_my_run_can_be_resumed():
        verify_resume(make_run, kill_at=[3, 17])
    ```

    A new process trains the run to its end. Then, for each step of `kill_at`, a second process
    trains to this step, saves the run and kills itself with SIGKILL, and a third one resumes and
    finishes it. The test compares every leaf of the Experiment, bit for bit; the `state_dict` and
    public attributes of each callback; and the metrics of each epoch and evaluation after the
    resume.

    Args:
        make_run: a function without arguments that returns the same `Run` each time, and that other
            processes can import.
        kill_at: training steps, counted over the run, at which it is killed.
        timeout: seconds for each process; None for no limit.

    Raises:
        AssertionError: something differs; the message names the first difference.
        TypeError: `make_run` cannot be imported by another process.
        RuntimeError: a run fails, takes too long, or ends before a step of `kill_at`.
    """
    function("make_run", make_run, "make_run=make_run")
    timeout = None if timeout is None else positive("timeout", timeout)
    steps = _steps(kill_at)
    try:
        pickle.dumps(make_run)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(
            f"make_run must be a function at the top of a module, which another process imports by "
            f"its name; it is {make_run!r:.60}"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        _in_a_process(make_run, whole, None, timeout)
        for step in steps:
            broken = Path(folder) / f"killed-at-{step}"
            _in_a_process(make_run, broken, step, timeout)
            _in_a_process(make_run, broken, None, timeout)
            _compare(whole / _FINAL, broken / _FINAL, step)


def _steps(kill_at: object) -> list[int]:
    if not isinstance(kill_at, Iterable) or isinstance(kill_at, str | bytes):
        raise TypeError(f"kill_at must be training steps, such as [3, 17]; it is {kill_at!r:.60}")
    return [whole("kill_at", step, 1, "steps") for step in cast("Iterable[Any]", kill_at)]


def _in_a_process(
    make_run: Callable[[], Run], folder: Path, kill_at: int | None, timeout: float | None
) -> None:
    folder.mkdir(exist_ok=True)
    # Not a fork, which would copy the locks that JAX's threads hold.
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(make_run, folder, kill_at)
    )
    with importable(getattr(make_run, "__module__", "")):
        process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise RuntimeError(f"the run did not end in {timeout:g} seconds: give a larger `timeout`")
    expected = 0 if kill_at is None else -signal.SIGKILL
    if process.exitcode == expected:
        return
    error = folder / _ERROR
    if error.exists():
        raise RuntimeError(f"the run failed in its own process:\n{error.read_text()}")
    if process.exitcode == 0:
        raise RuntimeError(f"the run ended before step {kill_at} of kill_at: give a smaller step")
    raise RuntimeError(f"the run's process ended with exit code {process.exitcode}")


@contextmanager
def importable(module: str) -> Generator[None, None, None]:
    """New processes can import the module under the name that pytest gave it."""
    file = getattr(sys.modules.get(module), "__file__", None)
    roots = [] if file is None else [str(Path(file).resolve().parents[module.count(".")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, *roots])
        yield


def _train(make_run: Callable[[], Run], folder: Path, kill_at: int | None) -> None:
    """Runs in a new process: trains from the start, or from the saved run."""
    try:
        run = make_run()
        own, seen = list(run.callbacks), _Seen()
        dies = [] if kill_at is None else [_Dies(folder / _SAVED, kill_at)]
        saved = folder / _SAVED
        trained = Trainer([*own, seen, *dies], **run.trainer).fit(
            run.experiment,
            run.train_ds,
            run.val_ds,
            num_epochs=run.num_epochs,
            max_steps=run.max_steps,
            batch_size=run.batch_size,
            resume=saved if saved.exists() else None,
        )
        note = {"callbacks": _memory(own), "epochs": seen.epochs}
        checkpoint.save(folder / _FINAL, trained, note=note)
    except BaseException:
        (folder / _ERROR).write_text(traceback.format_exc())
        raise


class _Dies(Callback):
    """Saves the run after a step and kills its process."""

    phase = Phase.SAVE
    modes = ("train",)
    needs = ("snapshot",)

    def __init__(self, path: Path, step: int) -> None:
        self.every = step
        self._path = path

    def on_step_end(self, record: Record) -> None:
        if record.step == self.every:
            snapshot = record.snapshot
            checkpoint.save(self._path, snapshot.experiment, note=snapshot.note)
            os.kill(os.getpid(), signal.SIGKILL)  # runs no `finally` and no exit handler


class _Seen(Callback):
    """Records the metrics of each epoch and evaluation."""

    def __init__(self) -> None:
        self.epochs: dict[str, Any] = {}

    def on_epoch_end(self, record: Record) -> None:
        moment = f"{record.mode} metrics of epoch {record.epoch + 1} at step {record.step}"
        self.epochs[moment] = to_plain(record.metrics, moment)


def _memory(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """The state and public attributes of the callbacks by name, if they can be written as JSON."""
    found: dict[str, Any] = {}
    for name, callback in named(callbacks).items():
        attributes: dict[str, Any] = {**vars(callback), "state_dict()": callback.state_dict()}
        for key in [key for key in attributes if not key.startswith("_")]:
            with suppress(TypeError):  # a function, a file: nothing to compare
                found[f"{name}.{key}"] = to_plain(_by_path(attributes[key]), key)
    return found


def _by_path(value: object) -> object:
    """An Equinox module as a dict by path, which can be written; other values unchanged."""
    is_module = isinstance(value, eqx.Module)
    return dict(_tree.leaves_by_path(value)) if is_module else value


def _compare(whole: Path, broken: Path, step: int) -> None:
    said = f"the run that was killed at step {step} and resumed ended differently: "
    for path, words in checkpoint.diff(whole, broken).items():
        raise AssertionError(f"{said}`{path}` of the Experiment: {words}")
    one, other = checkpoint.manifest(whole)["note"], checkpoint.manifest(broken)["note"]
    for kind in ("callbacks", "epochs"):
        for name, found in other[kind].items():
            expected = one[kind].get(name)
            if found != expected:
                raise AssertionError(
                    f"{said}{name} is {from_plain(found)}, and without a break "
                    f"{from_plain(expected)}"
                )
