"""Learner: the gradient of a batch is the same however it is cut, padded or spread."""

import os
import subprocess
import sys
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import LanguageModelExperiment, metrics
from solstice.compat import ema
from solstice.data import Masked, pad_batch
from solstice.experiments import Learner

VOCABULARY, LENGTH = 7, 9
RNG = np.random.default_rng(0)


@jax.tree_util.register_static
class Descent:
    """Gradient descent that keeps the last gradient, loss, and the loss that it works out."""

    def init(self, params, /):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(())

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        new = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        return new, (grads, value, value_fn(params))

    def eval_params(self, state, params, /):
        return params


@jax.tree_util.register_static
class Bigrams:
    """A language model that looks at the last token, through a layer."""

    def init(self, key, x, /):
        one, two = jax.random.split(key)
        embed = jax.random.normal(one, (VOCABULARY, 5))
        return {"embed": embed, "out": jax.random.normal(two, (5, VOCABULARY))}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return jnp.tanh(params["embed"][x]) @ params["out"], state


@jax.tree_util.register_static
class Linear:
    """A linear model that counts its calls in training, and draws noise from its key."""

    def __init__(self, noise=0.0):
        self.noise = noise

    def init(self, key, x, /):
        return {"w": jax.random.normal(key, x.shape[1:])}, jnp.zeros((), jnp.int32)

    def forward(self, params, state, x, /, *, train, key=None):
        outputs = x @ params["w"]
        if not train:
            return outputs, state
        return outputs + self.noise * jax.random.normal(key, outputs.shape), state + 1


def squares(model, batch):
    x, y, weights = batch
    losses = jnp.square(model(x) - y)
    return losses, weights, metrics.Mean(losses, weights)


def examples(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    weights = rng.integers(0, 3, size).astype(np.float32)
    return x, rng.normal(size=size).astype(np.float32), weights


def tokens(size):
    """Texts of different lengths, in a mask."""
    rng = np.random.default_rng(size)
    texts = rng.integers(0, VOCABULARY, (size, LENGTH)).astype(np.int32)
    lengths = rng.integers(2, LENGTH + 1, size)
    return Masked(texts, np.arange(LENGTH) < lengths[:, None])


def assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


# The same history


def history(batches, micro_batches, place):
    """Losses, gradients, metrics and weights of some steps."""
    exp = LanguageModelExperiment(
        Bigrams(), Descent(), VOCABULARY, sample_input=np.zeros((1, 4), np.int32),
        micro_batches=micro_batches,
    )  # fmt: skip

    @jax.jit
    def step(exp, batch):
        exp, outputs = exp.train_step(batch)
        return exp, list(outputs.compute().values())

    exp, told = place(exp, False), []
    for batch in batches:
        exp, values = step(exp, place(batch, True))
        told.append((exp.opt_state, [float(v) for v in values]))
    return told, exp.params


def full_batch_reference(batches):
    """By hand, in double precision: all that counts at once."""
    exp = LanguageModelExperiment(
        Bigrams(), Descent(), VOCABULARY, sample_input=np.zeros((1, 4), np.int32)
    )
    params = {name: np.asarray(leaf, np.float64) for name, leaf in exp.params.items()}
    told = []
    for batch in batches:
        x, y = batch.batch[:, :-1][batch.mask[:, 1:]], batch.batch[:, 1:][batch.mask[:, 1:]]
        hidden = np.tanh(params["embed"][x])
        logits = hidden @ params["out"]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        d_logits = (p - np.eye(VOCABULARY)[y]) / len(y)
        d_embed = np.zeros_like(params["embed"])
        np.add.at(d_embed, x, (d_logits @ params["out"].T) * (1 - hidden**2))
        grads = {"embed": d_embed, "out": hidden.T @ d_logits}
        params = {name: params[name] - 0.5 * grads[name] for name in params}
        told.append((grads, loss, (p.argmax(axis=1) == y).mean(), len(y)))
    return told, params


def check_history(num_devices):
    """Every way to train gives what the reference gives, to 1e-6."""
    assert jax.device_count() >= num_devices
    mesh = jax.make_mesh(
        (num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )  # fmt: skip

    def place(tree, spread):
        axes = jax.sharding.PartitionSpec("data") if spread else jax.sharding.PartitionSpec()
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, axes))

    batches = [tokens(size) for size in (16, 24, 8)]
    expected, weights = full_batch_reference(batches)
    for micro_batches, padded in product([1, 2, 4, 7], [False, True]):
        given_batches = [pad_batch(batch, 32) for batch in batches] if padded else batches
        told, params = history(given_batches, micro_batches, place)
        for (state, computed), (grads, loss, accuracy, count) in zip(told, expected, strict=True):
            assert_close(state, (grads, loss, loss))
            assert computed[0] == pytest.approx(loss, rel=1e-6)
            assert computed[3] == pytest.approx(accuracy, rel=1e-6)
            assert computed[4] == count
        assert_close(params, weights)


