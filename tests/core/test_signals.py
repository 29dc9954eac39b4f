"""Where a signal ends a run, what is on disk then, and that the run resumes to the same bits.

The data sets, callbacks and inner runs here send the signal themselves, and fail if they are asked
for more afterwards: so what must be cut short is seen to be, without a clock.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import checkpoint
from solstice._loop import _state
from solstice.callbacks import Checkpoint, EarlyStopping, History, ProgressBar

pytest.importorskip("safetensors")

NUMBERS = [signal.SIGTERM, signal.SIGINT]
ERRORS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}
STEPS = 6
"""In an epoch."""

TRAIN = [np.full(2, 1 + 0.1 * i, np.float32) for i in range(STEPS)]
VAL = [np.full(2, 2 + i, np.float32) for i in range(3)]


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Python's own, also where the tests run in the background, whose shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Mean(solstice.Experiment):
    """A running mean, in which the order of the batches matters."""

    value: jax.Array
    steps: jax.Array

    def train_step(self, batch: Any) -> Any:
        value = 0.9 * self.value + 0.1 * batch.sum()
        new = solstice.replace(self, value=value, steps=self.steps + 1)
        return new, {"loss": (value - 3) ** 2}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": (self.value - batch.mean()) ** 2}


def mean() -> Mean:
    return Mean(jnp.zeros(()), jnp.zeros((), jnp.int32))


class Sends:
    """Sends this process a signal when it is called so many times; fails if the code goes on."""

    def __init__(self, number: int, at: int, *, cuts: bool = True) -> None:
        self.number, self.at, self.calls = number, at, 0
        self.has_sent, self.cuts = False, cuts

    def __call__(self) -> None:
        assert not (self.cuts and self.has_sent), "it was asked for more after the signal"
        self.calls += 1
        if self.calls == self.at:
            self.has_sent = True
            os.kill(os.getpid(), self.number)
            assert not self.cuts, "the wait was not cut short"


def through(batches: list[np.ndarray], sends: Any) -> Any:
    def read() -> Iterator[np.ndarray]:
        for batch in batches:
            sends()
            yield batch

    return read


def nothing() -> None:
    """Sends no signal."""


class Counts(solstice.Callback):
    """Remembers each step of training and each validation of which it is told."""

    every = 1

    def on_fit_start(self, record: solstice.Record) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode == "train":
            self.steps.append(record.step)

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.losses.append(record.metrics["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.losses = list(state["steps"]), list(state["losses"])


def run(
    folder: Any,
    train: Any = None,
    val: Any = None,
    more: Any = (),
    *,
    counts: Counts | None = None,
    resume: str | None = None,
    **options: Any,
) -> Any:
    counts = counts or Counts()
    callbacks = [
        *more,
        counts,
        EarlyStopping("val/loss", patience=9),
        Checkpoint(folder, every_epochs=9),
    ]
    trainer = solstice.Trainer([History(every=2), *callbacks], **options)
    trained = trainer.fit(
        mean(),
        train or through(TRAIN, nothing),
        val or through(VAL, nothing),
        num_epochs=3,
        resume=resume,
    )
    return (
        float(trained.value),
        int(trained.steps),
        trainer.history.rows,
        counts.steps,
        counts.losses,
    )


def ends(number: int, work: Any) -> None:
    with pytest.raises(ERRORS[number]) as raised:
        work()
    if number == signal.SIGTERM:
        assert raised.value.code == 143


def saved(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("at", [4, 6])
def test_a_validation_is_cut_short_and_done_again(tmp_path, number, prefetch, at):
    """The second validation, after 12 steps: within it, and at its last batch."""
    val = through(VAL, Sends(number, at, cuts=prefetch == 0))  # a thread is not cut
    ends(number, lambda: run(tmp_path / "a", val=val, prefetch=prefetch))
    assert saved(tmp_path / "a") == ["step-12"]
    resumed = run(tmp_path / "a", resume="last")
    assert resumed == run(tmp_path / "b")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_a_validation_at_a_step_is_cut_short_and_done_again(tmp_path, number, steps_per_call):
    options = {"val_every_n_steps": 4, "steps_per_call": steps_per_call}
    val = through(VAL, Sends(number, 5))
    ends(number, lambda: run(tmp_path / "a", val=val, **options))
    (name,) = saved(tmp_path / "a")
    assert 4 <= int(name.removeprefix("step-")) < 8  # before the steps after which it validates
    resumed = run(tmp_path / "a", resume="last", **options)
    assert resumed == run(tmp_path / "b", **options)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_validation_at_a_step_is_finished_where_the_state_is_large(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, number: int
):
    """To cut it short takes a copy of the state before the steps."""
    monkeypatch.setattr(_state, "_HELD_BYTES", -1)
    options = {"val_every_n_steps": 4}
    val = through(VAL, Sends(number, 5, cuts=False))
    ends(number, lambda: run(tmp_path / "a", val=val, **options))
    assert saved(tmp_path / "a") == ["step-8"]
    resumed = run(tmp_path / "a", resume="last", **options)
    assert resumed == run(tmp_path / "b", **options)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("at", [3, 6, 7, 9, 13])
def test_a_wait_for_batches_is_cut_short(tmp_path, number, at):
    """Within an epoch, and before the first batch of the next, after 6 and 12 steps."""
    train = through(TRAIN, Sends(number, at))
    ends(number, lambda: run(tmp_path / "a", train=train, steps_per_call=2))
    (name,) = saved(tmp_path / "a")
    step = int(name.removeprefix("step-"))
    assert step == (at - 1) // 2 * 2
    resumed = run(tmp_path / "a", resume="last", steps_per_call=2)
    assert resumed == run(tmp_path / "b", steps_per_call=2)


class Inner(solstice.Callback):
    """Trains, or evaluates, another Experiment at one moment of the run."""

    def __init__(self, hook: str, work: Any) -> None:
        self.hook, self.work = hook, work

    def on_epoch_start(self, record: solstice.Record) -> None:
        self._act("on_epoch_start", record)

    def on_step_end(self, record: solstice.Record) -> None:
        if record.step == 8:
            self._act("on_step_end", record)

    def on_epoch_end(self, record: solstice.Record) -> None:
        self._act("on_epoch_end", record)

    def _act(self, hook: str, record: solstice.Record) -> None:
        if record.mode == "train" and hook == self.hook and record.epoch == 1:
            self.work()


def fits(sends: Any) -> Any:
    return lambda: solstice.Trainer().fit(mean(), through(TRAIN, sends), num_epochs=2)


def evaluates(sends: Any) -> Any:
    return lambda: solstice.Trainer().test(mean(), through(TRAIN, sends))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("inner", [fits, evaluates])
@pytest.mark.parametrize("hook", ["on_epoch_start", "on_epoch_end"])
def test_a_run_within_a_callback_is_cut_short(tmp_path, number, inner, hook):
    within = Inner(hook, inner(Sends(number, 3)))
    ends(number, lambda: run(tmp_path / "a", more=[within]))
    assert saved(tmp_path / "a") == [{"on_epoch_start": "step-6", "on_epoch_end": "step-12"}[hook]]
    again = Inner(hook, inner(nothing))
    assert run(tmp_path / "a", more=[again], resume="last") == run(tmp_path / "b", more=[again])


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_within_a_step_hook_is_cut_short_where_no_memory_is_torn(tmp_path, number):
    def outer(folder: Any, sends: Any, resume: str | None = None) -> Any:
        callbacks = [Inner("on_step_end", fits(sends)), Checkpoint(folder, every_epochs=9)]
        trained = solstice.Trainer(callbacks).fit(mean(), TRAIN, num_epochs=3, resume=resume)
        return float(trained.value), int(trained.steps)

    ends(number, lambda: outer(tmp_path / "a", Sends(number, 3)))
    assert saved(tmp_path / "a") == ["step-8"]
    assert outer(tmp_path / "a", nothing, "last") == outer(tmp_path / "b", nothing)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_within_a_step_hook_ends_first_where_a_callback_remembers_the_step(tmp_path, number):
    """`Counts` is called with step 8 after the inner run."""
    within = Inner("on_step_end", fits(Sends(number, 3, cuts=False)))
    ends(number, lambda: run(tmp_path / "a", more=[within]))
    (name,) = saved(tmp_path / "a")
    assert 8 <= int(name.removeprefix("step-")) <= 12
    again = Inner("on_step_end", fits(nothing))
    assert run(tmp_path / "a", more=[again], resume="last") == run(tmp_path / "b", more=[again])


@pytest.mark.parametrize("number", NUMBERS)
def test_the_outermost_run_that_saves_is_saved(tmp_path, number):
    sends = Sends(number, 3)  # not at the end of an inner call

    def inner() -> None:
        saver = Checkpoint(tmp_path / "inner", every=1, overwrite=True)
        solstice.Trainer([saver]).fit(mean(), through(TRAIN, sends), num_epochs=2)

    ends(number, lambda: run(tmp_path / "a", more=[Inner("on_epoch_end", inner)]))
    assert saved(tmp_path / "a") == ["step-12"]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_inner_run_saves_where_the_outer_one_does_not(tmp_path, number):
    def inner() -> None:
        train = through(TRAIN, Sends(number, 4))
        saver = Checkpoint(tmp_path / "inner")
        trainer = solstice.Trainer([saver], steps_per_call=1)
        trainer.fit(mean(), train, num_epochs=2)

    trainer = solstice.Trainer([Inner("on_epoch_start", inner)])
    ends(number, lambda: trainer.fit(mean(), TRAIN, num_epochs=2))
    assert saved(tmp_path / "inner") == ["step-3"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fit_in_a_thread_leaves_the_signal_to_the_main_thread(tmp_path, number):
    """The thread trains on, to its end; the run of the main thread is saved."""
    result: list[Any] = []
    go_on, has_begun = threading.Event(), threading.Event()

    def slow() -> Iterator[np.ndarray]:
        for batch in TRAIN:
            has_begun.set()
            go_on.wait()
            yield batch

    def work() -> None:
        saver = Checkpoint(tmp_path / "thread")
        result.append(solstice.Trainer([saver]).fit(mean(), slow, num_epochs=1))

    def train() -> Iterator[np.ndarray]:
        sends = Sends(number, 4)
        for batch in TRAIN:
            assert has_begun.wait(60)
            sends()
            yield batch

    thread = threading.Thread(target=work)
    thread.start()
    try:
        ends(number, lambda: run(tmp_path / "a", train=train, steps_per_call=1))
    finally:
        go_on.set()
        thread.join()
    assert saved(tmp_path / "a") == ["step-3"]
    assert int(result[0].steps) == STEPS
    assert saved(tmp_path / "thread") == [f"step-{STEPS}"]


@pytest.mark.parametrize("number", NUMBERS)
def test_before_the_first_step_a_signal_ends_at_once(tmp_path, number):
    ends(number, lambda: run(tmp_path / "a", train=through(TRAIN, Sends(number, 1))))
    assert saved(tmp_path / "a") == []


@pytest.mark.parametrize("number", NUMBERS)
def test_a_second_signal_saves_nothing(tmp_path, number):
    class Twice(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 8:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
                raise AssertionError("the run went on")

    counts = Counts()
    ends(number, lambda: run(tmp_path / "a", more=[Twice()], counts=counts))
    assert saved(tmp_path / "a") == []


@pytest.mark.parametrize("number", NUMBERS)
def test_a_data_set_that_swallows_the_signal_is_not_asked_again(tmp_path, number):
    sends = Sends(number, 3, cuts=False)

    def stubborn() -> Iterator[np.ndarray]:
        for batch in TRAIN:
            with suppress(KeyboardInterrupt, SystemExit):  # such as a loader that tries again
                sends()
            yield batch

    ends(number, lambda: run(tmp_path / "a", train=stubborn, steps_per_call=2))
    resumed = run(tmp_path / "a", resume="last", steps_per_call=2)
    assert resumed == run(tmp_path / "b", steps_per_call=2)


def test_an_epoch_that_is_saved_is_not_saved_again(tmp_path):
    saver = Checkpoint(tmp_path / "a")
    before: list[int] = []

    def train() -> Iterator[np.ndarray]:
        if saver.last is not None:  # it is whole now
            before.append(saver.last.stat().st_ino)
            os.kill(os.getpid(), signal.SIGTERM)
        yield from TRAIN

    ends(signal.SIGTERM, lambda: solstice.Trainer([saver]).fit(mean(), train, num_epochs=3))
    assert [saver.last.stat().st_ino] == before
    assert saved(tmp_path / "a") == [f"step-{STEPS}"]


def test_nobody_says_that_it_saves_where_nothing_does(caplog):
    bar = ProgressBar()
    train = through(TRAIN, Sends(signal.SIGINT, 4))
    with pytest.raises(KeyboardInterrupt):
        solstice.Trainer([bar], steps_per_call=1).fit(mean(), train)
    assert "saving" not in caplog.text


class Keeps(solstice.Callback):
    """A saver of one's own, which takes the run as it is given."""

    saves = True

    def __init__(self, folder: Any) -> None:
        self.folder, self.moments = folder, list[Any]()

    def on_call_end(self, record: solstice.Record) -> None:
        if record.interrupted:
            self.moments.append((record.step, record.epoch_step))
            snapshot = record.snapshot
            checkpoint.save(self.folder, snapshot.experiment, note=snapshot.note)


