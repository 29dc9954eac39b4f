"""`solstice.at`: any step of a run, with its bits, or an error that says why it cannot be had."""

import re
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import checkpoint
from solstice._loop._about import Start
from solstice.callbacks import Checkpoint, History, Trace
from solstice.checkpoint import CheckpointError
from solstice.data import batches

pytest.importorskip("safetensors")

STEPS = 5
"""In an epoch; the last batch has 3 rows."""

X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)


class Noisy(solstice.Experiment):
    """A step that shows in its state each batch, their order, and the key."""

    value: jax.Array
    rate: jax.Array
    key: jax.Array

    def train_step(self, batch: Any) -> Any:
        key, now = jax.random.split(self.key)
        noise = jax.random.normal(now, self.value.shape)
        value = self.value + self.rate * (jnp.mean(batch, axis=0) + 0.1 * noise - self.value)
        return solstice.replace(self, value=value, key=key), {"loss": jnp.sum(value**2)}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean((batch - self.value[None]) ** 2)}


class Steps(Noisy):
    """Its rate depends on the metrics of each epoch."""

    def epoch_step(self, metrics: Any) -> Any:
        return solstice.replace(self, rate=self.rate / (1 + jnp.asarray(metrics["val/loss"])))


class Halves(Noisy):
    """Its array is shorter from the second epoch on, so that its step is another program."""

    def train_step(self, batch: Any) -> Any:
        value = self.value + self.rate * (jnp.mean(batch) - self.value)
        return solstice.replace(self, value=value), {"loss": jnp.sum(value**2)}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean(batch)}

    def epoch_step(self, metrics: Any) -> Any:
        return solstice.replace(self, value=self.value[:2])


def make(kind: type[Noisy] = Noisy, *, seed: int = 0, rate: float = 0.3) -> Any:
    return kind(jnp.zeros(3) + seed, jnp.asarray(rate), jax.random.key(seed))


class Keep(solstice.Callback):
    """The state that each step starts from, as a loop by hand would see it."""

    modes, needs = ("train",), ("experiment",)

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_step_start(self, record: solstice.Record) -> None:
        self.before[record.step] = record.experiment


def ordered() -> Any:
    """A function of the epoch, whose length is unknown before its end."""

    def epoch(number: int) -> Any:
        order = np.random.default_rng(number).permutation(23)
        return (X[order[i : i + 5]] for i in range(0, 23, 5))

    return epoch


DATA = {"arrays": lambda: batches(X, 5, shuffle=True), "a function": ordered}
VAL = [X[:4], X[4:6]]


def run(
    folder: Path, data: str = "arrays", kind: type[Noisy] = Noisy, every: int = 7, **options: Any
) -> dict[int, Any]:
    """Trains for 4 epochs, and gives the state at each step."""
    keep = Keep()
    saver = Checkpoint(folder, every=every, every_epochs=None, keep=9)
    trainer = solstice.Trainer([keep, History(), saver], **options)
    last = trainer.fit(make(kind), DATA[data](), VAL, num_epochs=4)
    return {**keep.before, max(keep.before) + 1: last}


@pytest.mark.parametrize("data", DATA)
def test_each_step_has_its_bits(tmp_path: Path, data: str):
    """Before the first checkpoint, at one, between two, at the end of an epoch and of the run."""
    states = run(tmp_path / "a", data)
    for step in (0, 3, 5, 7, 10, 13, 14, 20):
        found = solstice.at(tmp_path / "a", step=step, experiment=make(), train_ds=DATA[data]())
        assert checkpoint.diff(found, states[step]) == {}, step


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("every", [5, 7])
def test_after_the_end_of_an_epoch_its_step_has_run(tmp_path: Path, data: str, every: int):
    """Also from a checkpoint at the last step of an epoch, which is not closed yet."""
    states = run(tmp_path / "a", data, Steps, every)
    for step in (4, 5, 10, 11):
        found = solstice.at(
            tmp_path / "a", step=step, experiment=make(Steps), train_ds=DATA[data](), val_ds=VAL
        )
        assert checkpoint.diff(found, states[step]) == {}, step
    with pytest.raises(CheckpointError, match="there was a validation set, and there is none"):
        solstice.at(tmp_path / "a", step=11, experiment=make(Steps), train_ds=DATA[data]())


