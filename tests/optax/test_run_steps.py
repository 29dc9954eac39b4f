"""run_steps: the compiled block of the Trainer as a pure function."""

import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._metrics import to_host
from solstice.metrics import Collect

pytestmark = pytest.mark.bits

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 8, 5)).astype(np.float32), RNG.normal(size=(32, 8)).astype(np.float32)


class Fits(solstice.Experiment):
    """A perceptron, trained by an optimizer of Optax with a rate beside it."""

    w: Any
    opt: Any
    rate: Any
    tx: Any
    outputs: Any = None

    def train_step(self, batch: Any) -> Any:
        x, y = batch

        def loss(w: Any) -> Any:
            return jnp.mean((jnp.tanh(x @ w) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(self.w)
        updates, opt = self.tx.update(grads, self.opt, self.w)
        outputs = {"loss": value} if self.outputs is None else self.outputs(value, y)
        return solstice.replace(self, w=self.w - self.rate * updates, opt=opt), outputs

    def eval_step(self, batch: Any) -> Any:
        return self, {}


TX = optax.scale_by_adam(eps_root=1e-8)


def start(rate: Any = 0.05, tx: Any = TX, **fields: Any) -> Fits:
    w = jnp.linspace(-1, 1, 5)
    return Fits(w, tx.init(w), rate, tx, **fields)


def stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)


def bits(tree: Any) -> str:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def wide():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


OUTPUTS = {
    "mean": None,
    "metrics and mean": lambda value, y: {"loss": value, "all": Collect(y=y)},
    "nothing": lambda value, y: None,
    "two means": lambda value, y: {"loss": value, "count": y.size},
}


@pytest.mark.parametrize("transform", [lambda f: f, eqx.filter_jit], ids=["called", "jitted"])
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
def test_it_is_a_fit_on_the_same_batches(transform: Any, outputs: Any):
    trainer = solstice.Trainer()
    for count in (1, 2, 32):
        fitted = trainer.fit(start(outputs=outputs), [*zip(X, Y, strict=True)][:count])
        exp, metrics = transform(solstice.run_steps)(start(outputs=outputs), (X[:count], Y[:count]))
        assert bits(exp) == bits(fitted)
        computed = {} if metrics is None else to_host(metrics)
        row = trainer.history.rows[-1]
        scalars = {name: value for name, value in computed.items() if np.ndim(value) == 0}
        assert {name: row[name] for name in scalars} == scalars
        assert (metrics is None) == (outputs is OUTPUTS["nothing"])


def test_metrics_that_grow_have_each_step():
    _, metrics = solstice.run_steps(start(outputs=lambda value, y: Collect(y=y)), (X, Y))
    assert metrics is not None
    np.testing.assert_array_equal(metrics.compute()["y"], Y.reshape(-1))


@settings(max_examples=10)
@given(cut=st.integers(1, 31))
def test_steps_may_be_cut_anywhere(cut: int):
    whole, metrics = solstice.run_steps(start(), (X, Y))
    assert metrics is not None
    half, one = solstice.run_steps(start(), (X[:cut], Y[:cut]))
    ended, two = solstice.run_steps(half, (X[cut:], Y[cut:]))
    assert bits(ended) == bits(whole)
    merged: Any = one.merge(two) if one is not None and two is not None else None
    assert merged.compute()["loss"] == pytest.approx(metrics.compute()["loss"], rel=1e-12)


def test_the_given_experiment_stays_valid():
    exp = start()
    before = bits(exp)
    solstice.run_steps(exp, (X, Y))
    assert bits(exp) == before


def by_leaf(rate: Any, **options: Any) -> Any:
    tx = optax.scale_by_adam(**{"eps_root": 1e-8, **options})
    return solstice.run_steps(start(rate, tx), (X, Y))


def by_closure(rate: Any, **options: Any) -> Any:
    tx = optax.adam(rate, **{"eps_root": 1e-8, **options})
    return solstice.run_steps(start(-1.0, tx), (X, Y))


def of_state(result: Any) -> Any:
    return jnp.sum(result[0].w ** 2)


def of_metrics(result: Any) -> Any:
    return result[1].compute()["loss"]


@pytest.mark.parametrize("value", [of_state, of_metrics])
@pytest.mark.parametrize("run", [by_leaf, by_closure])
def test_a_hypergradient_agrees_with_central_differences(wide: None, run: Any, value: Any):
    def outer(rate: Any) -> Any:
        return value(run(rate))

    rate, h = jnp.asarray(0.05), 1e-6
    difference = (outer(rate + h) - outer(rate - h)) / (2 * h)
    for derivative in (jax.grad(outer), jax.jit(jax.grad(outer)), jax.jacfwd(outer)):
        assert float(derivative(rate)) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap], ids=["", "jit", "vmap"])
