"""What each example of a batch does to a step, against steps in which it alone has a weight."""

import equinox as eqx
import jax
import numpy as np
import pytest
from equinox_nets import Stateful

import solstice
from solstice.compat import norms_of
from solstice.experiments import Learner
from solstice.testing import Sgd

ROWS = 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 6)).astype(np.float32)
WEIGHTS = np.float32([1, 2, 0, 0.5, 1, 1, 3])

TASKS = {
    "classes": (
        lambda net, **options: solstice.ClassificationExperiment(net, num_classes=3, **options),
        RNG.integers(0, 3, ROWS),
    ),
    "several targets": (
        solstice.RegressionExperiment,
        RNG.normal(size=(ROWS, 3)).astype(np.float32),
    ),
}


@pytest.mark.parametrize(("task", "parts"), [("classes", 3), ("several targets", 1)])
def test_they_are_those_of_a_step_with_its_statistics_and_random_numbers(task, parts):
    """With BatchNorm and Dropout; of 7 examples in 3 parts, the last part has one."""
    make, y = TASKS[task]
    net = eqx.nn.make_with_state(Stateful)(8, 3, True, 0.5, jax.random.key(0))
    exp = make(net, optimizer=Sgd(1.0, momentum=0.0), sample_input=X, seed=1, micro_batches=parts)
    step = eqx.filter_jit(lambda exp, batch: exp.train_step(batch))
    whole, metrics = step(exp, (X, y, WEIGHTS))
    found = eqx.filter_jit(lambda exp, batch: exp.per_example(batch))(exp, (X, y, WEIGHTS))

    mean = np.sum(found.loss * WEIGHTS) / WEIGHTS.sum()
    np.testing.assert_allclose(mean, metrics.compute()["loss"], rtol=1e-5)
    gradients, total = [], None
    for row in range(ROWS):
        alone, of_one = step(exp, (X, y, np.eye(ROWS, dtype=np.float32)[row]))
        gradient = jax.tree.map(lambda a, b: a - b, exp.params, alone.params)
        share = WEIGHTS[row] / WEIGHTS.sum()
        gradients.append(float(norms_of(gradient, 0)[""]) * share)
        part = jax.tree.map(lambda g, s=share: s * g, gradient)
        total = part if total is None else jax.tree.map(np.add, total, part)
        if share:
            np.testing.assert_allclose(found.loss[row], of_one.compute()["loss"], rtol=1e-4)
    np.testing.assert_allclose(found.gradient_norm, gradients, rtol=1e-3, atol=1e-6)
    assert (found.loss[2], found.gradient_norm[2]) == (0, 0)
    # The parts add up to the gradient of the step.
    step_of = jax.tree.map(lambda a, b: a - b, exp.params, whole.params)
    for mine, theirs in zip(jax.tree.leaves(total), jax.tree.leaves(step_of), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_learner_has_them_for_an_objective_of_the_user():
    x = RNG.normal(size=(37, 6)).astype(np.float32)
    net = eqx.nn.Linear(6, 1, key=jax.random.key(0))
    learner = Learner(net, Sgd(0.1), sample_input=x)

    def objective(model, batch):
        return (model(batch)[:, 0] - 1) ** 2, None, None

    found = learner.per_example(objective, x)
    errors = x @ np.asarray(learner.params.weight[0]) + float(learner.params.bias[0]) - 1
    np.testing.assert_allclose(found.loss, errors**2, rtol=1e-5)
    norms = 2 * np.abs(errors) * np.sqrt(1 + np.sum(x**2, 1)) / len(x)
    np.testing.assert_allclose(found.gradient_norm, norms, rtol=1e-5)
    with pytest.raises(ValueError, match="must return the loss of each example"):
        learner.per_example(lambda model, batch: (model(batch).mean(), None, None), X)
