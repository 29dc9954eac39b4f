"""Population: many members of one Experiment in one program."""

import inspect
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mesh_tests import run_on_eight
from populations import Line, column, line_data, lines

import solstice
from solstice import DataError, ExperimentError
from solstice.callbacks import Checkpoint, LearningRate
from solstice.checkpoint import CheckpointError
from solstice.compat import EquinoxModel

RATES = np.array([0.03, 0.02, 0.01], np.float32)
SEEDS = np.arange(3)


def bits(tree: Any) -> list[bytes]:
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    keys = [jax.random.key_data(x) if _is_key(x) else x for x in arrays]
    return [np.asarray(x).tobytes() for x in keys]


def assert_close(one: Any, other: Any, atol: float) -> None:
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key: Any):
        one, two = jax.random.split(key)
        # No bias, whose gradient under BatchNorm would be rounding errors alone.
        self.first = eqx.nn.Linear(4, 8, use_bias=False, key=one)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.last = eqx.nn.Linear(8, 3, key=two)

    def __call__(self, x: Any, state: Any, *, key: Any = None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


SMALL = EquinoxModel(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
NET = EquinoxModel(lambda key: eqx.nn.make_with_state(Net)(key))


def labelled(size: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 4)).astype(np.float32)
    return x, (x[:, :3] + 0.1 * rng.normal(size=(size, 3))).argmax(1).astype(np.int32)


def classifier(rate: Any, seed: Any, **options: Any):
    optimizer = optax.sgd(rate, momentum=0.9)
    return solstice.ClassificationExperiment(NET, optimizer, num_classes=3, seed=seed, **options)


def test_each_member_is_its_run_alone():
    train_ds = solstice.data.batches(labelled(96), 16, shuffle=True, seed=1)
    val_ds = solstice.data.batches(labelled(40, 1), 16)  # the last batch is smaller
    trainer, alone = solstice.Trainer(), solstice.Trainer()
    pop = solstice.Population(classifier, rate=RATES, seed=SEEDS)
    pop = trainer.fit(pop, train_ds, val_ds, num_epochs=34)
    for i in (0, 2):  # each of them compiles its own step
        exp = alone.fit(classifier(RATES[i], SEEDS[i]), train_ds, val_ds, num_epochs=34)
        assert int(exp.step) == 204
        for name in ("train/loss", "val/loss", "val/accuracy", "val/f1_macro"):
            ours, solo = column(trainer, name)[:, i], column(alone, name)
            np.testing.assert_allclose(ours, solo, rtol=0, atol=1e-6)
        assert_close(exp.params, pop[i].params, 2e-6)
    # The member goes on with the optimiser of its own rate.
    again = [alone.fit(one, train_ds, num_epochs=1).params for one in (exp, pop[2])]
    assert_close(*again, 2e-6)


def test_metrics_and_outputs_have_a_value_for_each_member():
    trainer = solstice.Trainer()
    pop = trainer.fit(lines(), line_data(), line_data(), num_epochs=2)
    assert column(trainer, "val/loss").shape == (2, 3)
    assert column(trainer, "train/aux/norm").shape == (2, 3)
    batch = next(iter(line_data()))
    assert isinstance(pop.train_step(batch)[1], solstice.metrics.Mapped)
    found = trainer.test(pop, line_data())["loss"]
    for i in range(3):
        assert found[i] == pytest.approx(trainer.test(pop[i], line_data())["loss"], abs=1e-6)
    assert pop.test(line_data(), callbacks=[])["loss"].shape == (3,)


def test_other_outputs_have_the_members_in_front():
    class Says(Line):
        def eval_step(self, batch: Any):
            return self, {"loss": self.loss(self.w, batch), "parts": {"w": self.w}}

        def train_step(self, batch: Any):
            return self, {"w": self.w}

    batch = next(iter(line_data()))
    pop = solstice.Population(Says, seed=range(3)).setup(batch)
    _, (metrics, others) = pop.eval_step(batch)
    assert [*metrics.compute()] == ["loss"]
    assert {path: x.shape for path, x in others.items()} == {"parts/w": (3, 4)}
    assert {path: x.shape for path, x in pop.train_step(batch)[1].items()} == {"w": (3, 4)}


def test_predictions_have_the_examples_in_front():
    pop = lines().setup(next(iter(line_data())))
    found = [x["y"] for x in solstice.Trainer().predict(pop, line_data(20))]
    assert [x.shape for x in found] == [(8, 3), (8, 3), (4, 3)]
    alone = [x["y"] for x in solstice.Trainer().predict(pop[2], line_data(20))]
    np.testing.assert_allclose(np.concatenate(found)[:, 2], np.concatenate(alone), atol=1e-6)
    # Inputs without targets, of which `make` and `setup` see none.
    x, _ = labelled(8)
    exp = solstice.Population(classifier, rate=RATES, seed=SEEDS).setup((x, labelled(8)[1]))
    assert exp.predict(x, batch_size=4).shape == (8, 3, 3)


@pytest.mark.parametrize("donate", [False, True])
def test_a_population_of_a_list_is_that_of_a_function(donate: bool):
    rates, pop = np.geomspace(0.01, 0.2, 3).astype(np.float32), lines()
    listed = solstice.Population([Line(rates[i], i) for i in range(3)])
    assert listed.hyperparameters == {}
    found = [
        solstice.Trainer().fit(one, line_data(), num_epochs=2, donate=donate)
        for one in (pop, listed)
    ]
    np.testing.assert_allclose(found[0].members.w, found[1].members.w, rtol=0, atol=1e-6)
    assert len(listed) == len(list(found[1])) == 3


def test_numbers_of_python_that_differ_become_arrays():
    pop = solstice.Population([Line(0.1, 0, scale=0.0), Line(0.1, 0, scale=5.0)])
    pop = solstice.Trainer().fit(pop, line_data())
    for i, scale in enumerate((0.0, 5.0)):
        alone = solstice.Trainer().fit(Line(0.1, 0, scale=scale), line_data())
        np.testing.assert_allclose(pop[i].w, alone.w, rtol=0, atol=1e-5)


def test_a_function_that_cannot_be_traced_makes_members_one_by_one():
    def make(rate: Any, seed: Any):
        return Line(rate, int(seed))

    rates = np.geomspace(0.01, 0.2, 3).astype(np.float32)
    pop = solstice.Population(make, rate=rates, seed=range(3))
    found = [solstice.Trainer().fit(one, line_data()) for one in (pop, lines())]
    assert [one.is_traced for one in found] == [False, True]
    np.testing.assert_allclose(found[0].members.w, found[1].members.w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0][2].w, found[1][2].w, rtol=0, atol=1e-6)