@pytest.mark.slow
def test_the_history_is_the_same_however_a_batch_is_cut_padded_and_spread():
    """In a process of its own, since a process has the devices that it began with.

    Compiling takes nearly all of its time, and the bits do not matter here.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    code = "import test_learner\nfor count in 1, 2, 8: test_learner.check_history(count)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.path.dirname(__file__),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Micro-batches


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 13), parts=st.integers(1, 15))
def test_a_batch_in_parts_is_the_whole_batch(size, parts):
    batch = examples(size)
    learner = Learner(Linear(), Descent(), sample_input=batch[0])
    whole, outputs = updated(learner, batch, 1)
    cut, merged = updated(learner, batch, parts)
    assert_close((cut.params, cut.opt_state), (whole.params, whole.opt_state))
    assert_close(merged, outputs)
    assert int(cut.state) == -(-size // -(-size // parts))  # each part went through the model


@partial(jax.jit, static_argnums=2)
def updated(learner, batch, micro_batches):
    new, outputs = learner.update(squares, batch, micro_batches=micro_batches)
    return new, outputs.compute()


def test_parts_draw_their_own_noise_and_a_line_search_sees_the_same():
    batch = (np.ones((4, 3), np.float32), np.zeros(4, np.float32), np.ones(4, np.float32))
    learner = Learner(Linear(noise=1.0), Descent(), sample_input=batch[0])

    def collected(model, batch):
        found = model(batch[0])
        return jnp.square(found), None, metrics.Collect(outputs=found)

    new, outputs = learner.update(collected, batch, micro_batches=2)
    assert len(np.unique(outputs.compute()["outputs"])) == 4
    _, value, worked_out = new.opt_state
    np.testing.assert_allclose(worked_out, value, rtol=1e-6)
    again, _ = new.update(collected, batch, micro_batches=2)
    assert float(again.opt_state[1]) != float(value)


def test_the_compiled_program_of_parts_needs_less_memory():
    """It is what parts are for: the intermediate results of one part at a time."""
    x = np.zeros((4096, 64), np.float32)
    batch = (x, np.zeros(4096, np.float32), np.ones(4096, np.float32))
    learner = Learner(Deep(), Descent(), sample_input=x)

    def memory(parts):
        step = jax.jit(lambda learner: learner.update(squares, batch, micro_batches=parts))
        return step.lower(learner).compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < 0.4 * memory(1)


@jax.tree_util.register_static
class Deep:
    def init(self, key, x, /):
        return {"w": jax.random.normal(key, (8, 64, 64)), "out": jnp.ones(64)}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        for layer in range(8):
            x = jnp.tanh(x @ params["w"][layer])
        return x @ params["out"], state


def test_gradients_of_half_precision_are_added_up_in_full():
    """256 parts of gradient 1 would stop at 256 in bfloat16, where 256 + 1 is 256."""
    x = np.ones((512, 1), np.float32)

    @jax.tree_util.register_static
    class Half:
        def init(self, key, x, /):
            return {"w": jnp.zeros(1, jnp.bfloat16)}, ()

        def forward(self, params, state, x, /, *, train, key=None):
            return x.astype(jnp.bfloat16) @ params["w"], state

    def itself(model, batch):
        losses = model(batch)
        return losses, None, metrics.Mean(losses)

    new, _ = Learner(Half(), Descent(), sample_input=x).update(itself, x, micro_batches=512)
    assert new.params["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(new.params["w"].astype(np.float32), [-0.5])


def test_nothing_that_counts_is_no_gradient():
    x, y, weights = examples(4)
    learner = Learner(Linear(), Descent(), sample_input=x)
    for parts in [1, 2]:
        new, _ = learner.update(squares, (x, y, np.zeros_like(weights)), micro_batches=parts)
        assert_close(new.params, learner.params)


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (lambda losses: {"loss": losses.mean()}, TypeError, "so they must be Metrics"),
        (lambda losses: losses, TypeError, "so they must be Metrics"),
    ],
)
def test_outs_in_parts_must_merge(outputs, error, message):
    def objective(model, batch):
        losses = jnp.square(model(batch))
        return losses, None, outputs(losses)

    learner = Learner(Linear(), Descent(), sample_input=examples(4)[0])
    with pytest.raises(error, match=message):
        learner.update(objective, examples(4)[0], micro_batches=2)


def test_what_cannot_be_cut_is_told():
    x, y, _ = examples(4)
    learner = Learner(Linear(), Descent(), sample_input=x)
    with pytest.raises(ValueError, match="the same number of examples on axis 0"):
        learner.update(squares, (x, y, np.float32(1)), micro_batches=2)


def test_a_mean_is_not_a_loss_of_each_example():
    x, _, _ = examples(4)

    def objective(model, batch):
        return jnp.mean(model(batch)), None, {}

    with pytest.raises(ValueError, match=r"the loss of each example, of shape \[n\]"):
        Learner(Linear(), Descent(), sample_input=x).update(objective, x)


# Values


# A term in the weights


def penalised(model, batch):
    """With a penalty, as by hand in `by_hand`."""
    losses, weights, outputs = squares(model, batch)
    return losses + 0.3 * jnp.sum(model.params["w"] ** 2), weights, outputs


def by_hand(params, batch):
    x, y, weights = batch
    losses = jnp.square(x @ params["w"] - y)
    return jnp.sum(losses * weights) / jnp.sum(weights) + 0.3 * jnp.sum(params["w"] ** 2)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_penalty_in_the_params_of_the_model_has_its_gradient(parts):
    batch = examples(8)
    learner = Learner(Linear(), Descent(), sample_input=batch[0])
    new, _ = jax.jit(lambda at, b: at.update(penalised, b, micro_batches=parts))(learner, batch)
    loss, grads = jax.value_and_grad(by_hand)(learner.params, batch)
    searched = by_hand(learner.params, batch)
    assert_close(new.opt_state, (grads, loss, searched))  # a line search has it too


def test_in_evaluation_the_params_are_those_to_evaluate_with():
    optimizer = ema(Descent(), 0.5)
    learner = Learner(Linear(), optimizer, sample_input=examples(8)[0])
    for _ in range(2):
        learner, _ = learner.update(squares, examples(8))

    def seen(model, batch):
        return jnp.zeros(8), None, model.params

    assert_close(learner.evaluate(seen, examples(8)), learner.eval_params())
    assert_close(learner.update(seen, examples(8))[1], learner.params)


class Penalty(solstice.Experiment):
    """With one of several terms in the loss, of weights that are not the model's."""

    learner: Learner
    other: Learner
    term: object

    def losses(self, model, batch):
        losses, weights, outputs = squares(model, batch)
        return losses + self.term(self, model, batch), weights, outputs

    def train_step(self, batch):
        learner, outputs = self.learner.update(self.losses, batch)
        return solstice.replace(self, learner=learner), outputs

    def eval_step(self, batch):
        return self, self.learner.evaluate(self.losses, batch)


