"""Every ready-made metric passes the public suite, and wrong ones are caught by name."""

import os
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics
import scipy.stats
import sklearn
import sklearn.metrics as sk
from hypothesis import Phase, settings

import solstice
from solstice import metrics
from solstice.testing import MetricsConformance

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick_oracles():
    """scikit-learn warns of undefined scores, and checks arguments longer than it computes."""
    quick = sklearn.config_context(skip_parameter_validation=True, assume_finite=True)
    with warnings.catch_warnings(), quick:
        warnings.simplefilter("ignore")
        yield


class TestClassification(MetricsConformance):
    classes = 5

    def examples(self, rng, size):
        scores = rng.normal(size=(size, self.classes)).astype(np.float32)
        labels = rng.integers(0, self.classes, size).astype(np.int32)
        return {"scores": scores, "labels": labels, "loss": rng.random(size, np.float32)}

    def build(self, examples, mask=None):
        scores, labels, loss = (examples[name] for name in ("scores", "labels", "loss"))
        return metrics.ClassificationMetrics(scores, labels, loss, self.classes, mask=mask, top_k=2)

    def reference(self, examples):
        labels, preds = examples["labels"], examples["scores"].argmax(1)
        top_2 = np.argsort(examples["scores"])[:, -2:]
        return {
            "loss": examples["loss"].mean(),
            "accuracy": sk.accuracy_score(labels, preds),
            "top_2_accuracy": (top_2 == labels[:, None]).any(1).mean(),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, preds),
            "cohen_kappa": sk.cohen_kappa_score(labels, preds),
            "matthews_corrcoef": sk.matthews_corrcoef(labels, preds),
            "f1_macro": sk.f1_score(
                labels, preds, labels=range(self.classes), average="macro", zero_division=0
            ),
            "num_nan": 0,
        }


class TestManyClasses(TestClassification):
    classes = 150


class TestConfusionMatrix(MetricsConformance):
    def examples(self, rng, size):
        return tuple(rng.integers(0, 4, size).astype(np.int32) for _ in range(2))

    def build(self, examples, mask=None):
        return metrics.ConfusionMatrix(*examples, 4, mask=mask)

    def reference(self, examples):
        matrix = sk.confusion_matrix(examples[1], examples[0], labels=range(4))
        return {"confusion_matrix": matrix, "num_out_of_range": 0}


class TestCalibration(MetricsConformance):
    def examples(self, rng, size):
        scores = rng.dirichlet(np.ones(3), size).astype(np.float32)
        return scores, rng.integers(0, 3, size).astype(np.int32)

    def build(self, examples, mask=None):
        return metrics.CalibrationError(*examples, mask=mask, num_bins=10)

    def reference(self, examples):
        scores, labels = examples
        confidence, right = scores.max(1), scores.argmax(1) == labels
        bins = np.minimum((confidence * 10).astype(int), 9)
        apart = [
            (np.mean(bins == b), abs(confidence[bins == b].mean() - right[bins == b].mean()))
            for b in np.unique(bins)
        ]
        return {
            "expected_calibration_error": sum(share * error for share, error in apart),
            "maximum_calibration_error": max(error for _, error in apart),
        }


class Binary(MetricsConformance):
    def examples(self, rng, size):
        # Steps of 1/64 are whole in the bins of BinaryMetrics, and often equal to each other.
        scores = (rng.integers(0, 64, size) / 64).astype(np.float32)
        return scores, rng.integers(0, 2, size).astype(np.int32)

    def reference(self, examples):
        raise NotImplementedError


def areas(scores, labels):
    defined = 0 < labels.sum() < len(labels)
    return {
        "roc_auc": sk.roc_auc_score(labels, scores) if defined else 0.0,
        "average_precision": sk.average_precision_score(labels, scores) if labels.any() else 0.0,
    }


