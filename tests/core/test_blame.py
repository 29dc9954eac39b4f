"""`solstice.blame`: the examples of a step by loss and gradient, or an error that says why not."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import runs
from solstice.callbacks import Checkpoint, History
from solstice.checkpoint import CheckpointError
from solstice.data import Masked, batches
from solstice.testing import Sgd

pytest.importorskip("safetensors")

ROWS, SIZE, BAD = 43, 10, 17
"""The last batch has 3 rows. The target of row 17 is 1e3."""

X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = (X @ np.float32([1, -2, 3])).astype(np.float32)
Y[BAD] = 1e3


def ready_made() -> Any:
    net = eqx.nn.Linear(3, 1, key=jax.random.key(0))
    return solstice.RegressionExperiment(net, Sgd(1e-5, momentum=0.0), sample_input=X)


class ByHand(solstice.Experiment):
    """The same model and loss, in a step of the user."""

    weight: jax.Array
    bias: jax.Array

    def losses(self, batch: Any) -> Any:
        x, y = batch
        return jnp.square(x @ self.weight + self.bias - y)

    def train_step(self, batch: Any) -> Any:
        def loss_of(exp: Any) -> Any:
            return jnp.mean(exp.losses(batch))

        loss, grads = eqx.filter_value_and_grad(loss_of)(self)
        new = jax.tree.map(lambda param, grad: param - 1e-5 * grad, self, grads)
        return new, {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean(self.losses(batch))}


def by_hand() -> ByHand:
    params = ready_made().params
    return ByHand(params.weight[0], params.bias[0])


def shuffled(**options: Any) -> Any:
    return batches((X, Y), SIZE, shuffle=True, seed=1, **options)


def run(folder: Path, exp: Any, train_ds: Any, *, epochs: int = 2, **options: Any) -> Any:
    """Trains, and gives the rows of the history, one for each step."""
    saver = Checkpoint(folder, every=2, every_epochs=None, keep=9)
    trainer = solstice.Trainer([History(every=1), saver], **options)
    trainer.fit(exp, train_ds, num_epochs=epochs)
    return {row["step"]: row for row in trainer.history.rows if "epoch_step" not in row}


def step_of(train_ds: Any, row: int) -> int:
    """The step of the first epoch whose batch has a row."""
    return next(b for b in range(len(train_ds)) if row in train_ds.indices(0, b)) + 1


def test_a_bad_example_is_found_with_its_row_in_the_data(tmp_path: Path):
    train_ds = shuffled()
    run(tmp_path / "a", ready_made(), train_ds)
    step = step_of(train_ds, BAD)
    found = solstice.blame(tmp_path / "a", step=step, experiment=ready_made(), train_ds=train_ds)
    (worst,) = found.worst(1)
    assert worst.index == BAD
    assert found.batch[1][worst.row] == 1e3
    assert (found.step, found.epoch, found.batch_index) == (step, 0, step - 1)
    assert re.search(rf"\n +{worst.row} +{BAD} +[\d.e+]+ +[\d.e+]+\n", repr(found))
    assert f"step {step} (epoch 0, batch {step - 1}): the worst 10 of 10 examples" in repr(found)


# The first, one at a checkpoint and after it, a last batch, the next epoch, and the last
STEPS = (1, 2, 3, 5, 6, 10)


def check_steps(
    folder: Path, train_ds: Any, read: Any, steps: tuple[int, ...] = (2, 6), **given: Any
) -> None:
    """The numbers of each step against a loop of NumPy, which sees the batches `read`."""
    params = ready_made().params
    weight, bias = np.asarray(params.weight[0], float), float(params.bias[0])
    for step in range(1, max(steps) + 1):
        x, y = read(step)
        error = x @ weight + bias - y
        if step in steps:
            found = solstice.blame(folder, step=step, train_ds=train_ds, **given)
            np.testing.assert_array_equal(found.batch[1], y)
            if found.index is not None:
                np.testing.assert_array_equal(Y[found.index], y)
            np.testing.assert_allclose(found.loss, error**2, rtol=1e-4, atol=1e-4)
            norms = 2 * np.abs(error) * np.sqrt(1 + (x**2).sum(1)) / len(y)
            np.testing.assert_allclose(found.gradient_norm, norms, rtol=1e-3, atol=1e-4)
        weight = weight - 1e-5 * 2 * np.mean(error[:, None] * x, 0)
        bias = bias - 1e-5 * 2 * np.mean(error)


def read_from(data: Any, per_epoch: int = 5) -> Any:
    """The batch of each step, from the arrays of the data set."""

    def read(step: int) -> Any:
        data.set_epoch((step - 1) // per_epoch)
        return data[(step - 1) % per_epoch]

    return read


def test_losses_and_norms_are_those_of_each_step(tmp_path: Path):
    run(tmp_path / "a", ready_made(), shuffled())
    check_steps(tmp_path / "a", shuffled(), read_from(shuffled()), STEPS, experiment=ready_made())


def test_those_of_an_experiment_by_hand_with_its_loss_are_the_same(tmp_path: Path):
    run(tmp_path / "a", by_hand(), shuffled())
    given: dict[str, Any] = {"experiment": by_hand(), "loss": lambda exp, batch: exp.losses(batch)}
    check_steps(tmp_path / "a", shuffled(), read_from(shuffled()), **given)


@pytest.mark.parametrize(
    ("options", "per_epoch"), [({"limit_train_batches": 2}, 2), ({"overfit_batches": 2}, 2)]
)
def test_the_batches_are_those_of_the_options(tmp_path: Path, options: Any, per_epoch: int):
    run(tmp_path / "a", ready_made(), shuffled(on_device=True), epochs=3, **options)
    read = read_from(shuffled(), per_epoch)
    first = "overfit_batches" in options  # those of epoch 0, in each epoch
    found = {"experiment": ready_made()}
    check_steps(
        tmp_path / "a",
        shuffled(),
        (lambda step: read((step - 1) % per_epoch + 1)) if first else read,
        **found,
    )


def test_arrays_with_the_batch_size_of_the_run_have_rows(tmp_path: Path):
    trainer = solstice.Trainer([Checkpoint(tmp_path / "a", every=3, keep=9)])
    trainer.fit(ready_made(), (X, Y), batch_size=SIZE)
    found = solstice.blame(tmp_path / "a", step=2, experiment=ready_made(), train_ds=(X, Y))
    assert found.index is not None
    np.testing.assert_array_equal(X[found.index], found.batch[0])
    assert found.index.tolist() != sorted(found.index)


def test_data_that_cannot_say_their_rows_have_none(tmp_path: Path):
    def of_epoch(epoch: int) -> Any:
        data = shuffled()
        data.set_epoch(epoch)
        return iter(data)

    run(tmp_path / "a", ready_made(), of_epoch)
    check_steps(tmp_path / "a", of_epoch, read_from(shuffled()), experiment=ready_made())
    found = solstice.blame(tmp_path / "a", step=2, experiment=ready_made(), train_ds=of_epoch)
    assert found.index is None
    assert found.worst(1)[0].index is None
    assert " ? " in repr(found)


def test_examples_without_a_loss_function_go_alone_through_the_step(tmp_path: Path):
    train_ds = shuffled()
    run(tmp_path / "a", by_hand(), train_ds)
    step = step_of(train_ds, BAD)
    given: dict[str, Any] = {"step": step, "experiment": by_hand(), "train_ds": train_ds}
    alone = solstice.blame(tmp_path / "a", **given)
    exact = solstice.blame(tmp_path / "a", loss=lambda exp, batch: exp.losses(batch), **given)
    np.testing.assert_allclose(alone.loss, exact.loss, rtol=1e-4)
    # Gradient descent: the change is the rate times the gradient of the example alone.
    np.testing.assert_allclose(
        alone.gradient_norm, 1e-5 * len(exact.loss) * exact.gradient_norm, rtol=0.02, atol=1e-6
    )
    assert alone.how.startswith("Approximate: each example went alone through `train_step`")
    assert "The loss is loss;" in alone.how


def test_masked_examples_come_last_and_nan_first(tmp_path: Path):
    x, y = X[:SIZE].copy(), Y[:SIZE].copy()
    mask = np.arange(SIZE) != 4
    y[4], x[7] = np.nan, np.nan
    train_ds = [Masked((X[:SIZE], Y[:SIZE]), np.ones(SIZE, bool)), Masked((x, y), mask)]
    exp = ready_made()
    run(tmp_path / "a", exp, train_ds, epochs=1)
    found = solstice.blame(tmp_path / "a", step=2, experiment=exp, train_ds=train_ds)
    rows = [one.row for one in found.worst(SIZE)]
    assert (rows[0], rows[-1]) == (7, 4)
    assert (found.loss[4], found.gradient_norm[4]) == (0, 0)
    assert found.worst(99, by="loss")[0].row == found.worst(1, by="gradient_norm")[0].row == 7


def test_an_example_is_as_bad_as_its_worse_number():
    loss, norm = np.float32([3, 9, 1, 5]), np.float32([2, 1, 8, 4])
    found = runs.Blame(1, 0, 0, loss, norm, None, None, "")
    assert [one.row for one in found.worst(by="loss")] == [1, 3, 0, 2]
    assert [one.row for one in found.worst(by="gradient_norm")] == [2, 3, 0, 1]
    # Rows 1 and 2 lead one ranking and are last in the other; row 3 is second in both.
    assert [one.row for one in found.worst()] == [1, 2, 3, 0]


# What cannot be had


def blame(folder: Path, **given: Any) -> Any:
    asked: dict[str, Any] = {"step": 2, "experiment": by_hand(), "train_ds": shuffled(), **given}
    return solstice.blame(folder, **asked)


def test_what_is_refused_says_what_to_write(tmp_path: Path):
    run(tmp_path / "a", by_hand(), shuffled(), epochs=1)
    with pytest.raises(ValueError, match="step must be 1 or more"):
        blame(tmp_path / "a", step=0)
    with pytest.raises(CheckpointError, match="has no step 6"):
        blame(tmp_path / "a", step=6)
    with pytest.raises(CheckpointError, match="cannot be computed exactly"):
        blame(tmp_path / "a", train_ds=batches((X, Y), SIZE, shuffle=True, seed=2))
    with pytest.raises(TypeError, match=r"loss is called with \(exp, batch\)"):
        blame(tmp_path / "a", loss=lambda batch: batch)
    with pytest.raises(ValueError, match="one number for each of the 10 examples"):
        blame(tmp_path / "a", loss=lambda exp, batch: jnp.mean(exp.losses(batch)))
    population = solstice.Population(lambda rate: by_hand(), rate=[1.0])
    with pytest.raises(TypeError, match=r"at\(.*, step=1\)\[0\]\.per_example\(batch\)"):
        blame(tmp_path / "a", experiment=population)
    found = blame(tmp_path / "a")
    with pytest.raises(ValueError, match="by must be"):
        found.worst(by="norm")
    with pytest.raises(ValueError, match="num must be 1 or more"):
        found.worst(0)


def test_arrays_of_other_lengths_need_a_loss_function(tmp_path: Path):
    class WithTable(ByHand):
        def losses(self, batch: Any) -> Any:
            return super().losses(batch[:2]) * batch[2][0]

    exp = WithTable(by_hand().weight, by_hand().bias)
    train_ds = [(X[:SIZE], Y[:SIZE], np.float32([2, 3]))] * 2
    run(tmp_path / "a", exp, train_ds, epochs=1)
    with pytest.raises(solstice.DataError, match=r"differ in length on axis 0.*loss=lambda exp"):
        blame(tmp_path / "a", experiment=exp, train_ds=train_ds)
    found = blame(tmp_path / "a", experiment=exp, train_ds=train_ds, loss=lambda e, b: e.losses(b))
    assert found.loss.shape == (SIZE,)
