"""Transfers: the Trainer and its parts pass `jax.transfer_guard("disallow")`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transfers import as_on_an_accelerator

import solstice
from solstice import metrics
from solstice._engine import _block_size, _placement
from solstice.callbacks import (
    Checkpoint,
    EarlyStopping,
    FlightRecorder,
    LearningRate,
    Logging,
    NaNGuard,
    NormMonitor,
)
from solstice.loggers import CSV
from solstice.testing import Sgd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 20).astype(np.int32)
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)]
ON_DEVICE = jax.device_put(BATCHES)


class Net(solstice.Experiment):
    """A linear model with metrics of a given kind."""

    w: Any
    kind: str = eqx.field(static=True)

    def loss(self, w: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1].astype(np.float32)) ** 2)

    def train_step(self, batch: Any) -> Any:
        loss, grad = jax.value_and_grad(self.loss)(self.w, batch)
        found = METRICS[self.kind](loss, batch[0] @ self.w, batch[1] > 0)
        return solstice.replace(self, w=self.w - 0.01 * grad), found

    def eval_step(self, batch: Any) -> Any:
        loss = self.loss(self.w, batch)
        return self, METRICS[self.kind](loss, batch[0] @ self.w, batch[1] > 0)

    def predict_step(self, batch: Any) -> Any:
        return batch[0] @ self.w


class Nibbles(solstice.Metrics):
    """A count in 4 bits: JAX refuses to read that implicitly on the CPU too."""

    count: Any

    def merge(self, other: "Nibbles") -> "Nibbles":
        return Nibbles(self.count + other.count)

    def compute(self) -> Any:
        return {"count": self.count.astype(np.int32)}


METRICS: dict[str, Any] = {
    "mean": lambda loss, scores, labels: {"loss": loss},
    "outputs": lambda loss, scores, labels: {"loss": loss, "scores": scores},
    "curves": lambda loss, scores, labels: metrics.BinaryCurves(scores, labels),
    "collect": lambda loss, scores, labels: metrics.Collect(scores=scores),
    "counts": lambda loss, scores, labels: metrics.BinaryMetrics(scores, labels),
    "nibbles": lambda loss, scores, labels: Nibbles(jnp.ones((), jnp.int4)),
}


class Reads(solstice.Callback):
    every = 1
    needs = ("metrics", "outputs", "batch")

    def on_step_end(self, record: solstice.Record) -> None:
        assert record.metrics is not None
        assert isinstance(jax.tree.leaves(record.outputs)[0], np.ndarray | np.generic | float)


def net(kind: str = "mean") -> Net:
    return Net(jax.device_put(np.zeros(5, np.float32)), kind)


def ready() -> Any:
    model = eqx.nn.MLP(5, 3, 4, 1, key=jax.random.key(0))
    made = solstice.ClassificationExperiment(model, Sgd(0.1), num_classes=3)
    return made.setup(BATCHES[0])


READS = {
    "asarray": lambda x: np.asarray(x),  # looked up when it is called, as in the code under test
    "array": lambda x: np.array(x),
    "float": float,
    "item": lambda x: x.item(),
    "start": lambda x: x.copy_to_host_async(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_guard_of_these_tests_refuses_what_an_accelerator_would(read: Any):
    array = jax.device_put(np.ones(()))
    with as_on_an_accelerator():
        with pytest.raises(AssertionError, match="device-to-host"):
            read(array)
        with pytest.raises(Exception, match="host-to-device"):
            array + 1
        assert jax.device_get(array) == 1
    read(array)


@pytest.mark.parametrize("make", [net, ready])
@pytest.mark.parametrize("data", [BATCHES, ON_DEVICE], ids=["host", "device"])
def test_a_run_with_callbacks_saves_and_resumes(tmp_path: Any, make: Any, data: Any):
    experiment, bits = make(), []
    with as_on_an_accelerator():
        for max_steps in (7, None):
            callbacks = [
                *(Checkpoint(tmp_path / "run", every=7), EarlyStopping("val/loss")),
                *(Logging(every=2), CSV(tmp_path / "log.csv"), NormMonitor(), NaNGuard(every=3)),
                *(FlightRecorder(tmp_path / "flight"), LearningRate(lambda n: jnp.exp(-1.0 * n))),
            ]
            found = solstice.Trainer(callbacks).fit(
                experiment, data, data, num_epochs=2, max_steps=max_steps, resume="last"
            )
    bits = [jax.tree.leaves(x) for x in (found, solstice.Trainer().fit(make(), data, num_epochs=2))]
    for one, other in zip(*bits, strict=True):
        if eqx.is_array(one) and not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore:.*outputs that give no metrics")
@pytest.mark.parametrize("kind", METRICS)
def test_metrics_and_outputs_are_read_explicitly(kind: str):
    trainer = solstice.Trainer([Reads()] if kind == "outputs" else [])
    with as_on_an_accelerator():
        found = trainer.fit(net(kind), BATCHES, BATCHES)
        trainer.test(found, BATCHES)
        list(trainer.predict(found, BATCHES))


@pytest.mark.parametrize("kind", ["mean", "nibbles"])
def test_the_guard_of_jax_accepts_a_second_run(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(_placement, "READS_HOST", ())
    trainer = solstice.Trainer()
    with jax.transfer_guard("disallow"):
        trainer.fit(net(kind), BATCHES, BATCHES)
        found = trainer.test(net(kind), BATCHES)
    assert kind != "nibbles" or found["count"] == 5


@pytest.mark.parametrize("most", [2**62, 0], ids=["loop", "single steps"])
def test_run_steps_passes_with_batches_of_either_side(monkeypatch: pytest.MonkeyPatch, most: int):
    monkeypatch.setattr(_block_size, "CHANGED_BYTES", {"cpu": most})
    stacked = np.stack([x for x, _ in BATCHES]), np.stack([y for _, y in BATCHES])
    with as_on_an_accelerator():
        one, _ = solstice.run_steps(net(), stacked)
        other, _ = solstice.run_steps(net(), jax.device_put(stacked))
    expected = solstice.Trainer().fit(net(), BATCHES)
    assert np.array_equal(one.w, expected.w)
    assert np.array_equal(other.w, expected.w)


def test_data_may_be_on_the_device():
    x, y = jax.device_put((X, Y))
    mask = jax.device_put(np.ones(20, bool))
    experiment = ready()
    with as_on_an_accelerator():
        data = solstice.data.batches((x, y), 4, on_device=True)
        padded = solstice.data.pad_batch(solstice.data.Masked((x, y), mask), 24)
        solstice.Trainer().fit(experiment, data)
        solstice.Trainer().fit(experiment, [padded, jax.device_put(padded)])


def test_metrics_are_computed_from_arrays_on_the_device():
    made = METRICS["curves"](None, X[:, 0], Y > 0)
    counts = metrics.Counts({"hits": jnp.sum(Y)})
    with as_on_an_accelerator():
        assert made.compute()["num_nan"] == 0
        made.roc_curve()
        assert counts.values()["hits"] == Y.sum()


def test_a_failed_run_is_replayed(tmp_path: Any):
    broken = [*BATCHES, (np.full((4, 5), np.inf, np.float32), Y[:4])]
    callbacks = [NaNGuard(every=1), FlightRecorder(tmp_path / "flight")]
    with as_on_an_accelerator():
        with pytest.raises(FloatingPointError):
            solstice.Trainer(callbacks).fit(net(), broken)
        assert "batch[0]" in solstice.replay(tmp_path / "flight", net(), broken).nonfinite
