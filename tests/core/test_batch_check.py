"""Checks of batches: over a whole block at once, with the promises of a check for each batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import DataError, experiments
from solstice._engine import BlockSize, Feeder, StagingBuffers
from solstice._experiment import stacked_check_of
from solstice.data import Masked
from solstice.testing import Sgd

RNG = np.random.default_rng(0)
COUNT, SIZE, FEATURES = 5, 4, 3
SGD = Sgd(0.1)
X = RNG.random((SIZE, FEATURES)).astype(np.float32)


def layer(size, features=FEATURES):
    return eqx.nn.Linear(features, size, key=jax.random.key(size))


@jax.tree_util.register_static
class Table:
    """Logits from a table of the last token."""

    def init(self, key, x, /):
        return {"table": jax.random.normal(key, (5, 5))}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return params["table"][x], state


def spoiled(array, value):
    array = array.copy()
    array[-1] = value
    return array


PIXELS = X, spoiled(X, np.nan)
KINDS: dict[str, Any] = {
    "classes": (
        lambda: solstice.ClassificationExperiment(layer(3), SGD, 3),
        (X, np.array([0, 1, 2, 0])),
        (X, np.array([0, 1, 2, 2**32])),  # 0 in int32
    ),
    "binary": (
        lambda: solstice.BinaryClassificationExperiment(layer(1), SGD),
        (X, np.array([0, 1, 1, 0], np.int32)),
        (X, np.array([0, 1, 1, 2], np.int32)),
    ),
    "masked": (
        lambda: solstice.MultilabelClassificationExperiment(layer(2), SGD, 2),
        Masked((X, np.array([[0, 1]] * 3 + [[7, 7]], np.int8)), np.arange(SIZE) < 3),
        Masked((X, np.array([[0, 1]] * 3 + [[7, 7]], np.int8)), np.arange(SIZE) >= 0),
    ),
    "regression": (
        lambda: solstice.RegressionExperiment(layer(1), SGD),
        [X, np.array([0.5, -1, np.inf, 1])],
        [X, np.array([0.5, -1, np.nan, 1])],
    ),
    "tokens": (
        lambda: solstice.LanguageModelExperiment(Table(), SGD, 5),
        np.array([[0, 1, 4, 2]]),
        np.array([[0, 1, 4, -1]]),
    ),
    "autoencoder": (
        lambda: solstice.AutoencoderExperiment(layer(2), layer(3, 2), SGD),
        (X, np.array(["text"] * SIZE)),
        (PIXELS[1], np.array(["text"] * SIZE)),
    ),
    "vae": (
        lambda: solstice.VAEExperiment(layer(4), layer(3, 2), SGD, 2),
        X,
        spoiled(X, 2.0),
    ),
    "gan": (lambda: solstice.GANExperiment(layer(3, 2), layer(1), SGD, 2), *PIXELS),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_batch_has_its_own_message_and_those_before_are_trained(name):
    make, good, bad = KINDS[name]
    with pytest.raises(DataError) as alone:
        make().setup(good).check_batch(bad)
    assert stacked_check_of(make()) is not None
    trainer = solstice.Trainer([])
    with pytest.raises(DataError) as found:
        trainer.fit(make(), [good, good, bad, good, bad], num_epochs=2)
    assert str(found.value) == str(alone.value)
    assert found.value.__context__ is None
    assert int(trainer.experiment.step) == 2
    assert "after step 2" in found.value.__notes__[-1]
    with pytest.raises(DataError) as found:
        trainer.test(trainer.experiment, [good, bad, good])
    assert str(found.value) == str(alone.value)


class Counting(experiments.SupervisedExperiment[Any]):
    """Its task counts the checks on the host."""


class Task(experiments.Task):
    def check(self, x, targets):
        CALLS.extend(["check"] if isinstance(targets, np.ndarray) else [])

    @experiments.elementwise
    def check_values(self, batch, mask):
        CALLS.append("values")
        y = experiments.counted(batch[1], mask)
        if (y < 0).any():
            raise DataError(f"{(y < 0).sum()} of {y.size} are negative")

    def outputs(self, outputs, x, targets):
        return outputs[:, 0]

    def losses(self, outputs, targets, mask):
        return jnp.square(outputs - targets)

    def metrics(self, outputs, targets, mask):
        return solstice.metrics.Mean(outputs, mask)


class Strict(Task):
    def check_values(self, batch, mask):
        super().check_values(batch, mask)


CALLS: list[str] = []
GOOD, LAST, BAD = (X, X[:, 0]), (X[:2], X[:2, 0]), (X, spoiled(X[:, 0], -1))


def calls_of(exp, ds, **options):
    CALLS.clear()
    trained = exp.train(ds, callbacks=[], **options)
    return CALLS.count("check"), CALLS.count("values"), trained


def test_shapes_are_checked_once_for_each_kind_and_values_once_for_each_block():
    few = calls_of(Counting(layer(1), SGD, Task()), [GOOD] * 3 + [LAST], num_epochs=3)
    many = calls_of(Counting(layer(1), SGD, Task()), [GOOD] * 20 + [LAST], num_epochs=3)
    assert few[0] == many[0]  # with setup and the checks before tracing
    assert few[1] == many[1] == 2 + 2 * 3


def test_a_check_of_values_without_the_decorator_runs_for_each_batch():
    _, values, _ = calls_of(Counting(layer(1), SGD, Strict()), [GOOD] * 20, num_epochs=3)
    assert values == 60
    with pytest.raises(DataError, match=r"^1 of 4 are negative"):
        Counting(layer(1), SGD, Strict()).train([GOOD, GOOD, BAD], callbacks=[])


def test_an_override_of_check_batch_is_called_for_each_batch():
    class Mine(Counting):
        def check_batch(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
            CALLS.append("mine")

    calls_of(Mine(layer(1), SGD, Task()), [BAD] * 20)
    assert CALLS.count("mine") == 20
    assert "values" not in CALLS


class Sum(solstice.Experiment):
    total: Any

    def setup(self, batch):
        return self

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch["x"].sum().astype(float)), {}

    def eval_step(self, batch):
        return self, {"x": batch["x"].sum()}

    def check_batch(self, batch):
        CALLS.append(f"check {batch['text']}")

    def stacked_check(self):
        def check(batches):
            assert batches["text"] is None
            CALLS.append(f"stacked {batches['x'].shape} {batches['x'].dtype}")
            if (batches["x"] < 0).any():
                raise DataError(f"{(batches['x'] < 0).sum()} below 0")

        return check


class EagerSum(Sum):
    def train_step(self, batch):
        return super().train_step(batch) if float(batch["x"][0]) >= 0 else (self, {})


def numbers(*values):
    return [{"x": np.full(2, value), "text": "a"} for value in values]


def test_a_stacked_check_of_a_class_of_your_own():
    CALLS.clear()
    solstice.Trainer().fit(Sum(jnp.zeros(())), numbers(1, 2, 3), num_epochs=2)
    assert list(CALLS) == ["check a", *["stacked (3, 2) int64"] * 2]
    trainer = solstice.Trainer(prefetch=2)
    with pytest.raises(DataError, match=r"^2 below 0"):
        trainer.fit(Sum(jnp.zeros(())), numbers(1, 2, -3, -4))
    assert trainer.experiment.total == 6


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_steps_that_are_not_compiled():
    trainer = solstice.Trainer()
    with pytest.raises(DataError, match=r"^2 below 0"):
        trainer.fit(EagerSum(jnp.zeros(())), numbers(1, 2, -3, 4))
    assert trainer.experiment.total == 6


def test_a_check_cannot_change_what_is_trained():
    class Changes(Sum):
        def stacked_check(self):
            return lambda batches: batches["x"].fill(0)

    with pytest.raises(ValueError, match="read-only"):
        solstice.Trainer().fit(Changes(jnp.zeros(())), numbers(1, 2))


def test_nothing_of_a_block_is_trained_if_only_the_whole_is_refused():
    class Whole(Sum):
        def stacked_check(self):
            def check(batches):
                if len(batches["x"]) > 1:
                    raise DataError("too many")

            return check

    trainer = solstice.Trainer()
    with pytest.raises(DataError, match="too many"):
        trainer.fit(Whole(jnp.zeros(())), numbers(1, 2, 3))
    assert trainer.experiment.total == 0


def test_an_error_of_the_data_after_a_bad_batch_is_not_the_one_that_is_raised():
    def data():
        yield from numbers(1, -2, 3)
        raise OSError("the disk is gone")

    with pytest.raises(DataError, match="below 0"):
        solstice.Trainer().fit(Sum(jnp.zeros(())), data)


def refused(batches: Any) -> None:
    if (np.asarray(batches) < 0).any():
        raise DataError(f"{batches.tolist()}")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-1, 8), st.integers(1, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_blocks_hold_the_batches_before_the_first_bad_one(pairs, size):
    """Of any kinds in any order, and at any size of blocks."""
    data = [np.full(length, value) for value, length in pairs]
    feeder = Feeder(iter(data), StagingBuffers(BlockSize(size)), lambda batch: None, refused)
    found: list[list[int]] = []
    bad = next((i for i, batch in enumerate(data) if batch[0] < 0), None)

    def read():
        while (block := feeder.take(size)) is not None:
            found.extend(block.arrays(index).tolist() for index in range(len(block)))

    if bad is None:
        read()
    else:
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value) == str([data[bad].tolist()])
    assert found == [batch.tolist() for batch in data[:bad]]


def test_integers_are_converted_after_the_check():
    for dtype in (np.int64, np.uint64, np.int32, np.uint8):
        values = [np.arange(3, dtype=dtype) + index for index in range(4)]
        seen: list[Any] = []
        feeder = Feeder(iter(values), StagingBuffers(BlockSize(4)), print, seen.append)
        block = feeder.take(4)
        assert block is not None
        assert seen[0].dtype == dtype
        assert block.buffer.stacked.dtype == jax.dtypes.canonicalize_dtype(dtype)
        np.testing.assert_array_equal(block.buffer.stacked, np.stack(values))