def test_a_saver_of_ones_own_saves_once(tmp_path):
    keeps = Keeps(tmp_path / "a")
    val = through(VAL, Sends(signal.SIGTERM, 4))
    ends(signal.SIGTERM, lambda: solstice.Trainer([keeps]).fit(mean(), TRAIN, val, num_epochs=3))
    assert keeps.moments == [(12, 6)]
    resumed = solstice.Trainer().fit(mean(), TRAIN, VAL, num_epochs=3, resume=str(tmp_path / "a"))
    assert resumed.value == solstice.Trainer().fit(mean(), TRAIN, VAL, num_epochs=3).value


SCRIPT = """
import os, signal, sys
import jax.numpy as jnp
import numpy as np
import solstice
from solstice.callbacks import Checkpoint

class Total(solstice.Experiment):
    total: object
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {}
    def eval_step(self, batch):
        return self, {"loss": self.total}

def send():
    os.kill(os.getpid(), int(sys.argv[2]))

class At(solstice.Callback):
    def on_step_end(self, record):
        if record.mode == "train" and record.step == 3:
            send()

signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[3] == "before":
    send()
savers = [] if sys.argv[3] == "no saver" else [Checkpoint(sys.argv[1])]
callbacks = [At(), *savers]
solstice.Trainer(callbacks).fit(Total(jnp.zeros(())), [np.ones(2, np.float32)] * 5, num_epochs=2)
"""