class TestBinary(Binary):
    def build(self, examples, mask=None):
        return metrics.BinaryMetrics(*examples, mask=mask)

    def reference(self, examples):
        scores, labels = examples
        preds = scores >= 0.5
        return {
            **areas(scores, labels),
            "accuracy": sk.accuracy_score(labels, preds),
            "precision": sk.precision_score(labels, preds, zero_division=0),
            "recall": sk.recall_score(labels, preds, zero_division=0),
            "specificity": sk.recall_score(labels, preds, pos_label=0, zero_division=0),
            "f1": sk.f1_score(labels, preds, zero_division=0),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, preds),
            "matthews_corrcoef": sk.matthews_corrcoef(labels, preds),
        }


class TestCurves(Binary):
    unsupported = {"fixed_size": "it keeps all scores"}

    def build(self, examples, mask=None):
        return metrics.MetricsCollection(
            curves=metrics.BinaryCurves(*examples, mask=mask),
            ranks=metrics.RankCorrelation(*examples, mask=mask),
        )

    def reference(self, examples):
        varies = all(np.ptp(x) for x in examples)
        return {
            **{f"curves.{name}": area for name, area in areas(*examples).items()},
            "ranks.spearman": scipy.stats.spearmanr(*examples)[0] if varies else 0,
            "ranks.num_nan": 0,
        }


class TestMultilabel(MetricsConformance):
    def examples(self, rng, size):
        return rng.random((size, 3), np.float32), rng.integers(0, 2, (size, 3)).astype(np.int32)

    def build(self, examples, mask=None):
        return metrics.MultilabelMetrics(*examples, mask=mask)

    def reference(self, examples):
        scores, labels = examples
        preds = scores >= 0.5
        expected = {
            "accuracy": 1 - sk.hamming_loss(labels, preds),
            "subset_accuracy": sk.accuracy_score(labels, preds),
        }
        for average in ("micro", "macro", "weighted"):
            scores = sk.precision_recall_fscore_support(
                labels, preds, average=average, zero_division=0
            )
            for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True):
                expected[f"{name}_{average}"] = score
        return expected


class TestMore(MetricsConformance):
    """Rarer metrics and options, in one collection: few cases, since one has many values."""

    num_cases = 8

    def examples(self, rng, size):
        return rare_metrics.examples(rng, size)

    def build(self, examples, mask=None):
        return rare_metrics.padded_to(16)(*examples, mask)

    def reference(self, examples):
        logits, labels, classes = examples
        preds, guessed = logits.argmax(1), logits >= 0
        expected = {
            **areas_of_each("areas_of_classes.", logits, np.eye(4)[classes] == 1),
            **areas_of_each("areas_of_labels.", logits, labels),
            **specificities("classes.", classes, preds, range(4)),
            **specificities("labels.", labels, guessed, None),
            "match.exact_match": np.mean(((logits >= 1) == labels).all(1)),
        }
        for average in ("macro", "weighted"):
            options = {"average": average, "zero_division": 0, "labels": range(4)}
            expected[f"classes.f2_{average}"] = sk.fbeta_score(classes, preds, beta=2, **options)
        for average in ("micro", "samples"):
            options = {"average": average, "zero_division": 0, "beta": 2}
            scores = sk.precision_recall_fscore_support(labels, guessed, **options)
            expected[f"labels.recall_{average}"] = scores[1]
            expected[f"labels.f2_{average}"] = scores[2]
        for kind in ("linear", "quadratic"):
            kappa = sk.cohen_kappa_score(classes, preds, weights=kind)
            expected[f"kappa.{kind}_kappa"] = np.nan_to_num(kappa)
        irrelevant_first = logits - labels / 64  # of equal scores
        expected["found.ndcg_at_2"] = sk.ndcg_score(labels, irrelevant_first, k=2)
        return expected


def specificities(prefix, labels, preds, classes):
    """The means, from scikit-learn's matrix of each class or label."""
    matrices = sk.multilabel_confusion_matrix(labels, preds, labels=classes)
    right, others, held = matrices[:, 0, 0], matrices[:, 0].sum(1), matrices[:, 1].sum(1)
    each = right / np.maximum(others, 1)
    return {
        f"{prefix}specificity_macro": each.mean(),
        f"{prefix}specificity_weighted": each @ held / max(held.sum(), 1),
    }


