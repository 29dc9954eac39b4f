"""Ready-made metrics at their edges: what is not defined, what is bad, what is masked, in a run."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics
import sklearn.metrics as sk

import solstice
from solstice import metrics

RNG = np.random.default_rng(0)
NAN = np.float32("nan")


def binary_by_sklearn(scores: Any, labels: Any) -> dict[str, float]:
    preds = scores >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two = 0 < labels.sum() < len(labels)
        return {
            "accuracy": sk.accuracy_score(labels, preds),
            "precision": sk.precision_score(labels, preds, zero_division=0),
            "recall": sk.recall_score(labels, preds, zero_division=0),
            "f1": sk.f1_score(labels, preds, zero_division=0),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, preds),
            "matthews_corrcoef": sk.matthews_corrcoef(labels, preds),
            "roc_auc": sk.roc_auc_score(labels, scores) if two else 0.0,
            "average_precision": sk.average_precision_score(labels, scores) if two else None,
        }


DEGENERATE = {
    "no positives": ([0.1, 0.9], [0, 0]),
    "no negatives": ([0.1, 0.9], [1, 1]),
    "one example": ([0.3], [1]),
    "all scores equal": ([0.5, 0.5, 0.5], [0, 1, 1]),
    "perfect": ([0.0, 1.0], [0, 1]),
    "always wrong": ([1.0, 0.0], [0, 1]),
}


@pytest.mark.parametrize(("scores", "labels"), DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("cls", [metrics.BinaryMetrics, metrics.BinaryCurves])
def test_degenerate_binary_examples_score_as_scikit_learn_has_them(cls, scores, labels):
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels)
    found = cls(scores, labels).compute()
    for name, value in binary_by_sklearn(scores, labels).items():
        if name in found and value is not None:
            assert found[name] == pytest.approx(value, abs=1e-7), name


def test_the_curves_are_those_of_scikit_learn():
    scores = RNG.integers(0, 9, 60).astype(np.float32)
    labels = RNG.integers(0, 2, 60)
    curves = metrics.BinaryCurves(scores, labels)
    expected = sk.roc_curve(labels, scores, drop_intermediate=False)
    for mine, theirs in zip(curves.roc_curve(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    for mine, theirs in zip(
        curves.precision_recall_curve(), (precision[:-1], recall[:-1], thresholds), strict=True
    ):
        np.testing.assert_allclose(mine[::-1], theirs, rtol=1e-12)


def test_nan_is_counted_and_told():
    scores = jnp.asarray([0.9, NAN, 0.1])
    labels = jnp.asarray([1, 1, 0])
    binary = metrics.BinaryMetrics(scores, labels).compute()
    assert (binary["num_nan"], binary["accuracy"]) == (1, pytest.approx(2 / 3))
    assert metrics.BinaryCurves(scores, labels).compute()["num_nan"] == 1
    regression = metrics.RegressionMetrics(scores, labels.astype(jnp.float32)).compute()
    assert regression["num_nan"] == 1
    assert regression["mae"] == pytest.approx(0.1)
    several = metrics.MultilabelMetrics(scores[:, None], labels[:, None]).compute()
    assert (several["num_nan"], several["accuracy"]) == (1, pytest.approx(2 / 3))
    logits = jnp.asarray([[0.0, 1.0], [NAN, 1.0]])
    classes = metrics.ClassificationMetrics(logits, jnp.asarray([1, 1]), 0.5, 2).compute()
    assert (classes["num_nan"], classes["accuracy"]) == (1, 0.5)
    calibration = metrics.CalibrationError(logits, jnp.asarray([1, 1])).compute()
    assert calibration["num_nan"] == 1


def test_what_is_masked_may_be_anything():
    """Padding is often NaN, or a label that is no class."""
    mask = jnp.asarray([True, False])
    classes = metrics.ClassificationMetrics(
        jnp.asarray([[0.0, 1.0], [NAN, NAN]]), jnp.asarray([1, 99]), jnp.asarray([0.5, NAN]), 2,
        mask=mask, top_k=1,
    )  # fmt: skip
    found = classes.compute()
    assert (found["loss"], found["accuracy"], found["top_1_accuracy"]) == (0.5, 1, 1)
    assert (found["num_nan"], found["num_out_of_range"]) == (0, 0)
    language = metrics.LanguageModelMetrics(
        jnp.asarray([[0.0, 0.0], [NAN, NAN]]), jnp.asarray([1, -100]), mask=mask
    )
    assert language.compute()["perplexity"] == pytest.approx(2)
    assert metrics.Mean(jnp.asarray([2.0, NAN]), mask).compute() == {"mean": 2}
    assert metrics.Sum(jnp.asarray([2.0, NAN]), mask).compute() == {"sum": 2}
    regression = metrics.RegressionMetrics(
        jnp.asarray([[1.0, 2.0], [NAN, NAN]]), jnp.zeros((2, 2)), mask=mask
    )
    assert regression.compute()["mse"] == pytest.approx(2.5)


def test_targets_that_are_no_tokens_are_left_out_and_told():
    found = metrics.LanguageModelMetrics(jnp.zeros((3, 4)), jnp.asarray([0, -100, 4])).compute()
    assert (found["num_tokens"], found["num_out_of_range"]) == (1, 2)
    assert found["loss"] == pytest.approx(np.log(4))


def test_a_constant_is_explained_wholly_or_not_at_all():
    ones = jnp.ones(3)
    assert metrics.RegressionMetrics(ones, ones).compute()["r2"] == 1
    off = metrics.RegressionMetrics(2 * ones, ones).compute()
    assert (off["r2"], off["explained_variance"], off["pearson"]) == (0, 1, 0)


def test_a_tie_in_the_scores_is_no_hit_of_top_k():
    found = metrics.ClassificationMetrics(jnp.zeros((1, 3)), jnp.asarray([0]), 0.0, 3, top_k=2)
    assert found.compute()["top_2_accuracy"] == 0


BAD: dict[str, tuple[Any, str]] = {
    "mask": (
        lambda: metrics.ClassificationMetrics(
            jnp.zeros(3), jnp.zeros(3, int), 0.0, 2, mask=jnp.ones(2)
        ),
        r"mask must have the shape \[3\].*it has \[2\]",
    ),
    "top_k": (
        lambda: metrics.ClassificationMetrics(
            jnp.zeros((3, 2)), jnp.zeros(3, int), 0.0, 2, top_k=3
        ),
        "top_k must be between 1 and 2; it is 3",
    ),
    "top_k of classes": (
        lambda: metrics.ClassificationMetrics(jnp.zeros(3), jnp.zeros(3, int), 0.0, 2, top_k=1),
        r"top_k needs a score for each class, of shape \[n, 2\]",
    ),
    "binary": (
        lambda: metrics.BinaryMetrics(jnp.zeros((3, 1)), jnp.zeros(3)),
        r"expected scores and targets of shape \[n\]; they are of shape \[3, 1\] and \[3\]",
    ),
    "bins": (lambda: metrics.BinaryMetrics(jnp.zeros(3), jnp.zeros(3), num_bins=0), "num_bins"),
    "multilabel": (lambda: metrics.MultilabelMetrics(jnp.zeros(3), jnp.zeros(3)), "num_labels"),
    "no labels": (
        lambda: metrics.MultilabelMetrics(jnp.zeros((3, 0)), jnp.zeros((3, 0))),
        r"\[n, num_labels\]; they are of shape \[3, 0\]",
    ),
    "regression": (
        lambda: metrics.RegressionMetrics(jnp.zeros((3, 1)), jnp.zeros(3)),
        r"the same shape; they are \[3, 1\] and \[3\]. Write `preds.squeeze",
    ),
    "language": (
        lambda: metrics.LanguageModelMetrics(jnp.zeros((3, 4)), jnp.zeros(4, int)),
        r"logits of shape \[..., vocabulary\]",
    ),
    "weights": (lambda: metrics.Mean(jnp.zeros(3), jnp.zeros(2)), "weights must be"),
    "collect": (lambda: metrics.Collect(a=jnp.zeros(3), b=jnp.zeros(2)), "the same length"),
    "collect nothing": (lambda: metrics.Collect(), "Collect takes arrays by name"),
    "confusion": (lambda: metrics.ConfusionMatrix(jnp.zeros(3), jnp.zeros(2), 2), "num_classes"),
    "calibration": (lambda: metrics.CalibrationError(jnp.zeros(3), jnp.zeros(3)), "probabilities"),
    "thresholds": (
        lambda: metrics.BinaryMetrics(jnp.zeros(3), jnp.zeros(3)).merge(
            metrics.BinaryMetrics(jnp.zeros(3), jnp.zeros(3), threshold=0.7)
        ),
        "threshold=0.5 and of threshold=0.7: make both alike",
    ),
    "classes": (
        lambda: metrics.Mean(1.0).merge(metrics.Sum(1.0)),
        "cannot merge Mean and Sum",
    ),
    "collections": (
        lambda: metrics.MetricsCollection(a=metrics.Mean(1.0)).merge(
            metrics.MetricsCollection(b=metrics.Mean(1.0))
        ),
        "names",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_told(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_of_a_collection_is_a_metric():
    wrong: Any = 3.0
    with pytest.raises(TypeError, match=r"loss must be Metrics.*takes metrics by name.*3.0"):
        metrics.MetricsCollection(loss=wrong)


def test_they_merge_over_a_run_whatever_the_batches():
    """Growing and fixed metrics together, through the Trainer, with a partial last batch."""

    class Scores(solstice.Experiment):
        steps: Any

        def train_step(self, batch: Any) -> Any:
            raise NotImplementedError

        def eval_step(self, batch: Any) -> Any:
            scores, labels = batch
            return self, metrics.MetricsCollection(
                fixed=metrics.BinaryMetrics(scores, labels),
                exact=metrics.BinaryCurves(scores, labels),
                mean=metrics.Mean(scores),
            )

    scores = (RNG.integers(0, 64, 50) / 64).astype(np.float32)
    labels = RNG.integers(0, 2, 50).astype(np.int32)
    data = solstice.data.batches((scores, labels), 8)
    found = solstice.Trainer().test(Scores(jnp.zeros(())), data)
    expected = sk.roc_auc_score(labels, scores)
    assert found["fixed.roc_auc"] == pytest.approx(expected)
    assert found["exact.roc_auc"] == pytest.approx(expected)
    assert found["mean"] == pytest.approx(scores.mean())


def test_compute_works_while_jax_traces():
    scores, labels = jnp.asarray([0.1, 0.9, 0.6]), jnp.asarray([0, 1, 0])
    for made in (
        metrics.BinaryMetrics(scores, labels),
        metrics.MultilabelMetrics(scores[:, None], labels[:, None]),
        metrics.RegressionMetrics(scores, labels.astype(jnp.float32)),
        metrics.LanguageModelMetrics(jnp.zeros((3, 4)), labels, num_bytes=3),
        metrics.CalibrationError(jnp.stack([1 - scores, scores], 1), labels),
        metrics.ConfusionMatrix(labels, labels, 2),
        rare_metrics.collected(
            *rare_metrics.examples(np.random.default_rng(1), 9), np.arange(9) < 7
        ),
        metrics.Mean(scores),
        metrics.Sum(labels),
    ):
        inside = jax.jit(lambda m: m.compute())(made)
        for name, value in made.compute().items():
            np.testing.assert_allclose(inside[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_diverged_regression_does_not_look_perfect():
    for preds in ([np.inf, 1.0], [1.0, -np.inf], [3e38, -3e38], [1e20, -1e20]):
        found = metrics.RegressionMetrics(jnp.asarray(preds), jnp.zeros(2)).compute()
        assert not found["r2"] > 0, preds
        assert not np.isfinite(found["mse"]), preds
    assert metrics.RegressionMetrics(jnp.zeros(0), jnp.zeros(0)).compute()["r2"] == 0


def test_bytes_are_tokens_and_classes():
    """256 and 300 are no numbers of 8 bits."""
    tokens = jnp.asarray([0, 255], jnp.uint8)
    found = metrics.LanguageModelMetrics(jnp.zeros((2, 256)), tokens).compute()
    assert (found["num_tokens"], found["bits_per_token"]) == (2, pytest.approx(8))
    matrix = metrics.ConfusionMatrix(tokens, tokens, 300).compute()["confusion_matrix"]
    assert matrix[255, 255] == 1
    assert metrics.CalibrationError(jnp.eye(2), jnp.asarray([0, 1], jnp.uint8)).compute()


def test_what_is_no_class_is_in_no_cell_of_the_matrix():
    for preds in (jnp.asarray([0.5, NAN, 1]), jnp.asarray([[NAN, 1], [0, NAN], [0, 1]])):
        found = metrics.ConfusionMatrix(preds, jnp.zeros(3, jnp.int32), 2).compute()
        assert found["num_out_of_range"] == 2
        assert found["confusion_matrix"].tolist() == [[0, 1], [0, 0]]


def test_deviations_whose_squares_are_0_in_float32_count_as_none():
    tiny = 1e-22 * jnp.asarray([1.0, 3.0])
    found = metrics.RegressionMetrics(-tiny, tiny).compute()
    assert (found["r2"], found["pearson"]) == (0, 0)
    assert found["mae"] == pytest.approx(4e-22)


def test_the_mean_loss_of_no_examples_does_not_spoil_that_of_others():
    def batch(loss: Any, real: Any) -> Any:
        labels = jnp.asarray([0, 1])
        return metrics.ClassificationMetrics(labels, labels, loss, 2, mask=real)

    merged = batch(jnp.nan, jnp.zeros(2)).merge(batch(0.5, jnp.asarray([1, 0])))
    assert merged.compute()["loss"] == 0.5


@pytest.mark.parametrize("bad", [-1.0, NAN, -np.inf])
def test_a_weight_that_is_none_makes_the_mean_nan(bad):
    values = jnp.asarray([1.0, 2.0, NAN])
    weights = jnp.asarray([0.5, 1.5, 0.0])
    assert metrics.Mean(values, weights).compute()["mean"] == pytest.approx(1.75)
    spoiled = metrics.Mean(values, weights.at[0].set(bad))
    assert np.isnan(spoiled.compute()["mean"])
    assert np.isnan(metrics.Mean(jnp.ones(3), jnp.asarray([-1, 2, 2])).compute()["mean"])


def test_outputs_of_float64_and_int64_are_kept():
    ids, scores = np.array([2**40, 7]), np.array([0.1, 1e-300])
    one = metrics.Collect(ids=ids, scores=scores)
    found = one.empty().merge(one).merge(one).compute()
    np.testing.assert_array_equal(found["ids"], [*ids, *ids])
    np.testing.assert_array_equal(found["scores"], [*scores, *scores])


def test_a_typed_key_is_refused_as_what_it_is():
    with pytest.raises(TypeError, match="values must be an array of real numbers; it is Array"):
        metrics.Mean(jax.random.key(0))
    with pytest.raises(TypeError, match=r"values must be an array of real numbers; it is key<fry>"):
        metrics.Mean(jax.random.split(jax.random.key(0)))