@pytest.mark.parametrize(
    ("when", "number", "code", "steps"),
    [
        ("in a step", signal.SIGTERM, 143, ["step-5"]),
        ("in a step", signal.SIGINT, -signal.SIGINT, ["step-5"]),
        ("before", signal.SIGTERM, -signal.SIGTERM, []),
        ("before", signal.SIGINT, -signal.SIGINT, []),
        ("no saver", signal.SIGTERM, -signal.SIGTERM, []),
        ("no saver", signal.SIGINT, -signal.SIGINT, []),
    ],
)
def test_exit_codes(tmp_path, when, number, code, steps):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    folder = tmp_path / "a"
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), str(int(number)), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert saved(folder) == steps
    assert ("saving" in done.stderr) == bool(steps)


FORKS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import jax.numpy as jnp
import numpy as np
import solstice
from solstice.callbacks import Checkpoint

class Total(solstice.Experiment):
    total: object
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {}
    def eval_step(self, batch):
        return self, {}

class Forks(solstice.Callback):
    def on_epoch_end(self, record):
        handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        child = os.fork()
        if child == 0:
            now = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
            os._exit(7 if now == [signal.SIG_DFL, signal.default_int_handler] else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        now = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        print(code, now == handlers)

callbacks = [Forks(), Checkpoint(sys.argv[1])]
solstice.Trainer(callbacks).fit(Total(jnp.zeros(())), [np.ones(2, np.float32)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_worker_that_was_forked_has_the_usual_handlers(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["7", "True"], done.stderr
