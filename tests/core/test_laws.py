"""The law of the engine: nothing that a user sees depends on how an epoch is cut into blocks."""

import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import solstice
from solstice.callbacks import EarlyStopping, Logging, ProgressBar

pytestmark = pytest.mark.bits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 150).astype(np.int32)


class Net(solstice.Experiment):
    """A net with momentum, dropout by a typed key, a Python counter and a static field."""

    w: jax.Array
    momentum: jax.Array
    key: jax.Array
    count: int
    rate: float
    activation: Any
    classes: int = eqx.field(static=True)

    def __init__(self) -> None:
        self.w = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
        self.momentum = jnp.zeros((5, 3))
        self.key = jax.random.key(7)
        self.count = 0
        self.rate = 0.1
        self.activation = jnp.tanh
        self.classes = 3

    def loss(self, w: jax.Array, batch: Any, key: jax.Array | None) -> Any:
        x, y = batch
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.8, x.shape).astype(x.dtype)
        logits = 2 * self.activation(x @ w)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)
        return -picked.mean(), logits

    def plain_step(self, batch: Any) -> Any:
        key = jax.random.fold_in(self.key, self.count)
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, logits), gradient = grad(self.w, batch, key)
        momentum = 0.9 * self.momentum + gradient
        new = solstice.replace(
            self, w=self.w - self.rate * momentum, momentum=momentum, count=self.count + 1
        )
        return new, solstice.ClassificationMetrics(logits, batch[1], loss, self.classes)

    def train_step(self, batch: Any) -> Any:
        return self.plain_step(batch)

    def eval_step(self, batch: Any) -> Any:
        loss, logits = self.loss(self.w, batch, None)
        return self, solstice.ClassificationMetrics(logits, batch[1], loss, self.classes)


class FilterJitted(Net):
    @eqx.filter_jit
    def train_step(self, batch: Any) -> Any:
        return self.plain_step(batch)


class Jitted(Net):
    @jax.jit
    def train_step(self, batch: Any) -> Any:
        return self.plain_step(batch)


class Spy(solstice.Callback):
    """Looks at the steps in one of the ways that there are."""

    def __init__(self, every: int, needs: tuple[str, ...], before: bool) -> None:
        self.every, self.needs = every, needs
        self.seen: list[Any] = []
        if before:
            self.phase = solstice.Phase.SAVE

    def on_step_end(self, record: solstice.Record) -> None:
        self.seen.append([record.step, *[getattr(record, name) for name in self.needs]])


class SpyBefore(Spy):
    def on_step_start(self, record: solstice.Record) -> None:
        self.seen.append(record.step)


def batches(size: int) -> list[Any]:
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, len(X), size)]


def sha(experiment: Net) -> str:
    digest = hashlib.sha256()
    for leaf in (experiment.w, experiment.momentum, jax.random.key_data(experiment.key)):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(str(int(experiment.count)).encode())
    return digest.hexdigest()


def train(
    callbacks: Any = (), data: Any = None, experiment: Net | None = None, **options: Any
) -> tuple[str, Any]:
    history: list[Any] = []
    trainer = solstice.Trainer(
        [Logging(lambda metrics, step: history.append((step, metrics))), *callbacks], **options
    )
    data = batches(4) if data is None else data
    result = trainer.fit(experiment or Net(), data, batches(32), num_epochs=2)
    return sha(result), history


REFERENCE = train()

spies = st.builds(
    lambda cls, every, needs: cls(every, tuple(needs), False),
    st.sampled_from([Spy, SpyBefore]),
    st.integers(1, 40),
    st.sets(st.sampled_from(["outputs", "batch", "experiment", "metrics"])),
)
ready = st.sampled_from(
    [lambda: EarlyStopping("val/loss", patience=9), lambda: ProgressBar(file=Null())]
)


class Null:
    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 7, 32]), st.lists(spies, max_size=2), st.lists(ready, max_size=2))
def test_bits_and_history_do_not_depend_on_cuts_or_callbacks(size: int, spies: Any, ready: Any):
    found = train([*spies, *[make() for make in ready]], steps_per_call=size)
    assert found == REFERENCE


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.integers(1, 90), st.sampled_from([2, 7, 32]), st.sampled_from([0, 2]))
def test_bits_do_not_depend_on_when_validation_comes_or_who_reads(
    every: int, size: int, ahead: int
):
    state, history = train(val_every_n_steps=every, steps_per_call=size, prefetch=ahead)
    assert state == REFERENCE[0]
    trained = [line for line in history if "train/loss" in line[1]]
    assert trained == [line for line in REFERENCE[1] if "train/loss" in line[1]]
    assert len(history) - len(trained) == 76 // every


