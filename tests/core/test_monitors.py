"""Monitors: what they measure is what a loop by hand finds, and all others are told of it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clocks import stopped

import solstice
from solstice._engine import _staging, _totals
from solstice._loop import _run, _state
from solstice.callbacks import (
    DeviceMemory,
    History,
    LearningRate,
    NormMonitor,
    Throughput,
    _monitors,
)
from solstice.testing import Sgd


class Fit(solstice.Experiment):
    """Least squares by hand, with what an optimiser would keep."""

    params: Any
    opt_state: Any
    optimizer: Any

    def __init__(self, optimizer=None):
        self.params = {"a": jnp.ones(3), "b": {"w": jnp.full(2, 2.0), "v": jnp.zeros(())}}
        self.optimizer = optimizer or solstice.compat.track_norms(Sgd(0.1))
        self.opt_state = self.optimizer.init(self.params)

    def loss(self, params, batch):
        return sum(
            (jnp.mean(batch) * leaf - 1.0) @ (leaf - 1.0) if leaf.ndim else leaf**2
            for leaf in jax.tree.leaves(params)
        )

    def train_step(self, batch):
        loss, grads = jax.value_and_grad(self.loss)(self.params, batch)
        params, opt_state = self.optimizer.step(grads, self.opt_state, self.params)
        return solstice.replace(self, params=params, opt_state=opt_state), {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": self.loss(self.params, batch)}


def some(*values):
    return [np.full(2, value, np.float32) for value in values]


def test_norms_are_those_of_a_loop_by_hand():
    history = History(every=1)
    solstice.Trainer([history, NormMonitor()]).fit(Fit(), some(1, 2, 3, 4))
    exp = Fit()
    for row, batch in zip(
        (r for r in history.rows if r["span"] == "steps"), some(1, 2, 3, 4), strict=True
    ):
        grads = jax.grad(exp.loss)(exp.params, batch)
        new, _ = exp.train_step(batch)
        update = jax.tree.map(jnp.subtract, new.params, exp.params)
        for name, tree in [("grad", grads), ("update", update), ("param", new.params)]:
            for part, of in [("", tree), ("/a", tree["a"]), ("/b", tree["b"])]:
                flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(of)])
                np.testing.assert_allclose(
                    row[f"{name}_norm{part}"], np.linalg.norm(flat), rtol=1e-5, err_msg=name + part
                )
        exp = new


def test_the_depth_of_norms_and_levels_of_one():
    tree = {"params": {"Dense_0": {"kernel": np.float32([3, 4])}, "Dense_1": np.float32([2])}}
    assert {*solstice.compat.norms_of(tree)} == {"", "Dense_0", "Dense_1"}
    assert {*solstice.compat.norms_of(tree, 0)} == {""}
    assert {*solstice.compat.norms_of(tree, 2)} == {"", "Dense_0/kernel", "Dense_1"}
    assert float(solstice.compat.norms_of(tree)["Dense_0"]) == 5


def test_tracking_changes_no_number():
    plain = solstice.Trainer().fit(Fit(Sgd(0.1)), some(*range(9)))
    tracked = solstice.Trainer([NormMonitor()]).fit(Fit(), some(*range(9)))
    for one, other in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(tracked.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


class Counted(Fit):
    """With the state of a schedule as Optax keeps it."""

    def __init__(self, rate=None):
        super().__init__(Sgd(0.1))
        if rate is None:
            self.opt_state = {"count": jnp.zeros((), jnp.int32)}
        else:
            self.opt_state = {"hyperparams": {"learning_rate": jnp.asarray(rate)}}

    def train_step(self, batch):
        state = self.opt_state
        state = jax.tree.map(
            lambda leaf: leaf + 1 if leaf.dtype == jnp.int32 else leaf * 0.5, state
        )
        return solstice.replace(self, opt_state=state), {"loss": jnp.mean(batch)}


def test_the_rate_is_read_from_the_optimiser_or_from_the_schedule():
    def rates(exp, *schedule):
        history = History(every=1)
        solstice.Trainer([history, LearningRate(*schedule)]).fit(exp, some(1, 1, 1))
        return [row["lr"] for row in history.rows if row["span"] == "steps"]

    assert rates(Counted(8.0)) == [4.0, 2.0, 1.0]
    assert rates(Counted(), lambda count: 10.0 * count) == [0.0, 10.0, 20.0]
    assert rates(Fit(), lambda count: 10.0 * count) == [0.0, 10.0, 20.0]  # counts nothing itself
    assert rates(Fit(), 0.5) == [0.5] * 3


class ScaleByScheduleState(NamedTuple):
    """As Optax has it."""

    count: jax.Array


class Several(Fit):
    """With other counts than that of an optimiser."""

    count: jax.Array
    states: dict

    def __init__(self, **states):
        super().__init__(Sgd(0.1))
        self.count = jnp.asarray(700, jnp.int32)
        self.states = states

    def train_step(self, batch):
        states = jax.tree.map(lambda count: count + 1, self.states)
        return solstice.replace(self, states=states, count=self.count + 64), {}


def at(count):
    return jnp.asarray(count, jnp.int32)


def lrs_of(exp):
    trainer = solstice.Trainer([LearningRate(lambda count: 10.0 * count)])
    trainer.fit(exp, some(1))
    return {name: v for name, v in trainer.history.rows[0].items() if name.startswith("lr")}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, {"lr": 0.0}),  # nothing but the examples seen is counted: training steps
        ({"count": at(5)}, {"lr": 0.0}),  # of what, is not known
        ({"opt_state": {"count": at(5), "z": {"count": at(2)}}}, {"lr": 50.0}),
        ({"opt_state": (ScaleByScheduleState(at(5)), {"count": at(9)})}, {"lr": 50.0}),
        ({"mine": [ScaleByScheduleState(at(5))], "opt_state": {"count": at(9)}}, {"lr": 50.0}),
        (
            {
                "one": {"opt_state": [ScaleByScheduleState(at(5))]},
                "two": {"opt_state": [ScaleByScheduleState(at(2)), ScaleByScheduleState(at(3))]},
            },
            {"lr/states/one": 50.0, "lr/states/two": 30.0},
        ),
    ],
)
def test_a_schedule_is_read_at_the_count_of_its_optimiser(states, expected):
    assert lrs_of(Several(**states)) == expected


def test_a_rate_that_is_not_to_be_found_is_told_at_once():
    with pytest.raises(ValueError, match=r"LearningRate\(schedule\)"):
        solstice.Trainer([LearningRate()]).fit(Fit(), some(1))


def test_throughput_covers_the_training_alone():
    history = History(every=2)
    trainer = solstice.Trainer([history, Throughput()], val_every_n_steps=3)
    trainer.fit(Fit(), some(*range(8)), some(1, 2), num_epochs=2)
    rows = [row for row in history.rows if row["mode"] == "train"]
    assert len(rows) == 8 + 2
    for row in rows:
        shares = [row[f"time_{name}"] for name in ("data", "copy", "dispatch", "device")]
        assert all(share >= 0 for share in shares)
        assert sum(shares) <= 1.0001
    steps = [row for row in rows if row["span"] == "steps"]
    assert all(row["steps_per_second"] > 0 for row in rows)
    # The epoch ends at its last step, after which no step has been measured.
    ends = [row for row in steps if row["step"] % 8 == 0]
    for end, epoch in zip(ends, [row for row in rows if row["span"] == "epoch"], strict=True):
        assert end["steps_per_second"] == epoch["steps_per_second"]
    np.testing.assert_allclose(
        [row["examples_per_second"] / row["steps_per_second"] for row in steps], 2, rtol=1e-6
    )


def test_time_that_a_data_set_takes_is_told_as_such(monkeypatch):
    clock = stopped(monkeypatch, _staging, _totals, _run, _state, _monitors)

    def slow():
        for value in range(3):
            clock.now += 0.25
            yield np.full(2, value, np.float32)

    class Slow(solstice.Callback):
        def on_epoch_start(self, record):
            clock.now += 0.25

    trainer = solstice.Trainer([Throughput(), Slow()])
    trainer.fit(Fit(), slow, num_epochs=3)
    assert len(trainer.history.rows) == 3
    for row in trainer.history.rows[1:]:  # the first batch of all is read before an epoch begins
        assert row["time_data"] == 0.75
        assert row["time_copy"] == row["time_dispatch"] == row["time_device"] == 0
        assert row["steps_per_second"] == 3


def test_memory_counts_the_arrays_that_there_are():
    trainer = solstice.Trainer([DeviceMemory()])
    trainer.fit(Fit(), some(1))
    before = trainer.history.rows[-1]["memory_bytes"]
    held = jnp.zeros(1_000_000, jnp.float32)
    trainer.fit(Fit(), some(1))
    assert trainer.history.rows[-1]["memory_bytes"] >= before + held.nbytes - 100_000


def test_a_user_measures_too_and_once_a_moment():
    class Step(solstice.Callback):
        every = None
        asked = 0

        def measure(self, record):
            self.asked += 1
            return {
                "twice": 2 * record.step,
                "loss": -12345.0,
                "norm": record.experiment.params["a"][0],
            }

    step, one, other = Step(), History(every=2), History(every=2)
    trainer = solstice.Trainer([one, other, step])
    trainer.fit(Fit(), some(1, 2, 3, 4), some(1))
    assert [row["twice"] for row in one.rows if row["span"] == "steps"] == [4, 8]
    assert step.asked == 3  # two steps, and the end of the epoch
    assert all(row["loss"] != -12345 for row in one.rows)  # a metric of the step goes first
    assert "twice" not in next(row for row in one.rows if row["mode"] == "val")
    assert one.rows == other.rows


@pytest.mark.parametrize("every", [None, 2])
def test_who_measures_may_ask_to_stop(every):
    class Hot(solstice.Callback):
        every = None

        def measure(self, record):
            if record.step >= 4:
                raise solstice.Stop("too hot")
            return {"temperature": record.step}

    history = History(every=every)
    trainer = solstice.Trainer([history, Hot()])
    trainer.fit(Fit(), some(1, 2, 3, 4), num_epochs=3)
    assert [row["step"] for row in history.rows if row["span"] == "epoch"] == [4]
    assert history.rows[-1]["loss"] > 0


def test_all_that_several_measure_is_told():
    class One(solstice.Callback):
        every = None

        def measure(self, record):
            return {"one": 1.0, "both": 1.0}

    class Two(One):
        def measure(self, record):
            return {"two": 2.0, "both": 2.0}

    trainer = solstice.Trainer([One(), Two()])
    trainer.fit(Fit(), some(1))
    row = trainer.history.rows[0]
    assert (row["one"], row["two"], row["both"]) == (1.0, 2.0, 2.0)  # the later goes first


def test_what_is_measured_has_names():
    class Bare(solstice.Callback):
        every = None

        def measure(self, record):
            return 0.5

    with pytest.raises(TypeError, match=r'Bare.measure must return .*"temperature": 0.7.* 0.5'):
        solstice.Trainer([Bare()]).fit(Fit(), some(1))


def test_early_stopping_takes_what_is_measured():
    class Rising(solstice.Callback):
        every = None

        def measure(self, record):
            return {"height": record.step}

    stopping = solstice.callbacks.EarlyStopping("train/height", mode="min", patience=2)
    trainer = solstice.Trainer([Rising(), stopping])
    trainer.fit(Fit(), some(1), num_epochs=9)
    assert len(trainer.history) == 3


def test_the_ready_made_experiments_are_understood():
    net = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    exp = solstice.RegressionExperiment(net, solstice.compat.track_norms(Sgd(0.1)))
    trainer = solstice.Trainer([NormMonitor(depth=0)])
    exp = trainer.fit(exp, (x, x[:, 0]), batch_size=8)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(exp.learner.params)])
    np.testing.assert_allclose(
        trainer.history.rows[-1]["param_norm"], np.linalg.norm(flat), rtol=1e-6
    )