def square_of(params):
    return jnp.sum(params["w"] ** 2)


def fit_with(term, optimizer=None):
    x = examples(8)[0]
    learner = Learner(Linear(), optimizer or Descent(), sample_input=x)
    exp = Penalty(learner, Learner(Linear(), Descent(), sample_input=x), term)
    return solstice.Trainer().fit(exp, [examples(8)] * 2, [examples(8)])


CONSTANT = {
    "penalty": lambda self, model, batch: square_of(self.learner.params),
    "its own output": lambda self, model, batch: self.learner(batch[0]),
    "in jit": lambda self, model, batch: jax.jit(square_of)(self.learner.params),
    "in a loop": lambda self, model, batch: jax.lax.scan(
        lambda total, w: (total + w**2, None), jnp.zeros(()), self.learner.params["w"]
    )[0],
    "beside": lambda self, model, batch: jnp.vdot(self.learner.params["w"], model.params["w"]),
}


@pytest.mark.parametrize("term", CONSTANT.values(), ids=CONSTANT)
def test_a_term_in_the_params_of_the_learner_is_noticed_once(term):
    with pytest.warns(UserWarning, match="is constant in an objective") as said:
        fit_with(term)
    assert len(said) == 1
    assert str(said[0].message).startswith("the loss depends on `learner.params['w']`, ")
    assert "Write `model.params['w']`" in str(said[0].message)


