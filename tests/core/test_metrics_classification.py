"""ClassificationMetrics against scikit-learn, however the examples are cut, merged or compiled."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    cohen_kappa_score,
    matthews_corrcoef,
)

from solstice import ClassificationMetrics

make = jax.jit(ClassificationMetrics, static_argnums=3)
merge = jax.jit(lambda a, b: a.merge(b))


def by_sklearn(preds, labels, num_classes):
    """What scikit-learn says, with values out of range as two classes that never agree."""
    preds = np.where((preds >= 0) & (preds < num_classes), preds, num_classes)
    inside = (labels >= 0) & (labels < num_classes)
    labels = np.where(inside, labels, num_classes + 1)
    report = classification_report(
        labels, preds, labels=range(num_classes), zero_division=0, output_dict=True
    )
    expected = {"accuracy": accuracy_score(labels, preds), "num_out_of_range": np.sum(~inside)}
    expected["num_nan"] = 0
    labelled = np.unique(labels[inside])
    recalls = [np.mean(preds[labels == c] == c) for c in labelled]
    expected["balanced_accuracy"] = np.mean(recalls) if recalls else 0.0
    if inside.all():  # scikit-learn has one class for each value, and we one for all out of range
        with warnings.catch_warnings():  # of what is not defined, where we give 0
            warnings.simplefilter("ignore")
            expected["cohen_kappa"] = np.nan_to_num(cohen_kappa_score(labels, preds))
            expected["matthews_corrcoef"] = matthews_corrcoef(labels, preds)
    for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        expected[f"{ours}_macro"] = report["macro avg"][theirs]
        expected[f"{ours}_weighted"] = report["weighted avg"][theirs]
        for c in range(num_classes):
            expected[f"{ours}_class_{c}"] = report[str(c)][theirs]
    return expected


def assert_scores(metrics, expected):
    computed = dict(metrics.compute())
    computed.pop("loss")
    assert computed.keys() == expected.keys() | {"cohen_kappa", "matthews_corrcoef"}
    for name, value in expected.items():
        np.testing.assert_allclose(computed[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


def assert_same(one, other):
    """Equal counts, bit for bit, and nearly equal sums of the loss."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
    for a, b in zip(one.counts.values().values(), other.counts.values().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    a, b = one.loss.values()["loss_sum"], other.loss.values()["loss_sum"]
    np.testing.assert_allclose(a, b, rtol=1e-5)


def merged_anyhow(parts, rng):
    """The merge of all parts, in a random order and association."""
    parts = list(parts)
    while len(parts) > 1:
        a, b = rng.choice(len(parts), size=2, replace=False)
        both = merge(parts[a], parts[b])
        parts = [part for i, part in enumerate(parts) if i not in (a, b)] + [both]
    return parts[0]


def draw_examples(rng, size, num_classes, out_of_range):
    """Labels and predictions that leave out some classes, each its own."""

    def draw():
        low, high = (-2, num_classes + 3) if out_of_range else (0, num_classes)
        some = rng.choice(np.arange(low, high), size=rng.integers(1, high - low + 1))
        return rng.choice(some, size=size).astype(np.int32)

    return draw(), draw(), rng.uniform(0, 3, size=size).astype(np.float32)


cases = given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.sampled_from([1, 2, 3, 7]),
    sizes=st.lists(st.sampled_from([1, 3, 8]), min_size=1, max_size=4),
    out_of_range=st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@cases
def test_merged_batches_score_as_scikit_learn_scores_all_examples(
    seed, num_classes, sizes, out_of_range
):
    rng = np.random.default_rng(seed)
    preds, labels, losses = draw_examples(rng, sum(sizes), num_classes, out_of_range)
    cuts = np.cumsum(sizes)[:-1]
    parts = [
        make(p, t, loss, num_classes)
        for p, t, loss in zip(
            *(np.split(values, cuts) for values in (preds, labels, losses)), strict=True
        )
    ]
    total = merged_anyhow(parts, rng)
    assert_scores(total, by_sklearn(preds, labels, num_classes))
    np.testing.assert_allclose(total.compute()["loss"], losses.mean(), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@cases
def test_merged_batches_equal_one_big_batch(seed, num_classes, sizes, out_of_range):
    rng = np.random.default_rng(seed)
    whole = draw_examples(rng, sum(sizes), num_classes, out_of_range)
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(*(np.split(values, cuts) for values in whole), strict=True)
    total = merged_anyhow([make(*part, num_classes) for part in parts], rng)
    assert_same(total, make(*whole, num_classes))


@pytest.mark.parametrize("num_classes", [128, 129, 300])
def test_many_classes_score_as_scikit_learn_does(num_classes):
    rng = np.random.default_rng(num_classes)
    preds, labels, losses = draw_examples(rng, 400, num_classes, out_of_range=True)
    metrics = make(preds, labels, losses, num_classes)
    assert_scores(metrics, by_sklearn(preds, labels, num_classes))


def test_few_and_many_classes_count_alike():
    rng = np.random.default_rng(0)
    preds, labels, losses = draw_examples(rng, 400, 100, out_of_range=False)
    few, many = make(preds, labels, losses, 100), make(preds, labels, losses, 1000)
    for name in ("correct", "predicted", "labelled"):
        a, b = few.counts.values()[name], many.counts.values()[name]
        np.testing.assert_array_equal(a, b[:100])
        np.testing.assert_array_equal(b[100:], 0)
    assert few.compute()["f1_weighted"] == pytest.approx(many.compute()["f1_weighted"], rel=1e-6)


def test_a_perfect_classifier_with_an_absent_class_has_no_nan():
    metrics = ClassificationMetrics(jnp.array([0, 1]), jnp.array([0, 1]), 0.0, num_classes=3)
    computed = metrics.compute()
    assert computed["accuracy"] == computed["f1_weighted"] == 1
    assert computed["f1_macro"] == pytest.approx(2 / 3)
    assert computed["recall_class_2"] == 0


def test_accuracy_is_no_mean_over_one_against_the_rest():
    labels = np.arange(10, dtype=np.int32)
    metrics = ClassificationMetrics((labels + (labels > 0)) % 10, labels, 0.0, 10)
    assert metrics.compute()["accuracy"] == pytest.approx(0.1)


def test_a_batch_whose_labels_are_all_out_of_range_scores_zero():
    computed = ClassificationMetrics(jnp.array([0, 9]), jnp.array([-1, 9]), 1.0, 2).compute()
    assert computed["num_out_of_range"] == 2
    assert computed["accuracy"] == computed["f1_weighted"] == computed["precision_macro"] == 0


def test_scores_count_as_their_maximum():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(8, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=8).astype(np.int32)
    assert_same(make(scores, labels, 1.0, 3), make(scores.argmax(-1), labels, 1.0, 3))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.float16, np.float32, jnp.bfloat16])