@pytest.mark.parametrize("decorated", [FilterJitted, Jitted])
def test_bits_do_not_depend_on_the_decoration(decorated: type[Net]):
    assert train(experiment=decorated()) == REFERENCE


class Reused:
    """A data set whose iterator gives the same memory for every batch."""

    def __iter__(self) -> Any:
        x, y = np.empty((4, 5), np.float32), np.empty(4, np.int32)
        for a, b in batches(4):
            x[: len(a)], y[: len(b)] = a, b
            yield x[: len(a)], y[: len(b)]


@pytest.mark.parametrize(
    "data",
    [
        tuple(batches(4)),
        lambda: iter(batches(4)),
        solstice.data.batches((X, Y), 4),
        [jax.tree.map(jnp.asarray, batch) for batch in batches(4)],
        [(x, y.astype(np.int64)) for x, y in batches(4)],
        Reused(),
    ],
    ids=["tuple", "factory", "batches", "jax arrays", "int64 labels", "reused memory"],
)
def test_bits_do_not_depend_on_the_kind_of_data_set(data: Any):
    assert train(data=data) == REFERENCE


def test_the_engine_equals_a_plain_loop():
    """Within float rounding: the loop is another program."""
    experiment = Net()
    step = eqx.filter_jit(lambda e, b: e.train_step(b))
    experiment = eqx.tree_at(lambda e: e.count, experiment, jnp.asarray(0))
    losses = []
    for _ in range(2):
        for batch in batches(4):
            experiment, metrics = step(experiment, batch)
            losses.append(float(metrics.compute()["loss"]))
    spy = Spy(1, ("outputs",), False)
    result = solstice.Trainer([spy]).fit(Net(), batches(4), num_epochs=2)
    np.testing.assert_allclose(result.w, experiment.w, rtol=1e-5, atol=1e-6)
    assert int(result.count) == int(experiment.count) == 76
    seen = [outputs.compute()["loss"] for _, outputs in spy.seen]
    np.testing.assert_allclose(seen, losses, rtol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 76), st.sampled_from([2, 7, 32]), st.booleans())
@example(33, 32, True)
def test_a_stop_within_a_block_leaves_what_that_step_left(step: int, size: int, raises: bool):
    class StopAt(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == step:
                raise solstice.Stop if not raises else RuntimeError("at this step")

    trainer = solstice.Trainer([StopAt()], steps_per_call=size)
    if raises:
        with pytest.raises(RuntimeError, match="at this step"):
            trainer.fit(Net(), batches(4), num_epochs=2)
    else:
        trainer.fit(Net(), batches(4), num_epochs=2)
    expected = solstice.Trainer().fit(Net(), batches(4), max_steps=step)
    assert sha(trainer.experiment) == sha(expected)


@pytest.mark.slow
def test_every_experiment_that_was_given_stays_valid():
    start = Net()
    before = sha(start)

    class Keep(solstice.Callback):
        every = 5
        needs = ("experiment",)

        def __init__(self) -> None:
            self.kept: dict[int, Any] = {}

        def on_fit_start(self, record: solstice.Record) -> None:
            self.kept[0] = record.experiment

        def on_step_end(self, record: solstice.Record) -> None:
            if record.mode == "train":
                self.kept[record.step] = record.experiment

        def on_epoch_end(self, record: solstice.Record) -> None:
            self.kept[record.step] = record.experiment

    keep = Keep()
    solstice.Trainer([keep]).fit(start, batches(4), batches(32), num_epochs=2)
    assert sorted(keep.kept) == [0, *range(5, 36, 5), 38, *range(40, 76, 5), 76]
    assert sha(start) == before == sha(keep.kept[0])
    for step, experiment in keep.kept.items():
        if step:
            assert sha(experiment) == sha(solstice.Trainer().fit(Net(), batches(4), max_steps=step))


def test_the_trained_experiment_survives_a_second_fit():
    trainer = solstice.Trainer()
    first = trainer.fit(Net(), batches(4))
    before = sha(first)
    second = trainer.fit(first, batches(4))
    assert sha(first) == before != sha(second)