def test_hyperparameters_reach_the_model_and_the_optimiser():
    def make(rate: Any, key: Any, drop: Any):
        def net(key: Any):
            linear = eqx.nn.Linear(4, 3, key=key)
            return eqx.nn.Sequential([eqx.nn.Dropout(drop), linear])

        optimizer = optax.chain(optax.add_decayed_weights(drop), optax.sgd(rate))
        return solstice.ClassificationExperiment(EquinoxModel(net), optimizer, 3, seed=key)

    ds, keys = solstice.data.batches(labelled(32), 8), jax.random.split(jax.random.key(3), 2)
    drops = np.array([0.1, 0.5], np.float32)
    pop = solstice.Population(make, {"key": keys}, rate=0.05, drop=drops)
    pop = solstice.Trainer().fit(pop, ds, num_epochs=2)
    for i in range(2):
        alone = make(0.05, keys[i], float(drops[i]))
        alone = solstice.Trainer().fit(alone, ds, num_epochs=2)
        assert_close(pop[i].params, alone.params, 1e-6)


def test_steps_use_the_hyperparameters_of_the_state():
    def make(rate: Any):
        return solstice.ClassificationExperiment(SMALL, optax.sgd(rate), 3)

    batch = labelled(8)
    pop = solstice.Population(make, rate=[0.1, 0.2]).setup(batch)
    swapped = solstice.replace(pop, hyperparameters={"rate": pop.hyperparameters["rate"][::-1]})
    pop, swapped = pop.train_step(batch)[0], swapped.train_step(batch)[0]
    assert_close(swapped[0].params, pop[1].params, 1e-7)
    assert not np.allclose(pop[0].params.weight, pop[1].params.weight)


