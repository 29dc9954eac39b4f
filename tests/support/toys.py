"""What the tests of all adapters share: an optimizer, data to learn, and what any Model must do."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import solstice

FEATURES = 6
CLASSES = 3

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, FEATURES)).astype(np.float32)


@jax.tree_util.register_static
@dataclass(eq=False)
class Sgd:
    """`Sgd(0.1)`: gradient descent with momentum, written as a third party would."""

    rate: float = 0.1
    momentum: float = 0.9

    def init(self, params, /):
        return jax.tree.map(jnp.zeros_like, params)

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        del value, value_fn, extra
        state = jax.tree.map(lambda v, g: self.momentum * v + g, state, grads)
        return jax.tree.map(lambda p, v: p - self.rate * v, params, state), state

    def eval_params(self, state, params, /):
        del state
        return params


@jax.tree_util.register_static
@dataclass(eq=False)
class Counting:
    """A Model that notes each time its `forward` is run as Python: while JAX traces it."""

    model: Any
    traces: list[bool] = field(default_factory=list)

    def init(self, key, x, /):
        return self.model.init(key, x)

    def forward(self, params, state, x, /, *, train, key=None):
        self.traces.append(train)
        return self.model.forward(params, state, x, train=train, key=key)


class Losses(solstice.Callback):
    """Keeps the loss of each training step, and how often a Counting model was traced by then."""

    needs = ("metrics",)

    def __init__(self, model=None):
        self.model = model
        self.losses = []
        self.traces = []

    def on_step_end(self, record):
        if record.mode == "train":
            self.losses.append(record.metrics["loss"])
            self.traces.append(sum(self.model.traces) if self.model else 0)


def blobs(num_batches=8, batch_size=16, seed=0):
    """Batches of points around one centre for each class, far enough apart to be told."""
    rng = np.random.default_rng(seed)
    centres = 2 * np.eye(CLASSES, FEATURES, dtype=np.float32)
    labels = rng.integers(0, CLASSES, (num_batches, batch_size)).astype(np.int32)
    noise = rng.normal(scale=0.5, size=(*labels.shape, FEATURES)).astype(np.float32)
    return list(zip(centres[labels] + noise, labels, strict=True))


def accuracy(experiment, batches):
    return solstice.Trainer().test(experiment, batches)["accuracy"]


def assert_trees_equal(one, other, rtol=0.0, atol=0.0):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def trees_differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def types_of(tree):
    leaves = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), leaves


def check_init(model, x=X):
    """Init gives inexact Params and arrays as State; it is pure, and any key or trace will do."""
    params, state = model.init(KEY, x)
    assert jax.tree.leaves(params)
    assert all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(params))
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    given = params, state
    assert_trees_equal(given, model.init(KEY, x))
    for key in (KEY, jax.random.PRNGKey(0)):
        assert_trees_equal(given, jax.jit(model.init)(key, x), rtol=1e-5, atol=1e-6)
    assert types_of(jax.eval_shape(model.init, KEY, x)) == types_of(given)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    assert types_of(jax.eval_shape(model.init, KEY, shapes)) == types_of(given)


def check_evaluation(model, params, state, x=X):
    """Evaluation needs no key, gives back the State that it was given, and looks at each row."""

    @jax.jit
    def evaluate(x, **options):
        outputs, after = model.forward(params, state, x, train=False, **options)
        assert after is state
        return outputs

    outputs = evaluate(x)
    np.testing.assert_array_equal(outputs, evaluate(x))
    for seed in (1, 2):
        np.testing.assert_array_equal(outputs, evaluate(x, key=jax.random.key(seed)))
    for index in range(len(outputs)):
        alone = evaluate(jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], x))
        np.testing.assert_allclose(alone[0], outputs[index], rtol=1e-5, atol=1e-5)


def check_model(model, x=X):
    """What holds for every Model, whatever its layers."""
    assert isinstance(model, solstice.compat.Model)
    assert jax.tree.leaves(model) == []
    assert hash(model) == hash(model)
    before = jax.tree.map(np.array, x)
    check_init(model, x)
    params, state = model.init(KEY, x)
    check_evaluation(model, params, state, x)
    kept = jax.tree.map(np.array, (params, state))
    _, after = jax.jit(partial(model.forward, train=True))(params, state, x, key=KEY)
    assert types_of(after) == types_of(state)
    assert_trees_equal(jax.tree.map(np.array, (params, state)), kept)
    assert_trees_equal(jax.tree.map(np.array, x), before)


def check_batch_norm(model):
    """Statistics move in training, to those of the data, and are frozen at evaluation.

    The model normalises with a momentum of at most 0.8.
    """
    check_model(model)
    params, state = model.init(KEY, 3 * X + 1)
    assert jax.tree.leaves(state)
    train = jax.jit(lambda state: model.forward(params, state, X, train=True, key=KEY))
    _, moved = train(state)
    assert trees_differ(state, moved)
    check_evaluation(model, params, moved)
    for _ in range(60):
        in_training, moved = train(moved)
    evaluate = jax.jit(partial(model.forward, train=False))
    fresh, _ = evaluate(params, state, X)
    evaluated, _ = evaluate(params, moved, X)
    np.testing.assert_allclose(evaluated, in_training, rtol=1e-3, atol=1e-3)
    assert np.abs(fresh - evaluated).max() > 1e-2


def check_dropout(model):
    """Each example and each key has a mask of its own in training; evaluation has none.

    The model drops half of 64 units, and a linear layer follows.
    """
    check_model(model)
    params, state = model.init(KEY, X)
    same = np.broadcast_to(X[:1], (4096, FEATURES))

    @jax.jit
    def train(key):
        return model.forward(params, state, same, train=True, key=key)[0]

    outputs = train(jax.random.key(1))
    np.testing.assert_array_equal(outputs, train(jax.random.key(1)))
    assert (outputs != train(jax.random.key(2))).any(axis=-1).mean() > 0.99
    assert len(np.unique(outputs, axis=0)) > 4000
    assert jnp.isfinite(train(jax.random.PRNGKey(1))).all()
    evaluated, _ = jax.jit(partial(model.forward, train=False))(params, state, same[:1])
    error = 6 * np.std(outputs, axis=0) / np.sqrt(len(same))
    assert (np.abs(np.mean(outputs, axis=0) - evaluated[0]) < error).all()


def check_draws_in_evaluation(net):
    """It trains, validates, tests and predicts, and evaluates to the same numbers each time.

    The network draws in both modes, and takes a batch of any size.
    """
    model = solstice.compat.as_model(net)
    params, state = model.init(KEY, X)
    outputs, after = model.forward(params, state, X, train=False)
    assert after is state
    same, _ = jax.jit(partial(model.forward, train=False))(params, state, X)
    np.testing.assert_allclose(outputs, same, rtol=1e-5, atol=1e-5)
    fixed, other = (
        model.forward(params, state, X, train=False, key=jax.random.key(i))[0] for i in (0, 1)
    )
    np.testing.assert_array_equal(outputs, fixed)
    assert (outputs != other).any()
    experiment = solstice.ClassificationExperiment(
        model, Sgd(0.05), num_classes=CLASSES, sample_input=X
    )
    trainer, data = solstice.Trainer(), blobs(3)
    trained = trainer.fit(experiment, data, data, num_epochs=2)
    tested = trainer.test(trained, data)
    assert tested == trainer.test(trained, data)
    assert tested["loss"] == trainer.validate(trained, data)["loss"]
    one, two = (trained.predict(X, batch_size=4) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def check_learns(model, optimizer=None, num_epochs=6):
    """The model learns the blobs in a ClassificationExperiment, and is compiled once."""
    counting = Counting(solstice.compat.as_model(model))
    experiment = solstice.ClassificationExperiment(
        counting, optimizer or Sgd(0.05), num_classes=CLASSES, sample_input=X
    )
    unseen = blobs(seed=1)
    seen = Losses(counting)
    trained = solstice.Trainer([seen]).fit(experiment, blobs(), num_epochs=num_epochs)
    assert accuracy(trained, unseen) > 0.95
    assert len(seen.losses) == num_epochs * 8
    assert np.mean(seen.losses[-8:]) < np.mean(seen.losses[:8]) / 2
    assert seen.traces[0] == seen.traces[-1]
    check_step_compiles_once(experiment, counting)
    return trained


def check_step_compiles_once(experiment, counting):
    """The step works by itself under `jax.jit`, and its output is its next input."""
    step = jax.jit(type(experiment).train_step)
    counting.traces.clear()
    for batch in blobs(3):
        experiment, _ = step(experiment, batch)
    assert counting.traces == [True]
    assert int(experiment.step) == 3


def check_unpack(net):
    """`net(a, b)` gives a + 2 b, of its two inputs: by position and by name, in both modes."""
    model = solstice.compat.as_model(net, unpack=True)
    for x in [(X, -X), [X, -X], {"b": -X, "a": X}]:
        params, state = model.init(KEY, x)
        for train in (True, False):
            outputs, _ = model.forward(params, state, x, train=train, key=KEY)
            np.testing.assert_allclose(outputs, -X, rtol=1e-6)
