"""Mapped: the metrics of each member of a population."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics

import solstice
from solstice import metrics
from solstice._metrics import Means, as_metrics, may_raise, takes_members, to_host
from solstice.metrics import Mapped, PerMember

MEMBERS, ROWS, CLASSES = 3, 20, 4


def _classification(scores, labels):
    return metrics.ClassificationMetrics(scores, labels, jnp.mean(scores**2), CLASSES, top_k=2)


def _several(scores, labels):
    confusion = metrics.ConfusionMatrix(scores, labels, CLASSES)
    inner = metrics.MetricsCollection(mean=metrics.Mean(scores), confusion=confusion)
    return metrics.WithLoss(inner, scores[:, 0])


def _beside(scores, labels):
    return as_metrics({"loss": scores.mean(), "by": _classification(scores, labels)}, labels)


BUILDS = {
    "classification": _classification,
    "several": _several,
    "beside": _beside,
    "means": lambda scores, labels: as_metrics({"a": scores.mean(), "b": labels.sum()}, labels),
    "regression": lambda scores, labels: metrics.RegressionMetrics(
        scores[:, 0], labels, num_features=2
    ),
    "binary": lambda scores, labels: metrics.BinaryMetrics(scores[:, 0], labels % 2),
    "curves": lambda scores, labels: metrics.BinaryCurves(scores[:, 0], labels % 2),
    "calibration": lambda scores, labels: metrics.CalibrationError(jax.nn.softmax(scores), labels),
    "sum": lambda scores, labels: metrics.Sum(labels),
    "collect": lambda scores, labels: metrics.Collect(scores=scores, labels=labels),
}


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(MEMBERS, ROWS, CLASSES)).astype(np.float32)
    return scores, rng.integers(0, CLASSES, ROWS)


def mapped(build, examples, **settings):
    scores, labels = examples
    return Mapped(jax.vmap(lambda each: build(each, labels))(scores), **settings)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_each_value_is_that_of_the_member_alone_after_merging(build, examples):
    scores, labels = examples
    first, rest = (scores[:, :7], labels[:7]), (scores[:, 7:], labels[7:])
    values = mapped(build, first).merge(mapped(build, rest)).compute()
    for member in range(MEMBERS):
        one, other = (build(each[member], classes) for each, classes in (first, rest))
        alone = to_host(one.merge(other))
        assert values.keys() == alone.keys()
        for name, value in alone.items():
            assert isinstance(values[name], PerMember)
            assert values[name].dtype == np.float64
            assert values[name].shape == (MEMBERS, *np.shape(value))
            np.testing.assert_allclose(values[name][member], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["classification", "regression", "several", "means"])
def test_metrics_of_numpy_arrays_and_no_examples_compute_too(name, examples):
    of_device = mapped(BUILDS[name], examples)
    here = jax.device_get(of_device)
    for key, value in of_device.compute().items():
        np.testing.assert_array_equal(here.compute()[key], value)
    if name != "means":
        alone = BUILDS[name](examples[0][0], examples[1]).empty().compute()
        assert {k: list(v) for k, v in of_device.empty().compute().items() if v.ndim == 1} == {
            k: [float(v)] * MEMBERS for k, v in alone.items() if np.ndim(v) == 0
        }


def _weighted(scores, labels):
    shares = jnp.minimum(jnp.abs(scores[:, 0]), 5.0)  # NaN stays
    inner = metrics.ClassificationMetrics(scores, labels, 0.5, CLASSES, weights=shares)
    two = metrics.BinaryMetrics(scores[:, 0], labels % 2, weights=shares)
    return metrics.MetricsCollection(several=inner, two=two)


def _labels(scores, labels):
    targets = jnp.stack([labels % 2, labels // 2], 1)
    return metrics.MultilabelMetrics(scores[:, :2], targets, mask=scores[:, 3] > 0)


def _tokens(scores, labels):
    return metrics.LanguageModelMetrics(scores, labels, num_bytes=labels + 1)


def _rare(scores, labels):
    targets = jnp.stack([labels % 2, labels // 2, 0 * labels, 0 * labels + 1], 1)
    return rare_metrics.padded_to(ROWS)(scores, targets, labels)


def _ranks(scores, labels):
    return metrics.RankCorrelation(scores[:, 0], labels)


@pytest.mark.parametrize(
    "build",
    [*BUILDS.values(), _weighted, _labels, _tokens, _rare, _ranks],
    ids=[*BUILDS, "weights", "labels", "lm", "rare", "ranks"],
)
@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_all_at_once_is_each_by_itself(build, rows, examples):
    scores, labels = examples[0][:, :rows], np.where(np.arange(rows) == 1, -1, examples[1][:rows])
    scores[0] = np.where(scores[0] > 1, np.nan, scores[0])
    scores[1] = 0.5  # all alike, so some values are undefined
    scores[2] = np.where(scores[2] > 1, np.inf, scores[2])
    each = jax.device_get(mapped(build, (scores, labels)))
    values = each.compute()
    for member in range(MEMBERS):
        alone = to_host(jax.tree.map(lambda x, at=member: x[at], each.metrics))
        for name, value in alone.items():
            np.testing.assert_allclose(values[name][member], value, rtol=1e-12, atol=1e-15)


def test_the_ready_made_ones_are_computed_at_once(examples):
    one_by_one = {
        n for n, build in BUILDS.items() if not takes_members(mapped(build, examples).metrics)
    }
    assert one_by_one == {"curves", "collect"}


class Doubled(metrics.Mean):
    def compute(self):
        return {"mean": 2 * float(super().compute()["mean"])}


def test_a_subclass_with_a_compute_of_its_own_has_promised_nothing():
    each = Mapped(jax.vmap(Doubled)(jnp.array([[1.0, 3.0], [4.0, 6.0]])))
    assert each.compute()["mean"].tolist() == [4, 10]


def test_removed_members_are_nan_at_their_places(examples):
    some = mapped(_several, examples, ids=jnp.array([4, 0, 2]), size=5)
    every = mapped(_several, examples).compute()
    assert len(some) == 3
    for name, values in some.merge(some).compute().items():
        assert values.shape == (5, *every[name].shape[1:])
        assert np.isnan(values[[1, 3]]).all()
        if name == "loss":
            np.testing.assert_allclose(values[[4, 0, 2]], every[name], rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"ids": np.array([2, 0, 1]), "size": 4}])
def test_compute_under_jit_is_that_of_the_host(settings, examples):
    each = mapped(_classification, examples, **settings)
    for name, value in jax.jit(lambda m: m.compute())(each).items():
        np.testing.assert_allclose(value, each.compute()[name], rtol=1e-5, atol=1e-6)


class Curve(solstice.Metrics):
    """A value whose shape and names depend on the numbers."""

    value: jax.Array

    def merge(self, other):
        return Curve(self.value + other.value)

    def compute(self):
        found = {"curve": np.arange(int(self.value)), "inner": {"a": jnp.sqrt(self.value)}}
        return found | ({"even": True, "text": "x"} if self.value % 2 == 0 else {})


def test_shorter_arrays_end_in_nan_and_missing_values_are_nan():
    values = Mapped(Curve(jnp.array([1, 2, 4]))).compute()
    nan = np.nan
    np.testing.assert_array_equal(
        values["curve"], [[0, nan, nan, nan], [0, 1, nan, nan], [0, 1, 2, 3]]
    )
    np.testing.assert_allclose(values["inner/a"], np.sqrt([1, 2, 4]), rtol=1e-6)
    np.testing.assert_array_equal(values["even"], [nan, 1, 1])
    assert list(values["text"][1:]) == ["x", "x"]


def test_it_may_raise_if_the_inner_metrics_may(examples):
    assert not may_raise(mapped(_several, examples))
    assert may_raise(Mapped(Curve(jnp.ones(2))))
    curve = metrics.MetricsCollection(mean=jax.vmap(metrics.Mean)(jnp.ones((2, 3))))
    assert not may_raise(Mapped(curve))


def test_populations_within_a_population_have_an_axis_each(examples):
    scores, labels = examples
    each = jax.vmap(lambda s: Mapped(jax.vmap(lambda e: _classification(e, labels))(s)))
    inner = mapped(_classification, examples).compute()
    outer = Mapped(each(jnp.stack([scores, scores[::-1]]))).compute()
    for name, values in outer.items():
        assert values.shape == (2, MEMBERS)
        np.testing.assert_allclose(values, [inner[name], inner[name][::-1]], rtol=1e-6)


def test_a_value_is_an_array_that_names_its_axis(examples):
    values = mapped(_several, examples).compute()["loss"]
    for same in (copy.deepcopy(values), pickle.loads(pickle.dumps(values)), values.copy()):
        assert isinstance(same, PerMember)
        np.testing.assert_array_equal(same, values)
    for plain in (values + 1, values[:2], values > 0, np.square(values), values[None].mean(0)):
        assert type(plain) is np.ndarray  # its axis 0 need not be the members
    assert type(values[0]) is type(values.mean()) is np.float64


def test_wrong_arguments_are_named(examples):
    with pytest.raises(TypeError, match="metrics must be Metrics, such as"):
        Mapped({"loss": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"members on axis 0.*jax\.vmap"):
        Mapped(metrics.Mean(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"must have the members on axis 0.*\[2\].*\[3\]"):
        Mapped(metrics.MetricsCollection(a=Curve(jnp.ones(2)), b=Curve(jnp.ones(3))))
    with pytest.raises(ValueError, match="must have the members on axis 0"):
        Mapped(Curve(jnp.ones(0)))
    each = Curve(jnp.ones(3))
    with pytest.raises(ValueError, match=r"`Mapped\(metrics, ids=ids, size=16\)`"):
        Mapped(each, ids=[0, 1, 2])
    with pytest.raises(ValueError, match="ids must be a number for each of 3 members"):
        Mapped(each, ids=[0, 1], size=4)
    with pytest.raises(ValueError, match="size must be 3 or more members"):
        Mapped(each, ids=[0, 1, 2], size=2)
    with pytest.raises(ValueError, match="cannot merge Mapped of 3 members and of 2"):
        Mapped(each).merge(Mapped(Curve(jnp.ones(2))))
    with pytest.raises(ValueError, match="cannot merge Mapped of 3 members and Curve"):
        Mapped(each).merge(each)


def test_means_of_no_examples_are_nan():
    each = jax.vmap(lambda x: as_metrics({"loss": x}, np.ones((0, 2))))(jnp.arange(2.0))
    assert isinstance(each, Means)
    assert np.isnan(Mapped(each).compute()["loss"]).all()