def test_a_step_that_an_epoch_changes(tmp_path: Path):
    """Before the first checkpoint, which describes the program of a later epoch."""
    states = run(tmp_path / "a", kind=Halves, every=12)
    for step in (3, 7, 16):
        found = solstice.at(
            tmp_path / "a",
            step=step,
            experiment=make(Halves),
            train_ds=DATA["arrays"](),
            val_ds=VAL,
        )
        assert checkpoint.diff(found, states[step]) == {}, step


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 3}, {"overfit_batches": 2}, {"val_every_n_steps": 2}]
)
def test_the_batches_are_those_of_the_options(tmp_path: Path, options: dict[str, int]):
    states = run(tmp_path / "a", "arrays", Steps, 4, **options)
    step = max(states) - 1
    found = solstice.at(
        tmp_path / "a",
        step=step,
        experiment=make(Steps),
        train_ds=DATA["arrays"](),
        val_ds=VAL,
    )
    assert checkpoint.diff(found, states[step]) == {}


class Other(Noisy):
    """Another step of the same state."""

    def train_step(self, batch: Any) -> Any:
        new, outputs = super().train_step(batch)
        return solstice.replace(new, value=1.01 * new.value), outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A run with checkpoints at steps 7 and 14."""
    found = tmp_path_factory.mktemp("runs") / "a"
    run(found)
    return found


@pytest.mark.filterwarnings("ignore:2 devices cannot divide")
@pytest.mark.parametrize(
    ("step", "changed", "reason"),
    [
        (3, {"experiment": make(seed=1)}, "other numbers than that with which the run started"),
        (3, {"train_ds": batches(X, 5, shuffle=True, seed=1)}, "had seed=0, and has seed=1"),
        (9, {"train_ds": batches(X[::-1], 5, shuffle=True)}, "the arrays of train_ds are not"),
        (9, {"train_ds": batches(X, 4, shuffle=True)}, "an epoch had 5 batches, and has 6"),
        (3, {"experiment": make(rate=0.2)}, "`.rate` was 0.3"),
        (9, {"experiment": make(Other)}, "train_step computes something else"),
        (7, {"experiment": make(Other)}, "train_step computes something else"),
        (9, {"mesh": 2}, "it ran on 1 device"),
        (21, {}, "has no step 21: the run ended after step 20 (finished)"),
    ],
)
def test_what_is_not_exact_is_refused(
    folder: Path, step: int, changed: dict[str, Any], reason: str
):
    given: dict[str, Any] = {"experiment": make(), "train_ds": DATA["arrays"](), **changed}
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        solstice.at(folder, step=step, **given)


def test_from_a_checkpoint_all_numbers_are_read(folder: Path):
    found = [
        solstice.at(folder, step=9, experiment=start, train_ds=DATA["arrays"]())
        for start in (make(), make(seed=1, rate=0.2))
    ]
    assert checkpoint.diff(*found) == {}


def test_the_batch_size_is_that_of_the_run_where_one_is_needed(tmp_path: Path):
    saver = Checkpoint(tmp_path / "a", every=7, every_epochs=None)
    last = solstice.Trainer([saver]).fit(make(), X, batch_size=5, num_epochs=2)
    data = batches(X, 5, shuffle=True)
    for train_ds, more in ((X, {}), (X, {"batch_size": 5}), (data, {})):
        found = solstice.at(tmp_path / "a", step=10, experiment=make(), train_ds=train_ds, **more)
        assert checkpoint.diff(found, last) == {}
    with pytest.raises(CheckpointError, match="had batch_size=5, and has batch_size=4"):
        solstice.at(tmp_path / "a", step=10, experiment=make(), train_ds=X, batch_size=4)


def test_a_function_of_the_epoch_from_the_start_must_give_the_first_batch(tmp_path: Path):
    """It has no identity to compare, and no earlier batch."""
    run(tmp_path / "a", "a function")

    def later(epoch: int) -> Any:
        return ordered()(epoch + 1)

    with pytest.raises(CheckpointError, match="the first batch is another"):
        solstice.at(tmp_path / "a", step=3, experiment=make(), train_ds=later)


def test_a_folder_without_a_run(tmp_path: Path, folder: Path):
    given: dict[str, Any] = {"experiment": make(), "train_ds": DATA["arrays"]()}
    with pytest.raises(CheckpointError, match=r"has no checkpoint of a run: .*Checkpoint\('"):
        solstice.at(tmp_path, step=3, **given)
    checkpoint.save(tmp_path / "step-2", make())
    with pytest.raises(CheckpointError, match="has no checkpoint of a run"):
        solstice.at(tmp_path, step=3, **given)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a run"):
        solstice.at(tmp_path / "step-2", step=3, **given)
    with pytest.raises(ValueError, match="step must be 0 or more"):
        solstice.at(folder, step=-1, **given)


def test_one_checkpoint_is_a_place_to_start_from(folder: Path):
    given: dict[str, Any] = {"experiment": make(), "train_ds": DATA["arrays"]()}
    whole = solstice.at(folder, step=16, **given)
    assert checkpoint.diff(solstice.at(folder / "step-7", step=16, **given), whole) == {}
    assert checkpoint.diff(solstice.at(folder / "step-7", step=3, **given), make()) != {}


class Skewed(Noisy):
    """A step that is another one only at some steps, which no comparison of programs sees."""

    def train_step(self, batch: Any) -> Any:
        new, outputs = super().train_step(batch)
        extra = jax.pure_callback(_skew, jax.ShapeDtypeStruct((3,), jnp.float32), new.value)
        return solstice.replace(new, value=new.value + extra), outputs


SKEWS: list[float] = []


def _skew(value: Any) -> Any:
    return np.full(3, SKEWS[0], np.float32)


def test_the_trace_refuses_a_replay_of_other_numbers(tmp_path: Path):
    """From a checkpoint, and from the start. The outputs are of before the skew."""
    SKEWS[:] = [0.0]
    saver = Checkpoint(tmp_path / "a", every=7, every_epochs=None)
    trainer = solstice.Trainer([Trace(tmp_path / "a", every=2), saver])
    data = DATA["arrays"]()
    last = trainer.fit(make(Skewed), data, num_epochs=4)
    given: dict[str, Any] = {"experiment": make(Skewed), "train_ds": data}
    assert checkpoint.diff(solstice.at(tmp_path / "a", step=20, **given), last) == {}
    solstice.at(tmp_path / "a", step=3, **given)
    SKEWS[:] = [1e-3]
    for step, first, names in ((3, 2, "state/value"), (17, 16, "state/value")):
        with pytest.raises(
            CheckpointError, match=f"step {first} of the replay .*{names}"
        ) as caught:
            solstice.at(tmp_path / "a", step=step, **given)
        assert not hasattr(caught.value, "__notes__")


def test_a_saved_step_can_be_resumed(tmp_path: Path):
    states = run(tmp_path / "a")
    given: dict[str, Any] = {"experiment": make(), "train_ds": DATA["arrays"]()}
    found = solstice.at(tmp_path / "a", step=13, save=True, **given)
    path = tmp_path / "a/step-13"
    assert checkpoint.diff(checkpoint.load(path, like=make()), found) == {}
    whole, history = History(), History()
    solstice.Trainer([whole]).fit(make(), DATA["arrays"](), num_epochs=4)
    last = solstice.Trainer([history]).fit(
        make(), DATA["arrays"](), num_epochs=4, resume=path, strict_resume=True
    )
    assert checkpoint.diff(last, states[20]) == {}
    train = [row for row in history.rows if row["mode"] == "train"]
    assert train == whole.rows
    # The newest checkpoint of the run is still that of the run itself.
    assert Checkpoint(tmp_path / "a").last == tmp_path / "a/step-14"


def test_a_step_of_an_overwritten_run_is_not_taken(tmp_path: Path):
    """It has another seed, which would show in no comparison of programs."""
    place, data = tmp_path / "a", DATA["arrays"]()
    run(place)
    solstice.at(place, step=13, save=True, experiment=make(), train_ds=data)
    saver = Checkpoint(place, every=8, every_epochs=None, overwrite=True)
    last = solstice.Trainer([saver]).fit(make(seed=1), data, num_epochs=3)
    assert checkpoint.exists(place / "step-13")
    found = solstice.at(place, step=15, experiment=make(seed=1), train_ds=data)
    assert checkpoint.diff(found, last) == {}


def test_a_large_state_is_compared_in_part(tmp_path: Path):
    """The smallest arrays first, so that no large one is read from the device."""
    small, large = jnp.arange(3.0), jnp.zeros(2**24 + 1)
    one, other = (Start.of(cast("Any", [x, large + x[0]]), X) for x in (small, small + 1))
    assert one != other
    assert one == Start.of(cast("Any", [small, large + 7]), X)


def test_resume_takes_the_folder_of_a_run(folder: Path, caplog: pytest.LogCaptureFixture):
    last = solstice.Trainer().fit(
        make(), DATA["arrays"](), VAL, num_epochs=4, resume=folder, strict_resume=True
    )
    whole = solstice.Trainer().fit(make(), DATA["arrays"](), VAL, num_epochs=4)
    assert checkpoint.diff(last, whole) == {}
    assert f"resuming {folder / 'step-14'}, step 14" in caplog.text


def test_resume_of_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"a is not a checkpoint|there is no checkpoint"):
        solstice.Trainer().fit(make(), DATA["arrays"](), resume=tmp_path / "a")
