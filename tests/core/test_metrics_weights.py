"""Metrics of examples with weights: as if an example of weight 3 were there three times."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from solstice import metrics

pytestmark = pytest.mark.slow  # numbers that hardly depend on the versions

SIZE = 24


@pytest.fixture(autouse=True)
def quiet():
    """scikit-learn warns of undefined scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def of_classes(rng, num_classes=4):
    scores = rng.normal(size=(SIZE, num_classes)).astype(np.float32)
    labels = rng.integers(-1, num_classes, SIZE).astype(np.int32)
    return scores, labels


def of_two(rng):
    return rng.random(SIZE, np.float32), rng.integers(0, 2, SIZE).astype(np.int32)


def of_numbers(rng):
    targets = rng.normal(size=SIZE).astype(np.float32)
    return (targets + rng.normal(size=SIZE) / 2).astype(np.float32) + 100, targets + 100


def classification(scores, labels, **options):
    losses = jnp.abs(scores[:, 0])
    return metrics.ClassificationMetrics(scores, labels, losses, 4, top_k=2, **options)


def many_classes(scores, labels, **options):
    """More bins than one matrix has columns."""
    return metrics.ConfusionMatrix(labels, (labels * 7) % 40, 40, **options)


def of_labels(rng):
    scores = rng.random((SIZE, 3), np.float32)
    return scores, (scores + rng.random((SIZE, 3)) > 1).astype(np.int32)


def calibration(scores, labels, **options):
    return metrics.CalibrationError(jax.nn.softmax(scores), labels, **options)


def of_texts(rng):
    logits = rng.normal(size=(SIZE, 5, 7)).astype(np.float32)
    return logits, rng.integers(0, 7, (SIZE, 5)).astype(np.int32)


def language(logits, targets, weights=None, mask=None):
    each = [None if w is None else np.repeat(w[:, None], 5, axis=1) for w in (weights, mask)]
    num_bytes = jnp.where(targets == 99, 0, targets + 1)
    options = {"weights": each[0], "mask": each[1]}
    return metrics.LanguageModelMetrics(logits, targets, num_bytes=num_bytes, **options)


def one_number(rng):
    return (rng.normal(size=SIZE).astype(np.float32),)


KINDS = {
    "classification": (of_classes, classification),
    "binary": (of_two, metrics.BinaryMetrics),
    "curves": (of_two, metrics.BinaryCurves),
    "multilabel": (of_labels, metrics.MultilabelMetrics),
    "confusion": (of_classes, partial(metrics.ConfusionMatrix, num_classes=4)),
    "many classes": (of_classes, many_classes),
    "calibration": (of_classes, calibration),
    "regression": (of_numbers, metrics.RegressionMetrics),
    "language": (of_texts, language),
    "ranks": (of_numbers, metrics.RankCorrelation),
    "rare": (lambda rng: rare_metrics.examples(rng, SIZE), rare_metrics.padded_to(SIZE)),
    "sum": (one_number, metrics.Sum),
    "mean": (one_number, metrics.Mean),
}
UNWEIGHTED = {
    "num_out_of_range", "num_nan", "num_infinite", "num_tokens", "num_without_relevant",
}  # fmt: skip
"""Numbers of examples, whatever their weights."""

kinds = pytest.mark.parametrize("kind", KINDS)
with_a_mask = pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"mean"}))


def same(found, expected, tolerance=1e-6, but=UNWEIGHTED):
    assert found.keys() == expected.keys()
    for name in [name for name in found if of_part(name) not in but]:
        assert np.allclose(found[name], expected[name], tolerance, tolerance), (
            name,
            found[name],
            expected[name],
        )


def of_part(name):
    """The name of a value of a collection within its part."""
    return name.rpartition(".")[2]


def repetitions(rng):
    """Whole weights with the sum of ones, so that all repeated data have one shape."""
    return rng.multinomial(SIZE, np.full(SIZE, 1 / SIZE)).astype(np.float32)


