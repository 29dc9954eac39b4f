"""`Experiment.epoch_step`: when it is called, what it may return, and that a resume is exact."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import Phase, checkpoint
from solstice._plain import to_plain
from solstice.callbacks import Checkpoint, CompileMonitor, EarlyStopping, History

pytest.importorskip("safetensors")
pytestmark = pytest.mark.filterwarnings("ignore:Eager.*train_step cannot be compiled")

STEPS = 5
"""In an epoch."""

TRAIN = [np.full(2, 1 + 0.1 * i, np.float32) for i in range(STEPS)]
VAL = [np.full(2, 2 + i, np.float32) for i in range(3)]


class Walk(solstice.Experiment):
    """A running mean whose rate depends on the metrics of each epoch, and on a key."""

    value: jax.Array
    rate: jax.Array
    key: jax.Array
    epochs: jax.Array
    most: int = eqx.field(static=True, default=99)

    def train_step(self, batch: Any) -> Any:
        value = self.value + self.rate * (batch.sum() - self.value)
        return solstice.replace(self, value=value), {"loss": jnp.mean((value - 3) ** 2)}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean((self.value - batch.mean()) ** 2)}

    def epoch_step(self, metrics: Any) -> Any:
        key, now = jax.random.split(self.key)
        rate = self.rate * jax.random.uniform(now) / (1 + metrics.get("val/loss", 0.0))
        return solstice.replace(self, rate=rate, key=key, epochs=self.epochs + 1)

    @property
    def is_finished(self) -> Any:
        return self.epochs >= self.most


class Halves(Walk):
    """Its arrays have half the length after each of the first epochs."""

    def epoch_step(self, metrics: Any) -> Any:
        new = super().epoch_step(metrics)
        return solstice.replace(new, value=new.value[: max(len(new.value) // 2, 1)])


class Eager(Walk):
    def train_step(self, batch: Any) -> Any:
        assert float(batch.sum()) > 0  # needs the value
        return Walk.train_step(self, batch)


class EagerHalves(Halves):
    train_step = Eager.train_step


def make(kind: type[Walk] = Walk, most: int = 99) -> Walk:
    return kind(jnp.zeros(8), jnp.asarray(0.3), jax.random.key(0), jnp.zeros((), jnp.int32), most)


def by_hand(experiment: Any, num_epochs: int) -> list[dict[str, float]]:
    """The metrics of each epoch, by a loop that knows nothing of the Trainer."""
    rows = []
    for _ in range(num_epochs):
        train = []
        for batch in TRAIN:
            experiment, outputs = experiment.train_step(batch)
            train.append(outputs["loss"])
        val = [experiment.eval_step(batch)[1]["loss"] for batch in VAL]
        row = {"train/loss": float(np.mean(train)), "val/loss": float(np.mean(val))}
        rows.append(row)
        experiment = experiment.epoch_step(row)
    return rows


def rows_of(history: History) -> str:
    return json.dumps(to_plain(history.rows, ""))


class Sees(solstice.Callback):
    """Remembers each moment at the end of an epoch."""

    modes = ("train", "val")

    def __init__(self, seen: list[Any], phase: Phase) -> None:
        self.seen, self.phase = seen, phase

    def on_epoch_end(self, record: solstice.Record) -> None:
        epochs = int(record.experiment.epochs) if record.mode == "train" else None
        self.seen.append((record.mode, self.phase.name, epochs))


# The moment


def test_the_moment_and_the_metrics():
    seen: list[Any] = []

    class Notes(Walk):
        def epoch_step(self, metrics: Any) -> Any:
            seen.append(dict(metrics))
            return super().epoch_step(metrics)

    trainer = solstice.Trainer([Sees(seen, phase) for phase in Phase])
    trainer.fit(make(Notes), TRAIN, VAL, num_epochs=2)
    metrics = [one for one in seen if isinstance(one, dict)]
    val = [("val", phase.name, None) for phase in Phase]
    for epoch in (0, 1):
        assert seen[7 * epoch : 7 * epoch + 7] == [
            ("train", "LOG", epoch),
            *val,
            metrics[epoch],
            ("train", "MONITOR", epoch + 1),
            ("train", "SAVE", epoch + 1),
        ]
    for found, expected in zip(metrics, by_hand(make(), 2), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
        assert all(type(value) is float for value in found.values())


def test_values_that_callbacks_measure_are_not_given():
    class Measures(solstice.Callback):
        def measure(self, record: solstice.Record) -> Any:
            return {"extra": 1.0}

    given: list[Any] = []

    class Notes(Walk):
        def epoch_step(self, metrics: Any) -> Any:
            given.append(list(metrics))
            return self

    trainer = solstice.Trainer([Measures()])
    trainer.fit(make(Notes), TRAIN)
    assert "extra" in trainer.history.rows[0]
    assert given == [["train/loss"]]


class StopsAt(solstice.Callback):
    """Asks to stop at one moment."""

    modes = ("train", "val")

    def __init__(self, mode: str, hook: str, step: int, phase: Phase = Phase.LOG) -> None:
        self.at, self.phase = (mode, hook, step), phase

    def _look(self, record: solstice.Record, hook: str) -> None:
        if (record.mode, hook, record.epoch_step) == self.at:
            raise solstice.Stop("enough")

    def on_step_end(self, record: solstice.Record) -> None:
        self._look(record, "step")

    def on_epoch_end(self, record: solstice.Record) -> None:
        self._look(record, "epoch")


@pytest.mark.parametrize(
    ("at", "epochs"),
    [
        (("train", "step", 3), 0),
        (("train", "step", STEPS), 0),
        (("train", "epoch", STEPS), 1),  # the epoch and its validation are complete
        (("val", "step", 1), 0),  # its metrics are of a part
        (("val", "epoch", 3, Phase.MONITOR), 1),  # as of EarlyStopping
        (("train", "epoch", STEPS, Phase.SAVE), 1),
    ],
)
def test_an_epoch_that_a_stop_cuts_has_none(at: Any, epochs: int):
    found = solstice.Trainer([StopsAt(*at)]).fit(make(), TRAIN, VAL, num_epochs=3)
    assert int(found.epochs) == epochs


@pytest.mark.parametrize(("max_steps", "epochs"), [(4, 0), (5, 1), (7, 1), (10, 2)])
def test_an_epoch_that_max_steps_cuts_has_none(max_steps: int, epochs: int):
    assert int(solstice.Trainer().fit(make(), TRAIN, VAL, max_steps=max_steps).epochs) == epochs


def test_the_newest_validation_within_the_epoch_counts():
    given: list[Any] = []

    class Notes(Walk):
        def epoch_step(self, metrics: Any) -> Any:
            given.append(metrics.get("val/loss"))
            return super().epoch_step(metrics)

    trainer = solstice.Trainer(val_every_n_steps=7)
    trainer.fit(make(Notes), TRAIN, VAL, num_epochs=5)
    rows = [row for row in trainer.history.rows if row["mode"] == "val"]
    assert [row["step"] for row in rows] == [7, 14, 21]
    assert given == [None, rows[0]["loss"], rows[1]["loss"], None, rows[2]["loss"]]


def test_an_experiment_without_it_pays_nothing(monkeypatch: pytest.MonkeyPatch):
    class Plain(Walk):
        epoch_step = solstice.Experiment.epoch_step
        is_finished = solstice.Experiment.is_finished

    def refuses(*_: Any) -> Any:
        raise BoomError

    monkeypatch.setattr("solstice._loop._run.step_epoch", refuses)

    class Without(Walk):
        monitor = None

    for kind in (Plain, Without):
        trainer = solstice.Trainer()
        found = trainer.fit(make(kind), TRAIN, VAL, num_epochs=2)
        assert len(trainer.history.rows) == 4
        assert int(found.epochs) == 0
    with pytest.raises(BoomError):
        solstice.Trainer().fit(make(), TRAIN)


# The end of the run


@pytest.mark.parametrize("kind", [Walk, Halves, Eager])
def test_a_finished_experiment_ends_the_run(tmp_path: Path, kind: type[Walk]):
    trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
    found = trainer.fit(make(kind, most=2), TRAIN, VAL, num_epochs=9)
    assert int(found.epochs) == 2
    assert trainer.history.rows[-1]["epoch"] == 1
    position = checkpoint.manifest(tmp_path / "a" / "step-10")["note"]["run"]
    assert position["stop"] == f"{kind.__name__}.is_finished, after epoch 2"
    again = solstice.Trainer([Checkpoint(tmp_path / "a")])
    found = again.fit(make(kind, most=2), TRAIN, VAL, num_epochs=9, resume="last")
    assert int(found.epochs) == 2


def test_is_finished_alone_is_read_too():
    class Enough(Walk):
        epoch_step = solstice.Experiment.epoch_step

        @property
        def is_finished(self) -> bool:
            return bool(self.value[0] > 1.5)

    trainer = solstice.Trainer()
    found = trainer.fit(make(Enough), TRAIN, num_epochs=9)
    assert found.is_finished
    assert trainer.history.rows[-1]["epoch"] < 8


def test_the_metric_that_it_needs_is_checked_before_the_first_step():
    class Monitors(Walk):
        monitor = "val/loss"

        def train_step(self, batch: Any) -> Any:
            jax.debug.callback(lambda: stepped.append(1))
            return super().train_step(batch)

    stepped: list[int] = []
    with pytest.raises(ValueError, match="Monitors monitors 'val/loss' and there is no validation"):
        solstice.Trainer().fit(make(Monitors), TRAIN)
    Monitors.monitor = "val/lost"
    with pytest.raises(KeyError, match="did you mean 'val/loss'"):
        solstice.Trainer().fit(make(Monitors), TRAIN, VAL)
    assert stepped == []


# Other shapes


@pytest.mark.parametrize("kind", [Walk, Halves, Eager, EagerHalves])
@pytest.mark.parametrize("donate", [False, True])
def test_the_run_is_the_one_by_hand(kind: type[Walk], donate: bool):
    trainer = solstice.Trainer()
    given = make(kind)
    found = trainer.fit(given, TRAIN, VAL, num_epochs=5, donate=donate)
    losses = [row["loss"] for row in trainer.history.rows]
    expected = [row[name] for row in by_hand(make(kind), 5) for name in ("train/loss", "val/loss")]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(found.value) == (8 if kind in (Walk, Eager) else 1)
    assert given.value.is_deleted() == donate


def test_each_shape_is_compiled_once_and_named():
    class Halving(Halves):
        """Not compiled by another test."""

    class Walking(Walk):
        pass

    monitor = CompileMonitor()
    solstice.Trainer([monitor]).fit(make(Halving), TRAIN, VAL, num_epochs=7)
    names = [compilation.name for compilation in monitor.compilations]
    assert sorted(names) == ["Halving.eval_step"] * 4 + ["Halving.train_step"] * 4
    assert "`.value` was float32[8] and is float32[4]" in " ".join(map(str, monitor.compilations))
    monitor = CompileMonitor()
    solstice.Trainer([monitor]).fit(make(Walking), TRAIN, VAL, num_epochs=7)
    assert len(monitor.compilations) == 2


def test_other_structures_and_constants_are_compiled_again():
    class Grows(Walk):
        def epoch_step(self, metrics: Any) -> Any:
            if self.most == 3:
                return self
            ones = jnp.ones(2), jnp.ones(3)
            return eqx.tree_at(lambda e: e.value, solstice.replace(self, most=self.most + 1), ones)

        def train_step(self, batch: Any) -> Any:
            total = sum(jnp.sum(x) for x in jax.tree.leaves(self.value))
            return self, {"loss": total * self.most}

        def eval_step(self, batch: Any) -> Any:
            return self, {"loss": jnp.asarray(self.most)}

    trainer = solstice.Trainer()
    trainer.fit(make(Grows, most=0), TRAIN, VAL, num_epochs=5)
    found = [(row["mode"], row["loss"]) for row in trainer.history.rows]
    assert [loss for mode, loss in found if mode == "train"] == [0, 5, 10, 15, 15]
    assert [loss for mode, loss in found if mode == "val"] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("kind", [Walk, Halves])
def test_callbacks_keep_what_they_were_given(kind: type[Walk]):
    kept: list[Any] = []

    class Keeps(solstice.Callback):
        modes = ("train",)

        def on_epoch_end(self, record: solstice.Record) -> None:
            kept.append(record)

    solstice.Trainer([Keeps()]).fit(make(kind), TRAIN, num_epochs=3)
    if kind is Halves:
        assert [len(record.experiment.value) for record in kept] == [8, 4, 2]
    assert [int(record.experiment.epochs) for record in kept] == [0, 1, 2]


def test_metrics_of_steps_go_on_over_the_end_of_an_epoch():
    """A window of 4 steps spans the end of an epoch of 5; only other metrics cut it."""
    windows = {}
    for kind in (Walk, Halves):
        history = History(every=4)
        solstice.Trainer([history]).fit(make(kind), TRAIN, num_epochs=4)
        windows[kind] = [r["loss"] for r in history.rows if r["span"] == "steps"]
        assert len(windows[kind]) == 5
    np.testing.assert_allclose(windows[Walk], windows[Halves], rtol=1e-5)


# Resume


class BoomError(Exception):
    pass


class DiesAt(StopsAt):
    def __init__(self, *at: Any) -> None:
        *moment, self.count = at
        super().__init__(*moment)

    def _look(self, record: solstice.Record, hook: str) -> None:
        if (record.mode, hook, record.epoch_step) == self.at:
            self.count -= 1
            if self.count == 0:
                raise BoomError


class SignalsAt(DiesAt):
    def _look(self, record: solstice.Record, hook: str) -> None:
        try:
            super()._look(record, hook)
        except BoomError:
            os.kill(os.getpid(), signal.SIGTERM)


class SavesEarly(solstice.Callback):
    """Saves before the validation and `epoch_step`, at each end of an epoch."""

    modes, needs, phase = ("train",), ("snapshot",), Phase.LOG

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_end(self, record: solstice.Record) -> None:
        snapshot = record.snapshot
        path = self.folder / f"early-{record.step}"
        checkpoint.save(path, snapshot.experiment, note=snapshot.note)

    @property
    def newest(self) -> Path:
        return max(self.folder.glob("early-*"), key=lambda path: int(path.name[6:]))


def run(saver: Any, kind: type[Walk], *more: Any, resume: Any = None, **options: Any) -> Any:
    history = History(every=3)
    stopping = EarlyStopping("val/loss", patience=9)
    trainer = solstice.Trainer([history, stopping, saver, *more], **options)
    ds = solstice.data.batches(np.stack(TRAIN).reshape(-1), 2, shuffle=True, seed=3)
    found = trainer.fit(
        make(kind), ds, VAL, num_epochs=5, resume=resume, strict_resume=resume is not None
    )
    return found, rows_of(history), stopping.state_dict()


def same(one: Any, other: Any) -> None:
    assert checkpoint.diff(one[0], other[0]) == {}
    assert one[1:] == other[1:]


WHOLE: dict[Any, Any] = {}


def whole(folder: Path, kind: type[Walk], **options: Any) -> Any:
    key = kind, *options.items()
    if key not in WHOLE:
        WHOLE[key] = run(Checkpoint(folder / "whole", every=2), kind, **options)
    return WHOLE[key]


MOMENTS = [
    ("train", "step", 1, Phase.SAVE, 3),
    ("train", "epoch", 5, Phase.LOG, 3),
    ("val", "step", 2, Phase.LOG, 3),
    ("val", "epoch", 3, Phase.MONITOR, 2),
    ("train", "epoch", 5, Phase.MONITOR, 3),
    ("train", "epoch", 5, Phase.SAVE, 4),
]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", [Walk, Halves])
def test_a_run_that_dies_resumes_to_the_same_bits(tmp_path: Path, kind: type[Walk], moment: Any):
    with pytest.raises(BoomError):
        run(Checkpoint(tmp_path / "a", every=2), kind, DiesAt(*moment))
    resumed = run(Checkpoint(tmp_path / "a", every=2), kind, resume="last")
    same(resumed, whole(tmp_path, kind))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", [Walk, Halves])
def test_a_run_that_a_signal_ends_resumes_to_the_same_bits(
    tmp_path: Path, kind: type[Walk], moment: Any
):
    def saver() -> Checkpoint:
        return Checkpoint(tmp_path / "a", every_epochs=99)

    with pytest.raises(SystemExit):
        run(saver(), kind, SignalsAt(*moment))
    same(run(saver(), kind, resume="last"), whole(tmp_path, kind))


@pytest.mark.parametrize("kind", [Walk, Halves])
def test_a_signal_in_it_saves_the_moment_before_the_end_of_the_epoch(
    tmp_path: Path, kind: type[Walk]
):
    class Signals(kind):  # pyright: ignore[reportUntypedBaseClass]
        def epoch_step(self, metrics: Any) -> Any:
            if int(self.epochs) == 2 and not resumed:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().epoch_step(metrics)

    resumed: list[Any] = []
    with pytest.raises(SystemExit):
        run(Checkpoint(tmp_path / "a", every_epochs=99), Signals)
    resumed.append(True)
    found = run(Checkpoint(tmp_path / "a", every_epochs=99), Signals, resume="last")
    same(found, whole(tmp_path, kind))


@pytest.mark.parametrize("kind", [Walk, Halves])
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_saved_before_it_runs_it_when_resumed(tmp_path: Path, kind: type[Walk], count: int):
    expected = run(SavesEarly(tmp_path / "b"), kind)
    with pytest.raises(BoomError):
        run(SavesEarly(tmp_path / "a"), kind, DiesAt("train", "epoch", 5, Phase.MONITOR, count))
    saver = SavesEarly(tmp_path / "a")
    same(run(saver, kind, resume=saver.newest), expected)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_validation_within_an_epoch_is_remembered(tmp_path: Path, step: int):
    """The third epoch, of the steps 11 to 15, has a validation at 12 alone."""
    options = {"val_every_n_steps": 4}
    dies = DiesAt("train", "step", step, Phase.SAVE, 3)
    with pytest.raises(BoomError):
        run(Checkpoint(tmp_path / "a", every=1), Walk, dies, **options)
    saver = Checkpoint(tmp_path / "a", every=1)
    resumed = run(saver, Walk, resume="last", **options)
    same(resumed, run(Checkpoint(tmp_path / "b", every=1), Walk, **options))


def test_more_steps_run_it_for_an_epoch_that_max_steps_had_ended(tmp_path: Path):
    """The length of the data is unknown, so the run cannot know that the epoch was complete."""

    def fit(folder: str, max_steps: int, **options: Any) -> Any:
        trainer = solstice.Trainer([Checkpoint(tmp_path / folder)])
        return trainer.fit(make(), lambda: iter(TRAIN), VAL, max_steps=max_steps, **options)

    expected = fit("a", 12)
    assert int(fit("b", STEPS).epochs) == 0
    found = fit("b", 12, resume="last")
    assert checkpoint.diff(found, expected) == {}
    assert int(found.epochs) == 2


def test_another_dtype_is_refused_by_a_resume(tmp_path: Path):
    saver = Checkpoint(tmp_path / "a")
    solstice.Trainer([saver]).fit(make(), TRAIN, VAL)
    other = solstice.replace(make(), epochs=jnp.zeros(()))
    with pytest.raises(checkpoint.CheckpointError, match=r"`\.epochs` was a JAX int32\[\]"):
        solstice.Trainer([saver]).fit(other, TRAIN, VAL, num_epochs=2, resume="last")


# Errors


def fails(returns: Any, match: str, error: type[Exception] = solstice.ExperimentError) -> Any:
    class Fails(Walk):
        def epoch_step(self, metrics: Any) -> Any:
            return returns(self, metrics)

    with pytest.raises(error, match=match) as caught:
        solstice.Trainer().fit(make(Fails), TRAIN, VAL, num_epochs=2)
    return caught.value


def test_what_it_may_not_return():
    fails(lambda exp, _: None, "must return the next Experiment, a Fails; it returned None")
    fails(lambda exp, _: (exp, {}), "must return the next Experiment, a Fails; it returned")
    fails(lambda exp, _: make(), "must return the next Experiment, a Fails; it returned Walk")


def test_an_error_in_it_names_the_metrics():
    error = fails(lambda exp, metrics: metrics["val/los"], "val/los", KeyError)
    assert error.__notes__[0] == "Fails.epoch_step was given these metrics: train/loss, val/loss"
    assert int(error.experiment.epochs) == 0

    def stops(exp: Any, metrics: Any) -> Any:
        raise solstice.Stop

    fails(stops, "To end the run, return an Experiment whose property `is_finished` is True")


def test_a_step_that_refuses_what_it_returned_names_the_change():
    def broken(exp: Any, metrics: Any) -> Any:
        return solstice.replace(exp, value=jnp.zeros((2, 3)), rate=jnp.zeros(2))

    error = fails(broken, "rate|broadcast|shape|type", Exception)
    notes = " ".join(error.__notes__)
    assert "This is the step of the Experiment that Fails.epoch_step returned: `.value`" in notes
    assert "it was float32[8] and came back as float32[2, 3]" in notes


def test_is_finished_must_be_a_property_of_one_value():
    with pytest.raises(TypeError, match=r"A\.is_finished is a method.*`@property`"):

        class A(Walk):
            def is_finished(self) -> bool:  # pyright: ignore
                return False

    with pytest.raises(TypeError, match=r"B\.is_finished is a field"):

        class B(solstice.Experiment):
            is_finished: jax.Array  # pyright: ignore

    class Many(Walk):
        @property
        def is_finished(self) -> Any:
            return self.value > 0

    with pytest.raises(solstice.ExperimentError, match=r"an array of shape \[8\]: .*all\(\)"):
        solstice.Trainer().fit(make(Many), TRAIN)


@pytest.mark.parametrize("name", ["on_epoch_end", "on_train_epoch_end", "epoch_steps", "epoch_end"])
def test_a_name_close_to_it_gets_a_hint(name: str):
    with pytest.warns(UserWarning, match=rf"Other\.{name} is never called.*epoch_step"):
        type("Other", (Walk,), {name: lambda self: None})