def test_members_that_are_not_active_do_not_change():
    pop = lines().setup(next(iter(line_data())))
    some = solstice.replace(pop, is_active=jnp.array([True, False, True]))
    every = solstice.Trainer().fit(pop, line_data())
    found = solstice.Trainer().fit(some, line_data())
    assert bits((found[1].w, found[1].step)) == bits((pop[1].w, pop[1].step))
    for i in (0, 2):
        np.testing.assert_allclose(found[i].w, every[i].w, rtol=0, atol=1e-6)


def test_a_resumed_run_has_the_bits_of_one_run(tmp_path: Path):
    data = line_data(shuffle=True, seed=0)
    whole = solstice.Trainer().fit(lines(), data, data, num_epochs=4)
    solstice.Trainer([Checkpoint(tmp_path)]).fit(lines(), data, data, num_epochs=2)
    trainer = solstice.Trainer([Checkpoint(tmp_path)])
    resumed = trainer.fit(lines(), data, data, num_epochs=4, resume="last")
    assert bits(resumed) == bits(whole)
    assert column(trainer, "val/loss").shape == (4, 3)
    with pytest.raises(CheckpointError, match=r"`\.size` was 3 .* and is 4"):
        trainer.fit(lines(4), data, num_epochs=5, resume="last")
    other = solstice.Population(Line, rate=[0.1, 0.2, 0.3], seed=range(3))
    with pytest.raises(CheckpointError, match=r"made_from` was 'rate=0\.01 .* is 'rate=0\.1 "):
        trainer.fit(other, data, num_epochs=5, resume="last")


def test_on_eight_devices():
    run_on_eight(Path(__file__).with_name("population_on_eight.py"))


def test_a_member_by_its_number():
    pop = lines()
    assert len(pop) == 3
    np.testing.assert_array_equal(pop[np.int64(1)].w, Line(0.1, 1).w)
    assert [float(one.rate) for one in pop] == pytest.approx(np.geomspace(0.01, 0.2, 3))
    with pytest.raises(IndexError, match=r"pop\[0\] to pop\[2\]; there is no pop\[3\]"):
        pop[3]
    for index in ("0", slice(0, 1), 1.0):
        with pytest.raises(TypeError, match="the number of one member"):
            pop[index]  # pyright: ignore[reportArgumentType]
    some = jnp.array([2, 0])
    left = solstice.replace(
        pop, hyperparameters={n: x[some] for n, x in pop.hyperparameters.items()}, ids=some
    )
    assert float(left[2].rate) == pytest.approx(0.2)
    with pytest.raises(IndexError, match=r"1 of 3 members have been removed.* \[2, 0\]"):
        left[1]


def test_repr_and_looks():
    pop = lines()
    assert repr(pop) == "Population(3 members; rate=0.01 ... 0.2, seed=0 ... 2)"
    pop = pop.setup(next(iter(line_data())))
    assert repr(pop) == "Population(3 members of Line; rate=0.01 ... 0.2, seed=0 ... 2)"
    assert repr(solstice.Population([pop[1]])) == "Population(1 member of Line)"
    assert pop.setup("anything") is pop
    half = jnp.array([0.5], jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 1)
    other = solstice.Population(Line, rate=half, seed=keys[:1], scale=[1234567], width=4)
    assert repr(other) == (
        "Population(1 member; rate=0.5, seed=key<fry>[1], scale=1234567, width=4)"
    )
    assert "members" in str(solstice.summary(pop))
    assert "Population.train_step" in str(solstice.plan(pop, next(iter(line_data()))))
    trainer = solstice.Trainer()
    trainer.fit(pop, line_data())
    assert "compiled programs: 1" in trainer.explain()