@kinds
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), cut=st.sampled_from([1, 9]))
def test_a_weight_is_a_number_of_repetitions(kind, seed, cut):
    rng = np.random.default_rng(seed)
    make, build = KINDS[kind]
    data, weights = make(rng), repetitions(rng)
    rows = np.arange(SIZE).repeat(weights.astype(int))
    parts = [
        build(*(x[part] for x in data), weights=weights[part])
        for part in (slice(cut), slice(cut, None))
    ]
    repeated = build(*(x[rows] for x in data)).compute()
    # The perplexity has three times the relative error of its logarithm.
    same(build(*data, weights=weights).compute(), repeated, 3e-6)
    same(parts[0].merge(parts[1]).compute(), repeated, 3e-6)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"confusion", "many classes", "sum"}))
def test_values_do_not_depend_on_the_scale_of_weights(kind):
    rng = np.random.default_rng(0)
    make, build = KINDS[kind]
    data, weights = make(rng), rng.random(SIZE, np.float32) + 0.1
    tiny = build(*data, weights=weights * 2.0**-40)
    same(tiny.compute(), build(*data, weights=weights).compute())
    same(tiny.merge(tiny).compute(), tiny.compute())


@with_a_mask
def test_a_weight_of_0_is_a_mask(kind):
    rng = np.random.default_rng(1)
    make, build = KINDS[kind]
    data, weights = make(rng), repetitions(rng)
    assert (weights == 0).any()
    spoilt = [np.where(spread(weights, x) == 0, bad(x), x) for x in data]
    found, kept = build(*spoilt, weights=weights), weights > 0
    expected = build(*(x[kept] for x in data), weights=weights[kept])
    same(found.compute(), expected.compute(), but=())
    masked = build(*spoilt, mask=kept, weights=np.where(kept, weights, np.nan))
    same(masked.compute(), found.compute(), but=())
    none = build(*spoilt, weights=np.zeros(SIZE, np.float32))
    for merged in (none.merge(found), found.merge(none)):
        same(merged.compute(), found.compute(), but=())


def spread(weights, like):
    return weights.reshape(-1, *[1] * (like.ndim - 1))


def bad(x):
    return np.array(np.nan if x.dtype.kind == "f" else 99, x.dtype)


@with_a_mask
def test_a_boolean_weight_is_exactly_a_mask(kind):
    rng = np.random.default_rng(2)
    make, build = KINDS[kind]
    data, kept = make(rng), rng.random(SIZE) > 0.5
    one, other = build(*data, weights=kept), build(*data, mask=kept)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), one, other))


@kinds
@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_an_impossible_weight_spoils_the_values(kind, weight):
    rng = np.random.default_rng(3)
    make, build = KINDS[kind]
    weights = np.ones(SIZE, np.float32)
    weights[5] = weight
    found = build(*make(rng), weights=weights).compute()
    names = {"accuracy", "f1_macro", "roc_auc", "mse", "r2", "confusion_matrix", "loss", "mean"}
    names |= {"sum", "expected_calibration_error", "spearman", "f2_samples", "specificity_macro"}
    names |= {"roc_auc_macro", "average_precision_macro", "linear_kappa", "exact_match", "mrr"}
    checked = [name for name in found if of_part(name) in names]
    assert len(checked) > (10 if kind == "rare" else 0)
    for name in checked:
        # Without a denominator, an infinite sum is a sum.
        assert not np.isfinite(found[name]).any() if name == "sum" else np.isnan(found[name]).any()


@with_a_mask
def test_weights_of_another_shape_are_refused_with_code(kind):
    make, build = KINDS[kind]
    data = make(np.random.default_rng(0))
    if kind == "language":
        build = metrics.LanguageModelMetrics
    else:
        with pytest.raises(ValueError, match=r"weights must have the sh.*`weights\[:, 0\]`"):
            build(*data, weights=np.ones((SIZE, 1)))
    with pytest.raises(ValueError, match=r"`jnp.broadcast_to\(weights, \(24,.*\)`"):
        build(*data, weights=2.0)
    with pytest.raises(TypeError, match="weights"):
        build(*data, weights=["a"] * SIZE)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"mean", "sum"}))
