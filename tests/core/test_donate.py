"""`fit(..., donate=True)`: the caller's Experiment is given up, and nothing else is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CLASSES, FEATURES, Sgd, blobs

import solstice
from solstice import _tree
from solstice._engine import _ownership
from solstice._engine._ownership import held_by_others
from solstice.callbacks import Checkpoint, NormMonitor

BATCHES = [np.full(4, i, np.float32) for i in range(6)]


class Adds(solstice.Experiment):
    """Two arrays and a count that change, and one that does not."""

    one: Any
    two: Any
    fixed: Any
    count: Any
    start: Any = None

    def train_step(self, batch: Any) -> Any:
        one = self.one + batch.sum() * self.fixed
        new = solstice.replace(self, one=one, two=self.two - one, count=self.count + 1)
        return new, {"sum": one.sum()}

    def eval_step(self, batch: Any) -> Any:
        return self, {"sum": self.one.sum() * batch.sum()}

    def predict_step(self, batch: Any) -> Any:
        return self.one.sum() * batch


class EagerAdds(Adds):
    def train_step(self, batch: Any) -> Any:
        assert float(batch.sum()) >= 0  # needs the value
        return super().train_step(batch)


class Watches(solstice.Callback):
    """May stop at any step, so calls of several steps donate nothing."""

    def on_step_end(self, record: solstice.Record) -> None:
        pass


def adds(kind: type[Adds] = Adds, **fields: Any) -> Adds:
    usual = {"one": jnp.arange(4.0) + 1, "two": jnp.ones(4) * 2, "fixed": jnp.ones(()) * 3}
    return kind(**{**usual, "count": jnp.asarray(0), **fields})


def numbers(tree: Any) -> list[Any]:
    return [np.array(x) for x in jax.tree.leaves(tree)]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small state is copied; of a large one, only what others hold."""
    if request.param == "large":
        monkeypatch.setattr(_ownership, "_SMALL_BYTES", -1)
    return request.param


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one step a call": {"steps_per_call": 1},
    "validation": {"val_ds": BATCHES, "sanity_val_batches": 1},
    "a callback that can stop": {"callbacks": [Watches()]},
    "a callback that can stop, one call": {"callbacks": [Watches()], "num_epochs": 1},
    "norms": {"callbacks": [NormMonitor()]},
}


def fitted(exp: Adds, *, donate: bool, **options: Any) -> Adds:
    options = {"callbacks": (), "val_ds": None, "num_epochs": 3, **options}
    val_ds, num_epochs = options.pop("val_ds"), options.pop("num_epochs")
    trainer = solstice.Trainer(**options)
    return trainer.fit(exp, BATCHES, val_ds, num_epochs=num_epochs, donate=donate)


@pytest.mark.parametrize("run", RUNS)
def test_the_result_is_the_same_and_the_old_arrays_are_gone(run: str, size: str):
    usual, start = fitted(adds(), donate=False, **RUNS[run]), adds()
    given = fitted(start, donate=True, **RUNS[run])
    assert_same(given, usual)
    assert start.one.is_deleted()
    assert start.two.is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(given))


def test_without_it_the_old_experiment_stays_valid(size: str):
    start = adds()
    fitted(start, donate=False)
    assert_same(start, adds())


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_a_step_that_is_not_compiled_gives_it_up_too(size: str):
    start = adds(EagerAdds)
    given = fitted(start, donate=True)
    assert_same(given, fitted(adds(), donate=False))
    assert start.one.is_deleted()


def test_a_resumed_run_gives_it_up_too(tmp_path: Path, size: str):
    whole, saver = fitted(adds(), donate=False), Checkpoint(tmp_path)
    solstice.Trainer([saver]).fit(adds(), BATCHES, num_epochs=1)
    start = adds()
    resumed = solstice.Trainer([saver]).fit(
        start, BATCHES, num_epochs=3, resume="last", donate=True
    )
    assert_same(resumed, whole)
    assert start.one.is_deleted()


def test_a_run_goes_on_with_its_own_result(size: str):
    trainer, exp = solstice.Trainer(), adds()
    for _ in range(3):
        old, exp = exp, trainer.fit(exp, BATCHES, donate=True)
        assert old.one.is_deleted()
        assert trainer.experiment is exp
        assert "copied" not in trainer.explain()
    assert_same(exp, fitted(adds(), donate=False))


@pytest.fixture(scope="module")
def gone() -> Adds:
    start = adds()
    solstice.Trainer().fit(start, BATCHES, donate=True)
    return start


USES: dict[str, Callable[[Any, Path], Any]] = {
    "fit": lambda exp, path: solstice.Trainer().fit(exp, BATCHES),
    "train": lambda exp, path: solstice.train(exp, train_ds=BATCHES, callbacks=[]),
    "validate": lambda exp, path: solstice.Trainer().validate(exp, BATCHES),
    "test": lambda exp, path: solstice.Trainer().test(exp, BATCHES),
    "predict": lambda exp, path: solstice.Trainer().predict(exp, BATCHES),
    "run_steps": lambda exp, path: solstice.run_steps(exp, np.stack(BATCHES)),
    "save": lambda exp, path: solstice.checkpoint.save(path / "a", exp),
    "replace": lambda exp, path: solstice.replace(exp, count=jnp.asarray(1)),
}


