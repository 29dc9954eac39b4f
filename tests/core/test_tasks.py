"""SupervisedExperiment and Task: what a task decides, and what is the same for all tasks."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import experiments, metrics
from solstice.data import Masked
from solstice.experiments import ReadyMadeExperiment, SupervisedExperiment, Task, counted
from solstice.testing import Sgd

PACKAGE = Path(__file__).parents[1] / "third_party/solstice-ranking/src/solstice_ranking"
RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 4)).astype(np.float32)
WHERE = RNG.normal(size=(N, 2)).astype(np.float32)
SIZE = RNG.random(N).astype(np.float32)
MASK = np.arange(N) % 3 > 0


@jax.tree_util.register_static
class Linear:
    """A linear model of the last axis."""

    def __init__(self, size):
        self.size = size

    def init(self, key, x, /):
        return {"kernel": 0.1 * jax.random.normal(key, (x.shape[-1], self.size))}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return x @ params["kernel"], state


LINEAR, SGD = Linear(3), Sgd(0.1)


class Boxes(Task):
    """A place and a size: targets are a dict, and batches are dicts too."""

    scale: jax.Array
    factor: float = eqx.field(static=True, default=1.0)

    def split(self, batch, mask):
        return batch["x"], {"where": batch["where"], "size": batch["size"]}, mask

    def inputs(self, batch):
        return batch["x"]

    def check_values(self, batch, mask):
        if (counted(batch["size"], mask) < 0).any():
            raise solstice.DataError("sizes must be 0 or more")

    def outputs(self, outputs, x, targets):
        return {"where": outputs[:, :2], "size": outputs[:, 2]}

    def losses(self, outputs, targets, mask):
        where = jnp.square(outputs["where"] - targets["where"]).sum(axis=1)
        return self.factor * where + self.scale * jnp.square(outputs["size"] - targets["size"])

    def metrics(self, outputs, targets, mask):
        return metrics.Mean(jnp.abs(outputs["size"] - targets["size"]), mask)

    def predictions(self, outputs):
        return outputs["where"]


BATCH = {"x": X, "where": WHERE, "size": SIZE}


def make(task=None, **options) -> Any:
    task = Boxes(jnp.float32(2.0)) if task is None else task
    return SupervisedExperiment(LINEAR, SGD, task, sample_input=X, **options)


def rows(batch, chosen):
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def stepped(exp, batch):
    new, outputs = exp.train_step(batch)
    return new.params, {name: float(value) for name, value in outputs.compute().items()}


def assert_alike(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# What the Experiment does for any task


def test_the_loss_is_that_of_the_task():
    exp = make()
    outputs = X @ np.asarray(exp.params["kernel"])
    where = np.square(outputs[:, :2] - WHERE).sum(axis=1)
    found = exp.eval_step(BATCH)[1].compute()
    expected = np.mean(where + 2 * np.square(outputs[:, 2] - SIZE))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["mean"] == pytest.approx(np.abs(outputs[:, 2] - SIZE).mean(), rel=1e-5)
    np.testing.assert_allclose(exp.predict(BATCH, batch_size=5), outputs[:, :2], rtol=1e-5)
    assert sorted(exp(X)) == ["size", "where"]


@pytest.mark.parametrize("parts", [1, 4])
def test_masked_targets_may_be_nan_in_each_leaf(parts):
    hidden = {**BATCH, "size": np.where(MASK, SIZE, np.nan)}
    hidden["where"] = np.where(MASK[:, None], WHERE, np.nan)
    found = stepped(make(micro_batches=parts), Masked(hidden, MASK))
    assert_alike(found, stepped(make(), rows(BATCH, MASK)))


def test_a_mask_or_a_length_that_does_not_fit_a_leaf_of_the_targets_is_refused():
    exp = make()
    wide = np.repeat(MASK[:, None], 2, axis=1)
    with pytest.raises(solstice.DataError, match=r"the mask of targets of shape \[12\]"):
        exp.train_step(Masked(BATCH, wide))
    with pytest.raises(solstice.DataError, match=r"12 in the features.* and 3 in the targets"):
        exp.train_step({**BATCH, "size": SIZE[:3]})


@pytest.mark.parametrize("ds", [[{**BATCH, "size": -SIZE}]], ids=["negative"])
def test_values_are_checked_on_the_host_before_the_step(ds):
    trainer = solstice.Trainer([])
    with pytest.raises(solstice.DataError, match="sizes must be 0 or more"):
        trainer.fit(make(), ds)
    assert int(trainer.experiment.step) == 0
    make().check_batch(Masked(ds[0], np.zeros(N, bool)))  # masked ones do not count


@pytest.mark.parametrize(
    ("name", "returned", "words"),
    [
        ("split", ({"x": X}, MASK), "Wrong.split must return `x, targets, mask`.*returned"),
        ("split", None, "Wrong.split must return `x, targets, mask`.*returned None"),
        ("losses", SIZE > 0, r"the loss is bool\[12\].*no gradient"),
        ("losses", np.arange(N), r"the loss is i\d+\[12\].*no gradient"),
        ("weights", 2.0, "Wrong.weights must return an array or None; it returned 2.0"),
        ("weights", "mean", "Wrong.weights must return an array or None; it returned 'mean'"),
    ],
)
def test_wrong_returns_of_a_task_are_named(name, returned, words):
    wrong = type("Wrong", (Boxes,), {name: lambda self, *given: returned})
    with pytest.raises((TypeError, ValueError), match=words):
        make(wrong(jnp.float32(2))).train_step(BATCH)


def test_weights_hold_for_all_the_other_axes_of_the_losses():
    class Weighted(Boxes):
        def weights(self, targets, mask, losses):
            return targets["size"]

    exp = make(Weighted(jnp.float32(1.0)), loss=lambda outputs, y: outputs["where"] - y["where"])
    losses = np.asarray(exp(X)["where"]) - WHERE
    found = exp.eval_step(BATCH)[1].compute()["loss"]
    assert found == pytest.approx(np.average(losses.mean(axis=1), weights=SIZE), rel=1e-4)


def test_the_array_of_a_task_is_state_and_its_settings_are_the_program():
    exp = make()
    assert any(leaf is exp.task.scale for leaf in jax.tree.leaves(exp))
    trained = exp.train([BATCH], num_epochs=2, callbacks=[])
    assert float(trained.task.scale) == 2.0
    assert make(Boxes(jnp.float32(2.0), factor=3.0)).task.factor == 3.0


@pytest.mark.parametrize("kind", [np.float32, np.asarray, jnp.asarray])
def test_an_array_of_any_kind_may_be_in_a_task(kind):
    with_it = make(Boxes(kind(np.float32(2.0))))
    assert_alike(stepped(with_it, BATCH), stepped(make(), BATCH))


@pytest.mark.parametrize(
    ("scale", "line"),
    [
        (2.0, r"`Boxes.scale` is 2\.0.*`scale: float = eqx\.field\(static=True\)`"),
        (jnp.tanh, r"`Boxes.scale` is .*eqx\.field\(static=True\)`"),
    ],
    ids=["number", "function"],
)
def test_a_setting_that_is_not_static_is_refused(scale, line):
    with pytest.raises(TypeError, match=line):
        make(Boxes(scale))


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="label_smothing"):
        solstice.ClassificationExperiment(LINEAR, SGD, 3, label_smothing=0.1)


# The ready-made ones

KINDS = [
    kind
    for kind in vars(experiments).values()
    if inspect.isclass(kind) and issubclass(kind, SupervisedExperiment)
]


def test_the_ready_made_ones_override_nothing():
    assert len(KINDS) == 8
    ours = {*vars(SupervisedExperiment), *vars(ReadyMadeExperiment), *vars(solstice.Experiment)}
    for kind in KINDS:
        if kind is not SupervisedExperiment:
            methods = {name for name, value in vars(kind).items() if inspect.isroutine(value)}
            # Python 3.13 gives each data class a `__replace__`.
            assert methods & ours <= {"__init__", "__replace__"}, kind
            assert kind.__mro__[1] is SupervisedExperiment
        assert issubclass(kind, ReadyMadeExperiment)


def test_a_classifier_is_a_supervised_experiment_of_its_task():
    exp = solstice.ClassificationExperiment(LINEAR, SGD, 3)
    bare = SupervisedExperiment(LINEAR, SGD, exp.task)
    batch = X, np.arange(N) % 3
    assert isinstance(exp, SupervisedExperiment)
    assert_alike(stepped(exp, batch), stepped(bare, batch))


# A package of somebody else


@pytest.fixture
def ranking():
    spec = importlib.util.spec_from_file_location("solstice_ranking", PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_another_package_ranks_with_the_same_methods(ranking):
    items = RNG.normal(size=(32, 5, 4)).astype(np.float32)
    relevance = (items[..., 0] > 0.3).astype(np.float32)
    exp = ranking.RankingExperiment(Linear(1), Sgd(0.3), top=3)
    exp = exp.train((items, relevance), batch_size=8, num_epochs=5, callbacks=[])
    assert exp.test((items, relevance), batch_size=20, callbacks=[])["ndcg"] > 0.9
    assert exp.predict(items, batch_size=20).shape == (32, 5)
    with pytest.raises(solstice.DataError, match="relevance must be 0 or more"):
        exp.test((items, -relevance), batch_size=20, callbacks=[])


def test_it_is_written_on_public_names_in_60_lines():
    text = (PACKAGE / "__init__.py").read_text()
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    private = [ast.unparse(node) for node in imports if "._" in ast.unparse(node)]
    assert private == []
    for node in imports:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("solstice"):
            public = sys.modules[node.module].__all__
            assert {alias.name for alias in node.names} <= {*public}
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef)]
    prose = sum(len(ast.get_docstring(n).splitlines()) for n in documented if ast.get_docstring(n))
    assert len([line for line in text.splitlines() if line.strip()]) - prose < 60
