"""What is compiled is told, with the leaf that is to blame."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._compiles import kinds_of
from solstice.callbacks import CompileMonitor
from solstice.testing import Sgd


class Scale(solstice.Experiment):
    weight: Any
    best: Any = float("inf")
    count: Any = 0
    function: Any = None
    length: int = eqx.field(static=True, default=2)

    def train_step(self, batch):
        function = self.function or (lambda x: x)
        loss = jnp.sum(function(batch.astype(jnp.float32)) * self.weight) * self.length
        new = solstice.replace(
            self,
            weight=self.weight - 0.1,
            best=jnp.minimum(jnp.asarray(self.best, jnp.float32), loss),
            count=self.count + 1,
        )
        return new, {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": jnp.sum(batch)}


def some(*sizes):
    return [np.ones(size, np.float32) for size in sizes]


def compiled_by(*fits, **options):
    monitor = CompileMonitor(**options)
    trainer = solstice.Trainer([monitor])
    told = []
    for experiment, data in fits:
        trainer.fit(experiment, data, some(3))
        told.append([c for c in monitor.compilations if c.name == "Scale.train_step"])
    return told


@pytest.fixture(autouse=True)
def _forget():
    jax.clear_caches()


def test_the_first_is_the_first_and_a_second_run_compiles_nothing():
    first, second = compiled_by((Scale(jnp.ones(())), some(4, 4)), (Scale(jnp.ones(())), some(4)))
    assert len(first) == 1
    assert first[0].seconds > 0
    assert second == []


def test_a_partial_batch_is_named():
    (told,) = compiled_by((Scale(jnp.ones(())), some(5, 5, 3)))
    assert len(told) == 2
    assert told[1].reasons == ("`batch` was float32[5] and is float32[3]",)


def test_in_a_trainer_a_counter_and_an_inf_compile_nothing_more():
    exp = Scale(jnp.ones(()))
    trained = solstice.Trainer().fit(exp, some(6, 6))
    again, third = compiled_by((trained, some(6, 6)), (solstice.replace(trained, count=7), some(6)))
    assert again == []
    assert third == []


def test_a_fresh_lambda_is_named():
    one = Scale(jnp.ones(()), function=lambda x: 2.0 * x)
    other = Scale(jnp.ones(()), function=lambda x: 3.0 * x)
    _, second = compiled_by((one, some(7)), (other, some(7)))
    (reason,) = second[0].reasons
    assert reason.startswith("`.function` was test_a_fresh_lambda_is_named.<locals>.<lambda> of")


def test_the_same_lambda_made_anew_is_named():
    def make():
        return Scale(jnp.ones(()), function=lambda x: 2.0 * x)

    _, second = compiled_by((make(), some(8)), (make(), some(8)))
    assert "`.function` is another object" in second[0].reasons[0]
    assert "make it once" in second[0].reasons[0]


def test_a_static_field_and_a_dtype_are_named():
    start = Scale(jnp.ones(()))
    _, static, half = compiled_by(
        (start, some(9)),
        (Scale(jnp.ones(()), length=3), some(9)),
        (start, [np.ones(9, np.int32)]),
    )
    assert static[0].reasons[0].startswith("`.length` was 2 and is 3")
    assert half[0].reasons == ("`batch` was float32[9] and is int32[9]",)


def test_another_set_of_callbacks_is_named():
    class Reader(solstice.Callback):
        needs = ("outputs",)
        can_stop = False

        def on_step_end(self, record):
            self.last = record.outputs

    solstice.Trainer().fit(Scale(jnp.ones(())), some(10))
    monitor = CompileMonitor()
    solstice.Trainer([monitor, Reader()]).fit(Scale(jnp.ones(())), some(10))
    assert any(
        "callbacks that read outputs" in reason for reason in monitor.compilations[0].reasons
    )


def test_a_budget_is_an_error_that_keeps_the_experiment():
    trainer = solstice.Trainer([CompileMonitor(max_compiles=1)])
    with pytest.raises(solstice.CompileBudgetError, match=r"`batch` was float32\[11\]") as raised:
        trainer.fit(Scale(jnp.ones(())), some(11, 11, 2))
    assert raised.value.experiment.count == 3
    with pytest.raises(ValueError, match="max_compiles"):
        CompileMonitor(max_compiles=-1)


class Loop(eqx.Module):
    count: Any
    best: Any
    weak: Any


def watched(function, **options):
    told = []
    return solstice.watch_compiles(function, report=told.append, **options), told


def test_in_a_loop_of_ones_own_a_counter_is_named():
    @eqx.filter_jit
    def step(state, batch):
        return eqx.tree_at(lambda s: s.count, state, state.count + 1), jnp.sum(batch)

    step, told = watched(step)
    state = Loop(0, jnp.zeros(()), 1)
    for _ in range(3):
        state, _ = step(state, np.ones(3, np.float32))
    assert len(told) == 3
    assert told[2].reasons[0].startswith("`[0].count` was 1 and is 2")
    assert "jnp.asarray(2)" in told[2].reasons[0]


def test_in_a_loop_of_ones_own_an_inf_start_is_named():
    @eqx.filter_jit
    def step(state, batch):
        best = jnp.minimum(jnp.asarray(state.best, jnp.float32), jnp.sum(batch))
        return eqx.tree_at(lambda s: s.best, state, best)

    step, told = watched(step)
    state = Loop(jnp.zeros(()), float("inf"), 1)
    for _ in range(3):
        state = step(state, np.ones(3, np.float32))
    assert len(told) == 2
    assert told[1].reasons[0].startswith("`[0].best` was the Python number inf and is float32[]")


def test_in_a_loop_of_ones_own_weak_types_lambdas_and_shapes_are_named():
    step, told = watched(jax.jit(lambda x: x + 1))
    step(jnp.asarray(1.0, jnp.float32))
    step(jnp.asarray(1.0))  # weakly typed
    step(jnp.ones(3, jnp.float32))
    assert told[1].reasons == ("`[0]` was float32[] and is float32[], weakly typed",)
    assert "`[0]` was float32[]" in told[2].reasons[0]

    apply, told = watched(eqx.filter_jit(lambda f, x: f(x)))
    for factor in (2.0, 3.0):
        apply(lambda x, factor=factor: x * factor, jnp.ones(3))
    assert "`[0]` is another object" in told[1].reasons[0]
    for _ in range(3):
        apply(jnp.sin, jnp.ones(3))
    assert len(told) == 3  # the same function, once


def test_a_budget_in_a_loop_of_ones_own():
    step = solstice.watch_compiles(jax.jit(lambda x: x * 2), max_compiles=1)
    step(np.ones(2, np.float32))
    step(np.ones(2, np.float32))
    with pytest.raises(solstice.CompileBudgetError, match="2 programs were compiled"):
        step(np.ones(3, np.float32))


def test_a_monitor_writes_to_the_log(caplog):
    with caplog.at_level("INFO", logger="solstice"):
        compiled_by((Scale(jnp.ones(())), some(12)))
    assert "compiled Scale.train_step in" in caplog.text
    assert "the first of its kind" in caplog.text or "was" in caplog.text


def test_nothing_large_is_kept_alive():
    from solstice._compiles import Kind

    class Large:
        pass

    large = Large()
    kind = Kind(large)
    assert kind == Kind(large)
    del large
    assert kind != Kind(Large())


def test_a_new_optimiser_is_named_and_a_flood_is_cut_short():
    x, y = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)
    net = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))

    @jax.tree_util.register_static
    class Fresh(Sgd):
        def __eq__(self, other):
            return self is other

        __hash__ = object.__hash__

    monitor = CompileMonitor()
    for _ in range(2):
        exp = solstice.ClassificationExperiment(net, Fresh(0.1), num_classes=2)
        solstice.Trainer([monitor]).fit(exp, (x, y), batch_size=8)
    assert "`.learner.optimizer` is another object" in str(monitor.compilations[-1])
    many = solstice.Compilation("step", 0.0, tuple("abcdefgh"))
    assert str(many).endswith("a; b; c; d; e; and 3 more")


class Slow:
    """A static object whose repr takes long, as that of a large configuration may."""

    asked = 0

    def __repr__(self):
        Slow.asked += 1
        return "Slow()"


def test_what_is_static_is_described_when_that_is_told_and_not_before():
    class Held(Scale):
        about: Any = eqx.field(static=True, default=None)

    Slow.asked = 0
    monitor = CompileMonitor()
    trainer = solstice.Trainer([monitor])
    one, other = (Held(jnp.ones(()), about=Slow()) for _ in range(2))
    trainer.fit(one, some(4))
    assert Slow.asked == 0
    trainer.fit(other, some(4))
    why = [str(c) for c in monitor.compilations]  # of the newest run
    assert "`.about` is another object, though both are Slow()" in why[0], why


def test_what_is_gone_is_told_by_its_type():
    class Held(Scale):
        about: Any = eqx.field(static=True, default=None)

    kind = kinds_of(Held(jnp.ones(()), about=Slow()))[".about"]
    assert kind.text == "a Slow"
    assert kind != kinds_of(Held(jnp.ones(()), about=Slow()))[".about"]