@pytest.mark.parametrize("use", USES)
def test_to_use_the_old_one_is_an_error_with_the_line_to_write(
    use: str, gone: Adds, tmp_path: Path
):
    with pytest.raises(ValueError, match="has been deleted") as caught:
        USES[use](gone, tmp_path)
    assert "one" in str(caught.value)
    assert "`exp = trainer.fit(exp, ..., donate=True)`" in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_the_old_one_is_still_a_template(gone: Adds, tmp_path: Path):
    saved = adds()
    solstice.checkpoint.save(tmp_path / "a", saved)
    assert_same(solstice.checkpoint.load(tmp_path / "a", like=gone), saved)
    arrays = {"one": saved.one, "two": saved.two, "fixed": saved.fixed, "count": saved.count}
    assert_same(solstice.replace(gone, **arrays), saved)


def test_a_ready_made_experiment_gives_itself_up(size: str):
    def make() -> Any:
        net = eqx.nn.Linear(FEATURES, CLASSES, key=jax.random.key(0))
        return solstice.ClassificationExperiment(
            net, Sgd(0.1), num_classes=CLASSES, sample_input=np.zeros((1, FEATURES), np.float32)
        )

    usual, start = make().train(blobs(4), callbacks=[]), make()
    given = start.train(blobs(4), callbacks=[], donate=True)
    assert_same(given.learner.params, usual.learner.params)
    with pytest.raises(ValueError, match="donate=True"):
        start.with_params(given.learner.params)
    with pytest.raises(ValueError, match="donate=True"):
        start.predict(np.zeros((1, FEATURES), np.float32), batch_size=1)


def held_by_the_class(array: Any) -> type[Adds]:
    class Closes(Adds):
        def train_step(self, batch: Any) -> Any:
            new, outputs = super().train_step(batch)
            return solstice.replace(new, two=new.two + array.sum()), outputs

    return Closes


def aliased(kind: str) -> tuple[Adds, Any]:
    """An Experiment with an alias of one of its arrays, and the alias if others hold it."""
    array = jnp.arange(4.0) + 1
    if kind == "two leaves":
        return adds(one=array, start=array), None
    if kind == "two leaves, two arrays":
        return adds(one=array, start=jax.device_put(array, jax.devices()[0])), None
    if kind == "a variable":
        return adds(one=array), array
    if kind == "another array":
        return adds(one=array), jax.device_put(array, jax.devices()[0])
    if kind == "a view of NumPy":
        return adds(one=array), np.asarray(array)
    if kind == "the step":
        return adds(held_by_the_class(array), one=array), array
    return adds(one=array), adds(one=array)


ALIASES = [
    *("two leaves", "two leaves, two arrays", "a variable", "another array", "a view of NumPy"),
    *("the step", "another Experiment"),
]


@pytest.mark.parametrize("kind", ALIASES)
def test_what_others_hold_is_not_destroyed(kind: str, size: str):
    usual = fitted(aliased(kind)[0], donate=False)
    start, other = aliased(kind)
    before = numbers(other)
    given = fitted(start, donate=True)
    assert_same(given, usual)
    assert [x.tolist() for x in numbers(other)] == [x.tolist() for x in before]
    assert start.two.is_deleted()


class Keeps(solstice.Callback):
    """Keeps a part of each Experiment that it gets, and its numbers at that moment."""

    needs = ("experiment",)
    every = 2

    def __init__(self, part: Callable[[Any], Any]) -> None:
        self.part = part
        self.kept: list[tuple[Any, list[Any]]] = []

    def keep(self, record: solstice.Record) -> None:
        part = self.part(record.experiment)
        self.kept.append((part, numbers(part)))

    on_fit_start = on_epoch_start = on_step_end = on_epoch_end = on_fit_end = keep