def test_predictions_may_be_of_any_real_dtype(dtype):
    preds, labels = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1], np.int32)
    metrics = make(jnp.asarray(preds, dtype), labels, 0.5, 2)
    assert_scores(metrics, by_sklearn(preds, labels, 2))


@pytest.mark.parametrize("pred", [0.5, 1.999, np.nan, np.inf, -np.inf, -0.25])
def test_a_prediction_that_is_no_class_is_wrong(pred):
    preds = np.array([pred, 1.0], np.float32)
    computed = make(preds, np.array([1, 1], np.int32), 0.0, 2).compute()
    assert computed["accuracy"] == 0.5
    assert computed["recall_class_1"] == 0.5
    assert computed["precision_class_1"] == 1
    assert computed["recall_class_0"] == 0
    assert computed["num_out_of_range"] == 0


@pytest.mark.parametrize(("dtype", "num_classes"), [(np.uint8, 300), (np.int8, 200)])
def test_labels_of_a_small_dtype_work_with_more_classes_than_it_can_hold(dtype, num_classes):
    labels = np.array([0, 3, 100], dtype)
    computed = ClassificationMetrics(labels, labels, 0.0, num_classes).compute()
    assert computed["accuracy"] == 1


def test_a_scalar_loss_is_weighted_by_the_examples_of_its_batch():
    one = make(np.zeros(1, np.int32), np.zeros(1, np.int32), 10.0, 2)
    three = make(np.zeros(3, np.int32), np.zeros(3, np.int32), 2.0, 2)
    assert one.merge(three).compute()["loss"] == pytest.approx((10 + 3 * 2) / 4)