def test_it_is_noticed_in_a_function_within_the_step_and_in_parts_too():
    learner = Learner(Linear(), Descent(), sample_input=examples(8)[0])

    @jax.jit
    def step(learner, batch):
        def losses(model, batch):
            values, weights, outputs = squares(model, batch)
            return values + square_of(learner.params), weights, outputs

        return learner.update(losses, batch, micro_batches=2)

    with pytest.warns(UserWarning, match="is constant in an objective"):
        step(learner, examples(8))


ALLOWED = {
    "stopped": lambda self, model, batch: jax.lax.stop_gradient(self.learner(batch[0])),
    "stopped in jit": lambda self, model, batch: jax.jit(
        lambda params: square_of(jax.lax.stop_gradient(params))
    )(self.learner.params),
    "a choice": lambda self, model, batch: jnp.where(self.learner.params["w"] > 0, 1.0, 2.0).sum(),
    "another's": lambda self, model, batch: square_of(self.other.params),
    "the model's": lambda self, model, batch: square_of(model.params),
    "not in the loss": lambda self, model, batch: 0.0 * batch[2] + jnp.zeros(()) * len(
        str(square_of(self.learner.params))
    ),
}  # fmt: skip


@pytest.mark.parametrize("term", ALLOWED.values(), ids=ALLOWED)
def test_what_is_meant_to_be_constant_is_not_noticed(term):
    fit_with(term)


def test_an_average_is_a_constant_that_one_may_learn_from():
    fit_with(CONSTANT["its own output"], ema(Descent(), 0.9))


def test_params_given_begin_anew():
    x, _, _ = examples(4)
    learner = Learner(Linear(), Descent(), sample_input=x)
    params = {"w": jnp.arange(3.0)}
    new = learner.with_params(params)
    np.testing.assert_allclose(new(x), x @ np.arange(3.0, dtype=np.float32), rtol=1e-6)
    assert new.opt_state[0].keys() == {"w"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"w": jnp.zeros(4)},
            r"the model has float32\[3\], and they have float32\[4\]",
        ),
        ({"v": jnp.zeros(3)}, r"at `\['w'\]` the model has float32\[3\], and they have nothing"),
        ({"w": jnp.zeros(3, jnp.bfloat16)}, "they have bfloat16"),
    ],
)
def test_params_that_do_not_fit_are_told(params, message):
    learner = Learner(Linear(), Descent(), sample_input=examples(4)[0])
    with pytest.raises(ValueError, match=message):
        learner.with_params(params)


def test_a_learner_without_values_says_how_to_get_them():
    with pytest.raises(ValueError, match="the model has no values yet"):
        Learner(Linear(), Descent())(examples(4)[0])