PARTS: dict[str, Callable[[Any], Any]] = {
    "all": lambda exp: exp,
    "one array": lambda exp: exp.one,
    "another array": lambda exp: jax.device_put(exp.two, jax.devices()[0]),
    "its data": lambda exp: exp.one.addressable_data(0),
    "a view of NumPy": lambda exp: np.asarray(exp.one),
    "a view of DLPack": lambda exp: np.from_dlpack(exp.one),
}


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_nothing_that_a_callback_keeps_is_deleted_or_changed(part: str, donate: bool, size: str):
    keeps, start = Keeps(PARTS[part]), adds()
    given = fitted(start, donate=donate, callbacks=[keeps], val_ds=BATCHES)
    assert_same(given, fitted(adds(), donate=False))
    assert len(keeps.kept) > 10
    for now, then in keeps.kept:
        for a, b in zip(numbers(now), then, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
@pytest.mark.parametrize("part", ["all", "one array", "another array"])
def test_nothing_that_a_callback_keeps_of_an_eager_run_is_deleted(part: str, size: str):
    keeps = Keeps(PARTS[part])
    fitted(adds(EagerAdds), donate=True, callbacks=[keeps])
    for now, then in keeps.kept:
        for a, b in zip(numbers(now), then, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The arrays that were copied, each time."""
    made: list[int] = []
    copy = _tree.copy_in_place

    def counted(arrays: list[Any], indices: Any) -> None:
        made.append(len(indices))
        copy(arrays, indices)

    monkeypatch.setattr(_tree, "copy_in_place", counted)
    monkeypatch.setattr(_ownership, "_SMALL_BYTES", -1)
    return made


class Reads(solstice.Callback):
    needs = ("experiment",)
    modes = ("train", "val")

    def read(self, record: solstice.Record) -> None:
        self.sum = float(record.experiment.one.sum()) + np.asarray(record.experiment.two).sum()  # pyright: ignore[reportAttributeAccessIssue]

    on_fit_start = on_epoch_start = on_step_end = on_epoch_end = on_fit_end = read


@pytest.mark.parametrize("donate", [False, True])
def test_to_read_copies_nothing_and_to_keep_copies_what_is_kept(donate: bool, copied: list[int]):
    num_arrays = 4
    at_start = 0 if donate else num_arrays
    fitted(adds(), donate=donate, callbacks=[Reads(), NormMonitor()], val_ds=BATCHES)
    assert copied[0] == at_start
    assert sum(copied[1:]) == 0
    copied.clear()
    keeps = Keeps(PARTS["one array"])
    fitted(adds(), donate=donate, callbacks=[keeps])
    assert copied[0] == (1 if donate else num_arrays)
    assert {*copied[1:]} == {1}


@pytest.mark.parametrize("donate", [False, True])
def test_a_resumed_run_copies_nothing(tmp_path: Path, donate: bool, copied: list[int]):
    saver, start = Checkpoint(tmp_path), adds()
    solstice.Trainer([saver]).fit(start, BATCHES, num_epochs=1)
    copied.clear()
    path = saver.find("last")
    solstice.Trainer().fit(start, BATCHES, num_epochs=3, resume=path, donate=donate)
    assert copied
    assert sum(copied) == 0


def test_a_run_says_what_it_holds_and_why(copied: list[int]):
    trainer = solstice.Trainer()
    trainer.fit(adds(), BATCHES)
    assert "held: the newest state, and the Experiment given to `fit`" in trainer.explain()
    trainer.fit(adds(), BATCHES, donate=True)
    assert "held: the newest state alone" in trainer.explain()
    assert "copied" not in trainer.explain()
    start, _kept = aliased("a variable")
    trainer.fit(start, BATCHES, donate=True)
    assert "copied at the start: 16 bytes that other objects hold too" in trainer.explain()
    trainer = solstice.Trainer([Keeps(PARTS["all"])])
    trainer.fit(adds(), BATCHES)
    assert re.search(r"copied [0-9]+ times: callbacks kept arrays", trainer.explain())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"steps_per_call": 1}, {"callbacks": [Watches()]}])
def test_a_run_that_fails_leaves_its_newest_experiment(error: Any, options: Any, size: str):
    class Fails(solstice.Callback):
        every = 2

        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 8:
                raise error

    trainer = solstice.Trainer([*options.pop("callbacks", []), Fails()], **options)
    with pytest.raises(error):
        trainer.fit(adds(), BATCHES, num_epochs=3, donate=True)
    newest: Any = trainer.experiment
    assert int(newest.count) == 8
    options = {"num_epochs": 3, "max_steps": 8}
    assert_same(newest, solstice.Trainer().fit(adds(), BATCHES, **options))


def test_a_run_that_fails_before_its_first_step_gives_nothing_up(size: str):
    def broken() -> Any:
        raise OSError("no data")
        yield

    start = adds()
    with pytest.raises(OSError, match="no data"):
        solstice.Trainer().fit(start, broken, donate=True)
    assert_same(start, adds())


@pytest.mark.parametrize(
    "make", [lambda i: jnp.zeros(9) + i, lambda i: jax.device_put(np.ones(i + 9))]
)
def test_arrays_that_nobody_else_holds(make: Any):
    alone = [make(index) for index in range(3)]
    assert held_by_others(alone) == []
    kept = alone[1]
    assert held_by_others(alone) == [1]
    del kept
    assert held_by_others(alone) == []
    kept = alone[1].addressable_data(0)
    assert held_by_others(alone) == [1]
    kept = alone[2].addressable_shards[0].data
    assert 2 in held_by_others(alone)
    del kept
    assert held_by_others([alone[0], alone[0]]) == [0, 1]
    key = [jax.random.key(0)]
    assert held_by_others(key) == [0]  # small, and its data has no owner that one can count


def test_donate_is_a_switch():
    with pytest.raises(ValueError, match="donate must be True or False"):
        solstice.Trainer().fit(adds(), BATCHES, donate="yes")  # pyright: ignore[reportArgumentType]