def areas_of_each(prefix, scores, labels):
    """scikit-learn's, where a ROC-AUC that is not defined is left out of the means."""
    columns = [areas(*pair) for pair in zip(scores.T, labels.T, strict=True)]
    held = labels.sum(0)
    has_both = (held > 0) & (held < len(labels))
    expected = {}
    for name, there in (("roc_auc", has_both), ("average_precision", np.ones(len(held)))):
        each = np.array([column[name] for column in columns])
        for average, weights in (("macro", there), ("weighted", there * held)):
            mean = each @ weights / weights.sum() if weights.any() else 0
            expected[f"{prefix}{name}_{average}"] = mean
        expected[f"{prefix}{name}_micro"] = areas(scores.ravel(), labels.ravel())[name]
    return expected


class TestRegression(MetricsConformance):
    offset = 0.0

    def examples(self, rng, size):
        targets = rng.normal(size=size)
        preds = targets + 0.3 * rng.normal(size=size) + 0.1
        return tuple((x + self.offset).astype(np.float32) for x in (preds, targets))

    def build(self, examples, mask=None):
        return metrics.RegressionMetrics(*examples, mask=mask)

    def reference(self, examples):
        preds, targets = (x.astype(np.float64) for x in examples)
        return {
            "mse": sk.mean_squared_error(targets, preds),
            "rmse": sk.root_mean_squared_error(targets, preds),
            "mae": sk.mean_absolute_error(targets, preds),
            "r2": sk.r2_score(targets, preds),
            "explained_variance": sk.explained_variance_score(targets, preds),
            "pearson": np.corrcoef(preds, targets)[0, 1],
        }


class TestRegressionFarFromZero(TestRegression):
    """Where sums of squares have lost all digits of the spread."""

    offset = 4096.0


class TestLanguageModel(MetricsConformance):
    def examples(self, rng, size):
        logits = rng.normal(size=(size, 7, 11)).astype(np.float32)
        return logits, rng.integers(0, 11, (size, 7)).astype(np.int32)

    def build(self, examples, mask=None):
        logits, targets = examples
        mask = jnp.ones(len(targets), bool) if mask is None else jnp.asarray(mask)
        tokens = jnp.broadcast_to(mask[:, None], targets.shape)
        size = 3 * jnp.sum(tokens)
        return metrics.LanguageModelMetrics(logits, targets, mask=tokens, num_bytes=size)

    def reference(self, examples):
        logits, targets = examples[0].astype(np.float64), examples[1].reshape(-1)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        loss = sk.log_loss(targets, p.reshape(-1, 11), labels=range(11))
        return {
            "loss": loss,
            "perplexity": np.exp(loss),
            "bits_per_byte": loss / np.log(2) / 3,
            "accuracy": np.mean(logits.argmax(-1).reshape(-1) == targets),
            "num_tokens": len(targets),
        }


class TestMean(MetricsConformance):
    def examples(self, rng, size):
        return rng.normal(size=(size, 3)).astype(np.float32)

    def build(self, examples, mask=None):
        weights = None if mask is None else jnp.broadcast_to(mask[:, None], examples.shape)
        return metrics.Mean(examples, weights)

    def reference(self, examples):
        return {"mean": examples.mean()}


class TestWeightedMean(MetricsConformance):
    def examples(self, rng, size):
        return rng.normal(size=size).astype(np.float32), rng.random(size, np.float32)

    def build(self, examples, mask=None):
        values, weights = examples
        return metrics.Mean(values, weights if mask is None else weights * mask)

    def reference(self, examples):
        return {"mean": np.average(examples[0], weights=examples[1])}


class TestSum(MetricsConformance):
    def examples(self, rng, size):
        return rng.integers(0, 9, size).astype(np.int32)

    def build(self, examples, mask=None):
        return metrics.Sum(examples, mask)

    def reference(self, examples):
        return {"sum": examples.sum()}