def test_metrics_with_and_without_weights_do_not_merge(kind):
    make, build = KINDS[kind]
    data = make(np.random.default_rng(0))
    plain, weighted = build(*data), build(*data, weights=np.ones(SIZE))
    for one, other in ((plain, weighted), (weighted, plain)):
        with pytest.raises(ValueError, match=r"with weights and without.*weights=jnp.ones\(n\)"):
            one.merge(other)


@kinds
def test_a_thousand_rows_of_weights_are_one_call(kind):
    rng = np.random.default_rng(4)
    make, build = KINDS[kind]
    data, rows = make(rng), rng.poisson(1, (50, SIZE)).astype(np.float32)
    every = jax.jit(jax.vmap(lambda weights: build(*data, weights=weights)))(rows)
    for index in (0, 49):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], every)
        same(one.compute(), build(*data, weights=rows[index]).compute(), but=())


@kinds
@pytest.mark.parametrize("axis_type", [None, jax.sharding.AxisType.Explicit])
def test_weights_may_be_sharded(kind, axis_type):
    rng = np.random.default_rng(5)
    make, build = KINDS[kind]
    data, weights = make(rng), repetitions(rng)
    options = {} if axis_type is None else {"axis_types": (axis_type,)}
    mesh = jax.make_mesh((2,), ("data",), **options)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed, shares = jax.device_put((data, weights), rows)
    found = jax.jit(lambda data, weights: build(*data, weights=weights))(placed, shares)
    same(found.compute(), build(*data, weights=weights).compute(), but=())


def weighted(rng, num_classes=4):
    scores = rng.normal(size=(SIZE, num_classes)).astype(np.float32)
    return scores, rng.integers(0, num_classes, SIZE), rng.random(SIZE)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_classification_is_that_of_scikit_learn(seed):
    scores, labels, weights = weighted(np.random.default_rng(seed))
    preds = scores.argmax(1)
    found = metrics.ClassificationMetrics(scores, labels, 0.0, 4, weights=weights).compute()
    some = {"sample_weight": weights}
    f1 = partial(sk.f1_score, labels, preds, labels=range(4), zero_division=0, **some)
    expected = {
        "accuracy": sk.accuracy_score(labels, preds, **some),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, preds, **some),
        "cohen_kappa": sk.cohen_kappa_score(labels, preds, **some),
        "matthews_corrcoef": sk.matthews_corrcoef(labels, preds, **some),
        "f1_macro": f1(average="macro"),
        "f1_weighted": f1(average="weighted"),
        **{f"f1_class_{i}": value for i, value in enumerate(f1(average=None))},
    }
    same({name: found[name] for name in expected}, expected)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_binary_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 64, SIZE) / 64, rng.integers(0, 2, SIZE)
    labels[:2] = 0, 1
    some = {"sample_weight": rng.random(SIZE)}
    preds = scores >= 0.5
    logits = scores * 8 - 4  # each in a bin of its own
    found = metrics.BinaryMetrics(
        logits, labels, weights=some["sample_weight"], from_logits=True
    ).compute()
    expected = {
        "accuracy": sk.accuracy_score(labels, preds, **some),
        "precision": sk.precision_score(labels, preds, zero_division=0, **some),
        "recall": sk.recall_score(labels, preds, **some),
        "f1": sk.f1_score(labels, preds, **some),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, preds, **some),
        "matthews_corrcoef": sk.matthews_corrcoef(labels, preds, **some),
        "roc_auc": sk.roc_auc_score(labels, scores, **some),
        "average_precision": sk.average_precision_score(labels, scores, **some),
    }
    same({name: found[name] for name in expected}, expected)
    curves = metrics.BinaryCurves(scores, labels, weights=some["sample_weight"])
    areas = curves.compute()
    for name in ("roc_auc", "average_precision"):
        assert areas[name] == pytest.approx(expected[name])
    fpr, tpr, _ = curves.roc_curve()
    assert sk.auc(fpr, tpr) == pytest.approx(expected["roc_auc"])


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_regression_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    preds, targets = of_numbers(rng)
    weights = rng.random(SIZE)
    found = metrics.RegressionMetrics(preds, targets, weights=weights).compute()
    wide, some = (targets.astype(float), preds.astype(float)), {"sample_weight": weights}
    spread = np.cov(*wide, aweights=weights)
    expected = {
        "mse": sk.mean_squared_error(*wide, **some),
        "mae": sk.mean_absolute_error(*wide, **some),
        "r2": sk.r2_score(*wide, **some),
        "explained_variance": sk.explained_variance_score(*wide, **some),
        "pearson": spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1]),
    }
    same({name: found[name] for name in expected}, expected, 1e-5)