@pytest.mark.parametrize("run", [by_leaf, by_closure])
def test_a_gradient_that_is_nan_names_eps_root(monkeypatch: Any, transform: Any, run: Any):
    """Of an input that is always 0, Adam's second moment is 0, where its root has no derivative."""
    monkeypatch.setitem(globals(), "X", X * (np.arange(5) > 0))
    rate = jnp.full((2,) if transform is jax.vmap else (), 0.05)

    def gradient(**options: Any) -> Any:
        return transform(jax.grad(lambda rate: of_state(run(rate, **options))))(rate)

    with pytest.raises(Exception, match=r"gradient through.*optax\.adam\(rate, eps_root=1e-8\)"):
        jax.block_until_ready(gradient(eps_root=0.0))
    assert np.isfinite(gradient()).all()


def test_a_population_is_a_vmap():
    rates = jnp.array([0.01, 0.05, 0.1])
    population = eqx.filter_vmap(start)(rates)
    run = eqx.filter_vmap(solstice.run_steps, in_axes=(eqx.if_array(0), None))
    exps, metrics = run(population, (X, Y))
    losses = jax.vmap(lambda one: one.compute()["loss"])(metrics)
    for rate, w, loss in zip(rates, exps.w, losses, strict=True):
        alone, its = solstice.run_steps(start(rate), (X, Y))
        np.testing.assert_allclose(w, alone.w, rtol=1e-4)
        assert its is not None
        assert its.compute()["loss"] == pytest.approx(float(loss), rel=1e-5)


class Sets(Fits):
    """Has no weights before it sees a batch."""

    def setup(self, batch: Any) -> Any:
        assert isinstance(batch[0], np.ndarray)
        return self if self.w is not None else solstice.replace(self, w=jnp.ones(batch[0].shape[1]))


def test_an_experiment_is_set_up_with_the_first_batch():
    exp = Sets(None, optax.EmptyState(), 0.1, optax.identity())
    fitted = solstice.Trainer().fit(exp, [*zip(X, Y, strict=True)])
    assert bits(solstice.run_steps(exp, (X, Y))[0]) == bits(fitted)


LIST = [*zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            LIST,
            r"a list of batches\. Write `jax\.tree\.map\(lambda \*x: jnp\.stack\(x\), \*batches\)`",
        ),
        ([], "a list of batches"),
        ([np.ones(2, np.float32)] * 2, r"`tuple\(\.\.\.\)` around it if a batch is a list itself"),
        (solstice.data.batches(np.ones((4, 1), np.float32), batch_size=2), "they are .*Batches"),
        ((X, Y[:9]), r"one length.*f32\[32,8,5\].*f32\[9,8\]"),
        ((X, np.float32(1)), "one length"),
        ((X, 1), "one length"),
        ((X[:0], Y[:0]), r"one batch or more.*\[0,8,5\]"),
        (None, "one length"),
        ({"text": np.array(["a", "b"])}, "one length"),
        (iter(LIST), r"a list_iterator of batches\. Write `jax"),
    ],
)
def test_batches_that_are_not_stacked_are_refused(batches: Any, message: str):
    with pytest.raises(solstice.DataError, match=message):
        solstice.run_steps(start(), batches)


def test_a_single_batch_is_refused_with_the_line_that_stacks():
    net = eqx.nn.Linear(5, 2, key=jax.random.key(0))
    batch = X[0], np.zeros(8, int)
    exp = solstice.ClassificationExperiment(net, optax.sgd(0.1), num_classes=2).setup(batch)
    with pytest.raises(solstice.DataError) as info:
        solstice.run_steps(exp, batch)
    assert "stacked batches: `jax.tree.map(lambda *x: jnp.stack(x)" in info.value.__notes__[-1]


def test_the_line_of_the_error_stacks_a_list():
    exp, _ = solstice.run_steps(start(), stacked(LIST))
    assert bits(exp) == bits(solstice.run_steps(start(), (X, Y))[0])


class Named(Fits):
    def train_step(self, batch: Any) -> Any:
        assert batch["name"] is None
        return Fits.train_step(self, (batch["x"], batch["y"]))


def test_a_step_sees_no_text():
    w = jnp.linspace(-1, 1, 5)
    exp = Named(w, TX.init(w), 0.05, TX)
    trained, _ = solstice.run_steps(exp, {"x": X, "y": Y, "name": np.array(["a"] * 32)})
    assert bits(trained) == bits(solstice.run_steps(start(), (X, Y))[0])


class Branches(Fits):
    def train_step(self, batch: Any) -> Any:
        return self, {"loss": 1.0 if batch[0].sum() > 0 else 0.0}


def test_a_step_that_cannot_be_compiled_is_refused_with_its_line():
    exp = Branches(jnp.ones(5), (), 0.05, TX)
    with pytest.raises(solstice.ExperimentError, match=r"Branches\.train_step.*batch\[0\]\.sum"):
        solstice.run_steps(exp, (X, Y))


@pytest.mark.parametrize("given", [Fits, "exp", None])
def test_what_is_not_an_experiment_is_refused(given: Any):
    with pytest.raises(TypeError, match="must be a"):
        solstice.run_steps(given, (X, Y))


def test_nothing_of_a_transformation_stays_behind():
    with jax.checking_leaks():
        eqx.filter_jit(solstice.run_steps)(start(jnp.asarray(0.05)), (X, Y))