class TestWithLoss(MetricsConformance):
    def examples(self, rng, size):
        preds, targets = rng.normal(size=(2, size)).astype(np.float32)
        return {"preds": preds, "targets": targets, "weights": rng.random(size, np.float32)}

    def build(self, examples, mask=None):
        preds, targets, weights = (examples[name] for name in ("preds", "targets", "weights"))
        shares = weights if mask is None else jnp.where(mask, weights, 0)
        inner = metrics.RegressionMetrics(preds, targets, mask=mask)
        return metrics.WithLoss(inner, jnp.abs(preds - targets), shares)

    def reference(self, examples):
        preds, targets = examples["preds"], examples["targets"]
        return {
            "loss": np.average(np.abs(preds - targets), weights=examples["weights"]),
            "mae": np.abs(preds - targets).mean(),
        }


class TestWithSkipped(MetricsConformance):
    def examples(self, rng, size):
        return {"values": rng.random(size, np.float32), "skipped": rng.integers(0, 2, size)}

    def build(self, examples, mask=None):
        skipped = examples["skipped"] if mask is None else jnp.where(mask, examples["skipped"], 0)
        return metrics.WithSkipped(metrics.Mean(examples["values"], mask), skipped)

    def reference(self, examples):
        return {"mean": examples["values"].mean(), "skipped": examples["skipped"].sum()}


class TestCollect(MetricsConformance):
    unsupported = {
        "fixed_size": "it keeps what it is given",
        "order": "in the order that it came in",
    }

    def examples(self, rng, size):
        return rng.normal(size=(size, 2)).astype(np.float32)

    def build(self, examples, mask=None):
        return metrics.Collect(mask=mask, outputs=examples)

    def reference(self, examples):
        return {"outputs": examples}


class TestCollection(MetricsConformance):
    def examples(self, rng, size):
        return TestClassification().examples(rng, size)

    def build(self, examples, mask=None):
        return metrics.MetricsCollection(
            loss=metrics.Mean(examples["loss"], mask),
            digit=TestClassification().build(examples, mask),
        )

    def reference(self, examples):
        expected = TestClassification().reference(examples)
        return {"loss": expected["loss"], "digit.accuracy": expected["accuracy"]}


SUITES = [
    TestClassification, TestManyClasses, TestConfusionMatrix, TestCalibration, TestBinary,
    TestCurves, TestMultilabel, TestMore, TestRegression, TestRegressionFarFromZero,
    TestLanguageModel, TestMean, TestWeightedMean, TestSum, TestCollect, TestCollection,
    TestWithLoss, TestWithSkipped,
]  # fmt: skip


@pytest.mark.bits
@pytest.mark.parametrize(
    "suite", [suite for suite in SUITES if suite is not TestMore], ids=lambda suite: suite.__name__
)
def test_five_hundred_random_sets_agree_with_the_oracle(suite: Any):
    class Oracle(suite):
        num_cases = 500
        tolerance = 1e-6

    Oracle().test_it_agrees_with_its_reference()