@pytest.mark.parametrize("right", [True, False])
def test_a_single_class_has_no_correlation_to_the_last_digit(right):
    """Weights whose sum depends on the order of summation."""
    rng = np.random.default_rng(6)
    weights, ones = rng.random(997, np.float32), np.ones(997, np.int32)
    labels = ones if right else (rng.random(997) > 0.5).astype(np.int32)
    of_classes = metrics.ClassificationMetrics(ones, labels, 0.0, 3, weights=weights).compute()
    of_two = metrics.BinaryMetrics(ones, labels, weights=weights).compute()
    for found in (of_classes, of_two):
        assert found["matthews_corrcoef"] == 0
        assert not right or found["accuracy"] == pytest.approx(1, abs=1e-6)
    assert abs(of_classes["cohen_kappa"]) < 1e-6


def test_elements_have_the_weight_of_their_row_or_their_own():
    rng = np.random.default_rng(7)
    preds, targets = rng.normal(size=(2, SIZE, 3)).astype(np.float32)
    weights = repetitions(rng)
    of_rows = metrics.RegressionMetrics(preds, targets, weights=weights).compute()
    each = np.repeat(weights[:, None], 3, axis=1)
    same(of_rows, metrics.RegressionMetrics(preds, targets, weights=each).compute(), but=())
    rows = np.arange(SIZE).repeat(weights.astype(int))
    same(of_rows, metrics.RegressionMetrics(preds[rows], targets[rows]).compute())


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_rare_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels, classes = rare_metrics.examples(rng, SIZE)
    classes[:4] = range(4)
    weights = rng.random(SIZE)
    found = rare_metrics.collected(logits, labels, classes, np.ones(SIZE, bool), weights).compute()
    preds, guessed, some = logits.argmax(1), logits >= 0, {"sample_weight": weights}
    hot = np.eye(4)[classes]
    expected = {}
    for average in ("micro", "macro", "weighted"):
        area, mean = partial(sk.roc_auc_score, average=average), sk.average_precision_score
        expected[f"areas_of_classes.roc_auc_{average}"] = area(hot, logits, **some)
        expected[f"areas_of_labels.average_precision_{average}"] = mean(
            labels, logits, average=average, **some
        )
    for name, average in (("labels.f2_samples", "samples"), ("labels.f2_macro", "macro")):
        expected[name] = sk.fbeta_score(
            labels, guessed, beta=2, average=average, zero_division=0, **some
        )
    for kind in ("linear", "quadratic"):
        expected[f"kappa.{kind}_kappa"] = sk.cohen_kappa_score(classes, preds, weights=kind, **some)
    matrices = sk.multilabel_confusion_matrix(classes, preds, labels=range(4), **some)
    expected["classes.specificity_macro"] = np.mean(matrices[:, 0, 0] / matrices[:, 0].sum(1))
    expected["found.ndcg_at_2"] = sk.ndcg_score(labels, logits - labels / 64, k=2, **some)
    same({name: found[name] for name in expected}, expected)


def test_adjusted_r2_has_a_weight_for_a_number():
    rng = np.random.default_rng(8)
    preds, targets = of_numbers(rng)
    weights = repetitions(rng)
    found = metrics.RegressionMetrics(preds, targets, weights=weights, num_features=3).compute()
    spread = 1 - sk.r2_score(targets.astype(float), preds.astype(float), sample_weight=weights)
    expected = 1 - spread * (SIZE - 1) / (SIZE - 4)
    assert found["adjusted_r2"] == pytest.approx(expected, rel=1e-5)
    for features, defined in ((SIZE - 2, True), (SIZE - 1, False), (SIZE, False)):
        found = metrics.RegressionMetrics(preds, targets, num_features=features).compute()
        assert (found["adjusted_r2"] != 0) == defined
