"""The Metrics base class, and mappings of scalars averaged over examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._batch import num_examples
from solstice._metrics import Means, as_metrics, without_metrics

to_means = jax.jit(as_metrics)


class Accuracy(solstice.Metrics):
    """The example of the docstring."""

    correct: jax.Array
    count: jax.Array

    def __init__(self, preds, labels):
        self.correct = jnp.sum(preds == labels)
        self.count = jnp.asarray(preds.shape[0])

    def merge(self, other):
        return solstice.replace(
            self, correct=self.correct + other.correct, count=self.count + other.count
        )

    def compute(self):
        return {"accuracy": self.correct / self.count}


class Largest(solstice.Metrics):
    value: jax.Array

    def merge(self, other):
        return Largest(jnp.maximum(self.value, other.value))

    def compute(self):
        return {"largest": self.value}


class Collected(solstice.Metrics):
    values: jax.Array

    def merge(self, other):
        return Collected(jnp.concatenate([self.values, other.values]))

    def compute(self):
        return {"values": self.values, "median": jnp.median(self.values)}


class Measure(solstice.Experiment):
    """Gives whatever `outputs` makes of a batch."""

    outputs: object

    def train_step(self, batch):
        return self, self.outputs(batch)

    def eval_step(self, batch):
        return self, self.outputs(batch)


def metrics_over(batches, outputs):
    return solstice.Trainer().test(Measure(outputs), batches)


def both_means(batch):
    return {"mean": jnp.mean(batch), "square": jnp.mean(batch**2)}


def any_accuracy(batch):
    return Accuracy(*batch)


def any_largest(batch):
    return Largest(jnp.max(batch))


def any_collected(batch):
    return Collected(batch)


def test_metrics_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        solstice.Metrics()


def test_a_metrics_of_its_own_is_merged_over_unequal_batches():
    rng = np.random.default_rng(0)
    batches = [tuple(rng.integers(0, 2, size=(2, n))) for n in (1, 2, 3)]
    expected = np.mean(np.concatenate([p == t for p, t in batches]))
    assert metrics_over(batches, any_accuracy) == {"accuracy": pytest.approx(expected)}


def test_a_maximum_of_negative_values_does_not_begin_at_zero():
    batches = [np.array([-5.0, -3.0], np.float32), np.array([-4.0, -9.0], np.float32)]
    assert metrics_over(batches, any_largest) == {"largest": -3.0}


def test_metrics_that_grow_are_merged_too():
    batches = [np.arange(n, dtype=np.float32) for n in (3, 1, 2)]
    computed = metrics_over(batches, any_collected)
    np.testing.assert_array_equal(computed["values"], np.concatenate(batches))
    assert isinstance(computed["values"], np.ndarray)
    assert computed["median"] == np.median(np.concatenate(batches))


def test_computed_scalars_are_python_numbers():
    computed = metrics_over([np.ones(2, np.float32)], both_means)
    assert {name: type(value) for name, value in computed.items()} == {
        "mean": float,
        "square": float,
    }


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=3), min_size=1, max_size=6
    )
)
def test_a_mapping_of_scalars_is_averaged_over_examples(values):
    batches = [np.array(v, np.float32) for v in values]
    computed = metrics_over(batches, both_means)
    everything = np.concatenate(batches).astype(np.float64)
    assert computed["mean"] == pytest.approx(everything.mean(), rel=1e-4, abs=1e-4)
    assert computed["square"] == pytest.approx((everything**2).mean(), rel=1e-4, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 5]), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_means_merge_in_any_order_and_association(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=n).astype(np.float32) for n in sizes]
    parts = [to_means({"mean": b.mean()}, b) for b in batches]
    while len(parts) > 1:
        a, b = (parts.pop(rng.integers(len(parts))) for _ in range(2))
        parts.append(jax.jit(Means.merge)(a, b))
    assert parts[0].compute()["mean"] == pytest.approx(np.concatenate(batches).mean(), abs=1e-5)
    assert parts[0].count.values() == {"count": sum(sizes)}


def test_means_are_a_carry_of_scan():
    batches = np.arange(12, dtype=np.float32).reshape(4, 3)

    def body(total, batch):
        return total.merge(as_metrics({"mean": jnp.mean(batch)}, batch)), None

    first = as_metrics({"mean": jnp.mean(batches[0])}, batches[0])
    total, _ = jax.jit(lambda first, rest: jax.lax.scan(body, first, rest))(first, batches[1:])
    assert total.compute()["mean"] == pytest.approx(batches.mean())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_scalars_are_summed_in_float32(dtype):
    batch = np.zeros(8, np.float32)
    part = to_means({"one": jnp.asarray(1.0, dtype)}, batch)
    total = part
    for _ in range(299):
        total = total.merge(part)
    assert {leaf.dtype for leaf in jax.tree.leaves(total.sums)} == {jnp.dtype("float32")}
    assert total.sums.values() == {"one": 2400}
    assert total.compute()["one"] == 1


@pytest.mark.parametrize(
    "value", [3, True, np.float32(3), np.int32(3), jnp.int32(3), np.array(3.0)]
)
def test_every_kind_of_scalar_is_averaged(value):
    means = as_metrics({"x": value}, np.zeros(4, np.float32))
    assert means.compute()["x"] == float(value)


def test_the_mean_of_no_examples_is_nan():
    assert np.isnan(to_means({"x": 1.0}, np.zeros((0, 2), np.float32)).compute()["x"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_value_spoils_its_own_key_alone(bad):
    def outputs(batch):
        return {"bad": jnp.mean(batch["bad"]), "good": jnp.mean(batch["good"])}

    batches = [
        {"bad": np.array([b], np.float32), "good": np.array([g], np.float32)}
        for b, g in ((1, 1), (bad, 2), (3, 6))
    ]
    computed = metrics_over(batches, outputs)
    assert not np.isfinite(computed["bad"])
    assert computed["good"] == pytest.approx(3)


ONE = jnp.ones(())


class Pair(NamedTuple):
    loss: object
    extra: object


@pytest.mark.parametrize(
    ("outputs", "averaged", "lost"),
    [
        (None, {}, []),
        ({}, {}, []),
        (ONE, {"loss": 1.0}, []),
        (2.0, {"loss": 2.0}, []),
        (jnp.ones(3), {}, ["outputs"]),
        ({"loss": ONE, "logits": jnp.ones(3)}, {"loss": 1.0}, ["logits"]),
        ({"loss": ONE, "one": jnp.ones(1)}, {"loss": 1.0}, ["one"]),
        ({"loss": ONE, "none": None}, {"loss": 1.0}, ["none"]),
        ({"loss": ONE, "text": "no number"}, {"loss": 1.0}, ["text"]),
        ({"loss": ONE, "wave": jnp.ones((), complex)}, {"loss": 1.0}, ["wave"]),
        ({"loss": ONE, "key": jax.random.key(0)}, {"loss": 1.0}, ["key"]),
        (
            {"loss": ONE, "aux": {"l2": 3, "v": jnp.ones(2)}},
            {"loss": 1.0, "aux/l2": 3.0},
            ["aux/v"],
        ),
        ({"parts": [ONE, 2 * ONE]}, {"parts/0": 1.0, "parts/1": 2.0}, []),
        ((ONE, jnp.ones(2)), {"0": 1.0}, ["1"]),
        (Pair(ONE, jnp.ones(2)), {"loss": 1.0}, ["extra"]),
        ({"loss": ONE, "hit": True}, {"loss": 1.0, "hit": 1.0}, []),
    ],
)
def test_scalars_are_averaged_by_their_paths_and_the_rest_is_known(outputs, averaged, lost):
    metrics = as_metrics(outputs, np.zeros(3, np.float32))
    assert (metrics.compute() if metrics else {}) == averaged
    assert list(without_metrics(outputs)) == lost


class Extra(solstice.Metrics):
    """Metrics of another kind, for beside."""

    value: jax.Array

    def merge(self, other):
        return Extra(self.value + other.value)

    def compute(self):
        return {"sum": self.value}


def test_metrics_beside_other_outputs_are_merged_too():
    batches = [np.arange(n, dtype=np.float32) for n in (3, 1, 2)]

    def outputs(batch):
        return {
            "mean": batch.mean(),
            "high": Largest(batch.max()),
            "all": {"of": Collected(batch)},
            "sum": Extra(batch.sum()),
        }

    computed = metrics_over(batches, outputs)
    np.testing.assert_array_equal(computed.pop("all/of/values"), np.concatenate(batches))
    expected = {"mean": 4 / 6, "high/largest": 2.0, "all/of/median": 0.5, "sum/sum": 4.0}
    assert computed == pytest.approx(expected)


def test_metrics_in_a_pair_keep_their_names():
    def outputs(batch):
        return Extra(batch.sum()), batch

    with pytest.warns(UserWarning, match=r"Measure.eval_step returns .*: `1`, float32\[2\]"):
        assert metrics_over([np.ones(2, np.float32)] * 2, outputs) == {"sum": 4.0}


@pytest.mark.parametrize(
    "outputs",
    [
        lambda batch: {"a/b": batch.mean(), "a": {"b": batch.mean()}},
        lambda batch: {"a": Extra(batch.sum()), "a/sum": batch.mean()},
    ],
)
def test_two_of_one_name_are_refused(outputs):
    with pytest.raises((solstice.ExperimentError, ValueError), match=r"'a/(b|sum)'.*: rename one"):
        metrics_over([np.ones(2, np.float32)], outputs)


def test_what_gives_no_metrics_is_named_once_in_a_run():
    def outputs(batch):
        return {"x": {"loss": batch.mean(), "each": batch}}

    with pytest.warns(UserWarning, match="leaves out|give no metrics|cannot be compiled") as said:
        solstice.Trainer(sanity_val_batches=1, val_every_n_steps=1).fit(
            Measure(outputs), [np.ones(2, np.float32)] * 3, [np.ones(2, np.float32)], num_epochs=2
        )
    (message,) = [str(warning.message) for warning in said]
    assert message.startswith(
        "Measure.train_step returns outputs that give no metrics: `x/each`, float32[2]. Return a "
        "scalar, such as `each.mean()`, or a solstice.Metrics, such as "
        "`solstice.metrics.Collect(each=each)`"
    )
    with pytest.warns(UserWarning, match="Measure.eval_step returns"):  # another run
        assert metrics_over([np.ones(2, np.float32)], outputs) == {"x/loss": 1.0}


def test_each_other_thing_is_named():
    class Two(Measure):
        def eval_step(self, batch):
            return self, {"loss": batch.mean(), "a": batch, "b": None}

    data = [np.ones(2, np.float32)]
    with pytest.warns(UserWarning, match="leaves out|give no metrics|cannot be compiled") as said:
        solstice.Trainer().fit(Two(lambda batch: {"a": batch}), data, data)
    first, second = (str(warning.message) for warning in said)
    assert "Two.train_step" in first
    assert "`a`" in first
    assert second == (
        "Two.eval_step returns outputs that give no metrics: `b`, None. Leave it out, or return "
        "a number"
    )


def test_steps_that_are_not_compiled_name_it_too():
    def outputs(batch):
        return {"loss": float(np.asarray(batch).mean()), "each": batch}

    with pytest.warns(UserWarning, match="leaves out|give no metrics|cannot be compiled") as said:
        assert metrics_over([np.ones(2, np.float32)] * 2, outputs) == {"loss": 1.0}
    assert ["cannot be compiled" in str(w.message) for w in said] == [True, False]
    assert "`each`, float32[2]" in str(said[1].message)


def test_what_is_predicted_is_not_for_metrics():
    class Predict(Measure):
        def predict_step(self, batch):
            return {"a/b": batch, "a": {"b": batch}, "none": None}

    (found,) = solstice.Trainer().predict(Predict(None), [np.ones(2, np.float32)])
    np.testing.assert_array_equal(found["a/b"], found["a"]["b"])


def test_values_within_values_have_both_names():
    class Nested(Extra):
        def compute(self):
            return {"a": {"b": self.value, "c": {"d": 1}}, "e": 2}

    computed = metrics_over([np.ones(2, np.float32)], lambda batch: Nested(batch.sum()))
    assert computed == {"a/b": 2.0, "a/c/d": 1, "e": 2}


def test_computed_values_have_names():
    class Bare(Extra):
        def compute(self):
            return self.value

    with pytest.raises(TypeError, match=r"Bare.compute must return values by name"):
        metrics_over([np.ones(2, np.float32)], lambda batch: Bare(batch.sum()))


def test_metrics_are_taken_as_they_are():
    metrics = Largest(jnp.ones(()))
    assert as_metrics(metrics, np.zeros(3)) is metrics


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (np.zeros((5, 2)), 5),
        ((np.zeros((3, 2)), np.zeros(3)), 3),
        ({"scale": np.float32(2), "x": np.zeros((4, 1))}, 4),
        (np.float32(1), 1),
        ((), 1),
    ],
)
def test_a_batch_weighs_as_many_examples_as_its_first_array_is_long(batch, expected):
    assert num_examples(batch) == expected
    assert as_metrics({"x": 1.0}, batch).count.values() == {"count": expected}