def test_learning_rates_of_members():
    def make(rate: Any):
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        return solstice.ClassificationExperiment(SMALL, optimizer, 3)

    history = solstice.History()
    ds = solstice.data.batches(labelled(16), 8)
    pop = solstice.Population(make, rate=[0.1, 0.2])
    solstice.Trainer([LearningRate(), history]).fit(pop, ds)
    np.testing.assert_allclose(history.rows[-1]["lr"], [0.1, 0.2])


class Checked(Line):
    def check_batch(self, batch: Any) -> None:
        if batch[0].max() > 10 * float(self.scale + 1):
            raise DataError("too large")


def test_batches_are_checked_by_a_member():
    def make(seed: Any):
        return Checked(0.1, seed, scale=jnp.zeros(()))

    x, _ = labelled(8)
    pop = solstice.Population(make, seed=[0, 1])
    assert pop.setup((x, x[:, 0])).stacked_check() is None
    with pytest.raises(DataError, match="too large"):
        solstice.Trainer().fit(pop, [(x, x[:, 0]), (x + 20, x[:, 0])])
    pop = solstice.Population(classifier, rate=RATES, seed=SEEDS)
    with pytest.raises(DataError, match=r"outside \[0, 3\)"):
        solstice.Trainer().fit(pop, [(x, np.full(8, 3, np.int32))])


def test_all_combinations():
    found = solstice.grid(rate=[0.1, 0.2], seed=range(3), flag=True)
    np.testing.assert_allclose(found["rate"], [0.1] * 3 + [0.2] * 3)
    np.testing.assert_array_equal(found["seed"], [0, 1, 2] * 2)
    assert found["flag"].all()
    assert len(solstice.Population(Line, **solstice.grid(rate=[0.1, 0.2], seed=range(3)))) == 6


def wrong(rate: Any, seed: Any):
    return rate + seed


def several(first: Any, second: Any):
    return solstice.Population([first, second])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: solstice.grid(), ValueError, r"grid\(rate="),
        (lambda: solstice.grid(rate=[]), ValueError, "rate has no values"),
        (lambda: solstice.Population(Line), TypeError, "needs the values"),
        (lambda: solstice.Population(Line, rate=[]), ValueError, "rate has no values"),
        (lambda: solstice.Population(Line, rate=0.1), ValueError, r"`rate=\[rate\]`"),
        (
            lambda: solstice.Population(Line, rate=[0.1, 0.2], seed=range(3)),
            ValueError,
            r"rate has 2, seed has 3\. .*solstice\.grid\(rate=\.\.\., seed=\.\.\.\)",
        ),
        (
            lambda: solstice.Population(Line, rat=[0.1]),
            TypeError,
            r"Line\(rate.*\) has no argument 'rat'",
        ),
        (lambda: solstice.Population(wrong, rate=[0.1]), TypeError, "needs a value of 'seed'"),
        (lambda: solstice.Population(Line, rate=["a"]), ValueError, r"they are \['a'\]"),
        (lambda: solstice.Population(Line, seed=[2**40]), ValueError, "do not fit into int32"),
        (lambda: solstice.Population(Line, [0.1]), TypeError, "must be a dict"),
        (lambda: solstice.Population([]), ValueError, "the list is empty"),
        (lambda: solstice.Population([Line(), 3]), TypeError, "number 1 is 3"),
        (lambda: solstice.Population(Line()), TypeError, "or a list of Experiments"),
        (lambda: solstice.Population([Line()], seed=[0]), TypeError, "takes no hyperparameters"),
        (lambda: several(Line(), Line(width=5)), ExperimentError, r"`w` is float32\[4\] .*\[5\]"),
        (
            lambda: lines().train_step(next(iter(line_data()))),
            DataError,
            r"`pop\.setup\(batch\)`",
        ),
        (
            lambda: solstice.Population(wrong, rate=[0.1], seed=[0]).setup(None),
            TypeError,
            "must return a solstice.Experiment",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Any, error: Any, said: str):
    with pytest.raises(error, match=said):
        call()