def test_they_work_on_eight_devices():
    """In a process of its own, since a process has the devices that it began with."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    checks = "test_it_works_sharded or test_it_works_on_explicit_axes"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", checks],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{2 * len(SUITES)} passed" in done.stdout


# Planted faults


class Planted(MetricsConformance):
    """The accuracy of five classes, as `wrong` counts it."""

    wrong: Any

    def examples(self, rng, size):
        return tuple(rng.integers(0, 5, size).astype(np.int32) for _ in range(2))

    def build(self, examples, mask=None):
        preds, labels = examples
        return self.wrong(preds, labels, jnp.ones(len(labels), bool) if mask is None else mask)

    def reference(self, examples):
        return {"accuracy": np.mean(examples[0] == examples[1])}


class Right(metrics.Additive):
    counts: Any

    def __init__(self, preds, labels, mask):
        right, all_ = jnp.sum(mask & (preds == labels)), jnp.sum(mask)
        self.counts = metrics.Counts({"right": right, "all": all_})

    def compute(self):
        counts = self.counts.values()
        return {"accuracy": counts["right"] / max(counts["all"], 1)}


class CountsInt32(metrics.Additive):
    right: Any
    count: Any

    def __init__(self, preds, labels, mask):
        self.right = jnp.sum(mask & (preds == labels), dtype=jnp.int32)
        self.count = jnp.sum(mask, dtype=jnp.int32)

    def compute(self):
        return {"accuracy": self.right / jnp.maximum(self.count, 1)}


class MeanOfMeans(CountsInt32):
    def merge(self, other):
        one, two = self.compute()["accuracy"], other.compute()["accuracy"]
        share = jnp.maximum(self.count, 1)
        return solstice.replace(self, right=(one + two) / 2 * share, count=self.count)

    def empty(self):
        return self


class CountsPadding(CountsInt32):
    def __init__(self, preds, labels, mask):
        super().__init__(preds, labels, jnp.ones_like(mask))


class FloatCounts(CountsInt32):
    def __init__(self, preds, labels, mask):
        self.right = jnp.sum(mask & (preds == labels), dtype=jnp.float32)
        self.count = jnp.sum(mask, dtype=jnp.float32)


class OneVsRest(CountsInt32):
    """Counts true negatives of each class as right too."""

    def __init__(self, preds, labels, mask):
        classes = jnp.arange(5)
        agree = (preds[:, None] == classes) == (labels[:, None] == classes)
        self.right = jnp.sum(mask[:, None] & agree, dtype=jnp.int32)
        self.count = 5 * jnp.sum(mask, dtype=jnp.int32)


class NanWhereEmpty(CountsInt32):
    def compute(self):
        return {"accuracy": self.right / self.count, "of_right": self.right / self.right}


class BreaksItsPromise(Right):
    can_raise = False

    def compute(self):
        counts = self.counts.values()
        return {"accuracy": counts["right"] / counts["all"]}


class SumsOverMembers(Right):
    is_vectorized = True

    def compute(self):
        counts = self.counts.values()
        return {"accuracy": np.sum(counts["right"]) / max(np.sum(counts["all"]), 1)}


class OrderMatters(CountsInt32):
    """Forgets the last batch but one."""

    def merge(self, other):
        return solstice.replace(
            self, right=self.right + other.right * (self.count < 9), count=self.count + other.count
        )


class OneDevice(CountsInt32):
    """Brings its counts to a device of its own."""

    def __init__(self, preds, labels, mask):
        super().__init__(preds, labels, mask)
        first = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
        here = jax.sharding.NamedSharding(first, jax.sharding.PartitionSpec())
        self.right = jax.lax.with_sharding_constraint(self.right, here)


FAULTS = {
    OneDevice: {"test_steps_give_the_same_on_a_mesh"},
    Right: set(),
    CountsInt32: {"test_many_batches_do_not_overflow"},
    MeanOfMeans: {"test_merge_is_associative"},
    CountsPadding: {"test_masked_examples_do_not_count"},
    FloatCounts: {"test_counts_are_exact"},
    OneVsRest: {"test_it_agrees_with_its_reference"},
    NanWhereEmpty: {"test_nothing_is_nan"},
    BreaksItsPromise: {"test_a_promise_not_to_raise_is_kept"},
    SumsOverMembers: {"test_a_promise_to_compute_all_members_is_kept"},
}


def failing(suite):
    found = set()
    for name in [name for name in dir(suite) if name.startswith("test_")]:
        try:
            getattr(suite(), name)()
        except pytest.skip.Exception:
            pass
        except Exception:
            found.add(name)
    return found


@pytest.fixture
def no_smaller_example():
    """That a fault is found is enough, which is had in a fraction of the time."""
    settings.register_profile("before", settings())
    settings.register_profile("found", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("found")
    yield
    settings.load_profile("before")


@pytest.mark.usefixtures("no_smaller_example")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_metric_is_caught(fault: Any):
    class Suite(Planted):
        wrong = fault
        num_cases = 5

    assert FAULTS[fault] <= failing(Suite)
    if fault is Right:
        assert failing(Suite) == set()