def test_a_scalar_loss_is_the_mean_of_per_example_losses():
    labels, losses = np.zeros(3, np.int32), np.array([1, 2, 6], np.float32)
    assert_same(make(labels, labels, losses, 2), make(labels, labels, losses.mean(), 2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_half_precision_loss_is_summed_in_float32(dtype):
    part = make(np.zeros(8, np.int32), np.zeros(8, np.int32), jnp.asarray(1.0, dtype), 2)
    total = part
    for _ in range(99):
        total = merge(total, part)
    assert {leaf.dtype for leaf in jax.tree.leaves(total.loss)} == {jnp.dtype("float32")}
    assert total.loss.values() == {"loss_sum": 800}


@pytest.mark.parametrize("loss", [np.float32(np.nan), np.array([1, np.nan, 1], np.float32)])
def test_a_nan_loss_spoils_the_loss_alone(loss):
    rng = np.random.default_rng(2)
    preds, labels, losses = draw_examples(rng, 6, 3, out_of_range=True)
    bad = make(preds[:3], labels[:3], loss, 3)
    total = merge(bad, make(preds[3:], labels[3:], losses[3:], 3))
    assert np.isnan(total.compute()["loss"])
    assert_scores(total, by_sklearn(preds, labels, 3))


def test_counts_are_exact_where_32_bits_are_not():
    part = make(np.zeros(1, np.int32), np.zeros(1, np.int32), 0.0, 2)
    total = part
    for _ in range(40):
        total = merge(total, total)
    counts = merge(total, part).counts.values()
    assert counts["count"] == counts["correct"][0] == 2**40 + 1
    assert merge(total, part).compute()["accuracy"] == 1
    assert type(counts["count"]) is int


def test_it_is_a_carry_of_scan():
    rng = np.random.default_rng(3)
    preds, labels, losses = (x.reshape(4, 3) for x in draw_examples(rng, 12, 3, out_of_range=True))

    @jax.jit
    def scanned(preds, labels, losses):
        def body(total, batch):
            return total.merge(ClassificationMetrics(*batch, 3)), None

        first = ClassificationMetrics(preds[0], labels[0], losses[0], 3)
        return jax.lax.scan(body, first, (preds[1:], labels[1:], losses[1:]))[0]

    total = scanned(preds, labels, losses)
    assert_same(total, make(preds.ravel(), labels.ravel(), losses.ravel(), 3))


def test_it_computes_under_jit_what_it_computes_outside():
    rng = np.random.default_rng(4)
    metrics = ClassificationMetrics(*draw_examples(rng, 8, 3, out_of_range=True), 3)
    inside = jax.jit(lambda m: m.compute())(metrics)
    outside = metrics.compute()
    assert inside.keys() == outside.keys()
    for name, value in outside.items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_no_classes_are_refused(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be 1 or more; it is {num_classes}"):
        ClassificationMetrics(jnp.zeros(2), jnp.zeros(2), 0.0, num_classes)


@pytest.mark.parametrize(
    ("preds", "targets"), [((3,), (2,)), ((2, 4), (2,)), ((2, 3), (2, 3)), ((), ())]
)
def test_shapes_that_do_not_match_are_refused(preds, targets):
    with pytest.raises(ValueError, match=r"preds of shape \[n\] or \[n, 3\] and targets") as error:
        ClassificationMetrics(jnp.zeros(preds), jnp.zeros(targets, jnp.int32), 0.0, 3)
    assert f"{list(preds)} and {list(targets)}" in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1)])
def test_a_loss_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"loss must be a scalar.*shape \[2\]; it is of shape"):
        ClassificationMetrics(jnp.zeros(2), jnp.zeros(2, jnp.int32), jnp.zeros(shape), 3)


def test_metrics_of_different_classes_do_not_merge():
    def metrics(num_classes):
        return ClassificationMetrics(jnp.zeros(2), jnp.zeros(2, jnp.int32), 0.0, num_classes)

    with pytest.raises(ValueError, match=r"cannot merge .* of num_classes=2 and of num_classes=3"):
        metrics(2).merge(metrics(3))