def test_each_static_difference_is_named():
    x, y = labelled(8)

    def make(rate: Any, seed: Any, smoothing: Any):
        return classifier(rate, int(seed), label_smoothing=smoothing)

    with pytest.raises(ExperimentError) as caught:
        several(classifier(0.1, 0), classifier(0.1, 1, micro_batches=2))
    assert "`.learner.optimizer.tx`: Grad" in str(caught.value)
    assert "`.micro_batches`: 1, and 2" in str(caught.value)
    assert "Share the model and the optimiser" in str(caught.value)
    pop = solstice.Population(make, rate=RATES, seed=SEEDS, smoothing=[0.0, 0.1, 0.2])
    with pytest.raises(ExperimentError) as caught:
        pop.setup((x, y))
    assert "`.task.label_smoothing`: 0.0, and 0.1" in str(caught.value)
    assert "or build them inside `make` from its arguments" in str(caught.value)
    assert "`seed` and `smoothing` must be arrays of JAX" in str(caught.value)
    assert f"{Path(__file__).name}:{_line_of(make, 'int(seed)')}" in str(caught.value)


def _line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_hyperparameter_that_sets_a_shape_is_named():
    pop = solstice.Population(Line, rate=[0.1, 0.2], width=[4, 5])
    with pytest.raises(ExperimentError, match=r"`w` is float32\[4\] in member 0.*for each of its"):
        pop.setup(next(iter(line_data())))


def test_a_value_that_a_step_needs_as_a_number_is_named():
    def make(rate: Any, seed: Any):
        class Branch(Line):
            def train_step(self, batch: Any):
                return self, {"loss": 1.0 if rate > 0.1 else 2.0}

        return Branch(rate, seed)

    class Plain(Line):
        def train_step(self, batch: Any):
            return self, {"loss": 1.0 if self.rate > 0.1 else 2.0}

    values: dict[str, Any] = {"rate": [0.1, 0.2], "seed": [0, 1]}
    with pytest.raises(ExperimentError, match=r"Branch\.train_step .*: `rate` must be an array"):
        solstice.Trainer().fit(solstice.Population(make, **values), line_data())
    with pytest.raises(ExperimentError, match=r"Plain\.train_step cannot be compiled"):
        solstice.Trainer().fit(solstice.Population(Plain, **values), line_data())


def test_a_member_that_breaks_its_contract_is_named():
    class Grows(Line):
        def train_step(self, batch: Any):
            return solstice.replace(self, w=jnp.zeros((1, 4))), {}

    class Scales(Line):
        def train_step(self, batch: Any):
            return solstice.replace(self, scale=self.w[0]), {}

    for kind, said in (
        (Grows, r"`\.w`: it was float32\[4\]"),
        (Scales, r"other values of `scale`, .*`jnp\.asarray"),
    ):
        with pytest.raises(ExperimentError, match=said):
            solstice.Trainer().fit(solstice.Population(kind, seed=[0, 1]), line_data())


def test_a_number_of_python_counts_for_all_members():
    class Counts(Line):
        def train_step(self, batch: Any):
            new, outputs = Line.train_step(self, batch)
            return solstice.replace(new, scale=self.scale + 1), outputs

    pop = solstice.Trainer().fit(solstice.Population(Counts, rate=RATES), line_data())
    alone = solstice.Trainer().fit(Counts(RATES[1]), line_data())
    assert float(pop[1].scale) == float(alone.scale) == pytest.approx(5.01)
    assert_close(pop[1].w, alone.w, 1e-5)
