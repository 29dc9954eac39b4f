"""The ready-made metrics against torchmetrics, on random sets of which a part is masked.

Where torchmetrics means something else by a name, `DISAGREEMENTS` tells it and `PROOFS` shows it.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from solstice import metrics

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics")
tm = pytest.importorskip("torchmetrics.functional")
pytestmark = pytest.mark.filterwarnings("default")  # torch warns of its own dependencies

SETS, ROWS = 100, 64
NAN = float("nan")

DIFFERENCES = {
    "cohen_kappa", "matthews_corrcoef", "r2", "explained_variance", "pearson", "adjusted_r2",
    "linear_kappa", "quadratic_kappa",
    "expected_calibration_error", "maximum_calibration_error",
}  # fmt: skip
"""Differences of numbers about 1: what is close to 0 is exact relative to 1."""

DISAGREEMENTS = {
    "the mean over classes": (
        "torchmetrics leaves a class without labels and predictions out of macro averages; "
        "scikit-learn, told all classes by `labels=`, counts 0 for it. As scikit-learn: a mean "
        "must not rise because a class is missing from a set."
    ),
    "balanced accuracy": (
        "torchmetrics has no such name, and its macro accuracy counts 0 for a class that is only "
        "predicted; scikit-learn takes the mean recall of the classes with labels. As scikit-learn."
    ),
    "Cohen's kappa of one class": (
        "Both give NaN where labels and predictions are all of one class, which is 0 / 0. We give "
        "0, as for all that is not defined, so that an epoch's table has no NaN."
    ),
    "Matthews' correlation of one class": (
        "Of two classes, torchmetrics gives 1 if all is right, -1 if all is wrong and an estimate "
        "if one side is constant; scikit-learn gives 0, since it is 0 / 0. As scikit-learn."
    ),
    "top-k of ties": (
        "torchmetrics takes whichever of equal scores a sort happens to bring first, scikit-learn "
        "the highest class. We count the label as the last of its equals: a model that gives all "
        "classes one score has found nothing."
    ),
    "labels out of range": (
        "torchmetrics raises an error, scikit-learn takes them for more classes. We count them as "
        "wrong and tell how many there are: a compiled step cannot raise an error."
    ),
    "the last bin of calibration": (
        "torchmetrics puts a confidence of exactly 1 into a bin of its own; Guo et al. have it in "
        "the last bin, and scikit-learn's `calibration_curve` too. As they do."
    ),
    "scores that are no probabilities": (
        "torchmetrics applies a sigmoid to all scores if one of them is outside [0, 1]; "
        "scikit-learn takes scores as they are. As scikit-learn: the meaning of a batch must not "
        "depend on its extremes."
    ),
    "a score at the threshold": (
        "torchmetrics takes it for negative; scikit-learn's thresholds, in its curves and in "
        "`FixedThresholdClassifier`, take it for positive. As scikit-learn."
    ),
    "the ROC-AUC of one class": (
        "torchmetrics gives 0 and a warning, scikit-learn NaN and a warning. As torchmetrics, "
        "without the warning."
    ),
    "the binned ROC-AUC of a score of 1": (
        "torchmetrics begins a curve of given thresholds at the highest, not at (0, 0), so that "
        "what lies at the highest has no area; scikit-learn begins at (0, 0). As scikit-learn, of "
        "the scores rounded down to the bins."
    ),
    "the mean ROC-AUC where a class is absent": (
        "torchmetrics counts 0 for the class, scikit-learn gives NaN for the mean. We leave it "
        "out: its ROC-AUC is not defined, and 0 would be worse than chance."
    ),
    "the mean average precision where a class is absent": (
        "torchmetrics leaves the class out, scikit-learn counts 0. As scikit-learn: a mean must "
        "not rise because a class is missing from a set."
    ),
    "ranks of equal scores": (
        "torchmetrics takes whichever item a sort brings first, scikit-learn's `ndcg_score` the "
        "mean of all orders. We count the relevant items as the last of their equals, as in top-k."
    ),
    "the rank of a score below 0": (
        "torchmetrics takes it for an item that was not found, in the reciprocal rank; "
        "scikit-learn ranks scores of any range. As scikit-learn: logits are below 0."
    ),
    "R2 of targets that hardly vary": (
        "torchmetrics takes sums of squares below 1e-4 for 0; scikit-learn only those that are 0. "
        "As scikit-learn: 1e-4 is no small number in every unit."
    ),
    "R2 of one number": (
        "torchmetrics raises an error, scikit-learn gives NaN and a warning. We give what both "
        "give for constant targets: 1 if the prediction is right, else 0."
    ),
    "explained variance far from zero": (
        "torchmetrics subtracts the square of a mean from the mean of squares, which loses "
        "digits far from zero, even of doubles; scikit-learn subtracts means first. As "
        "scikit-learn."
    ),
    "Pearson's correlation of a constant": (
        "torchmetrics gives NaN and a warning, as NumPy does; scikit-learn's `r_regression` puts 0 "
        "in its place. As scikit-learn."
    ),
    "the perplexity of an impossible token": (
        "torchmetrics takes the logarithm of a probability that has become 0, and gives infinity "
        "for a whole text; scikit-learn's `log_loss` clips it to a probability that depends on "
        "the dtype. We take the log-softmax, which is right for all finite logits."
    ),
    "NaN": (
        "torchmetrics leaves NaN out of means and sums with a warning; NumPy and scikit-learn's "
        "`mean_squared_error` do not hide it. As they do: a loss of NaN must be seen."
    ),
}
"""By name, what torchmetrics does, what scikit-learn does, and which is followed and why."""

PROOFS: dict[str, Callable[[], None]] = {}


@pytest.fixture(autouse=True)
def doubles():
    """torchmetrics divides integers in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensor(array: Any) -> Any:
    """Doubles, or int64."""
    inexact = np.issubdtype(np.asarray(array).dtype, np.floating)
    return torch.as_tensor(np.asarray(array).astype(np.float64 if inexact else np.int64))


def quietly(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What it gives as NumPy, without its warnings of what is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = function(*arguments, **options)
    return found.numpy() if isinstance(found, torch.Tensor) else found


# Each family: how a set is drawn, what we and what torchmetrics give of it


class Classes:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        classes = int(rng.choice([2, 3, 5, 10]))
        there = rng.choice(classes, rng.integers(1, classes + 1), replace=False)
        labels = rng.choice(there, ROWS).astype(np.int32)
        scores = rng.normal(size=(ROWS, classes)) + rng.choice([0, 1, 9]) * np.eye(classes)[labels]
        return scores.astype(np.float32), labels

    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        classes = scores.shape[1]
        return metrics.ClassificationMetrics(
            scores, labels, 0.0, classes, mask=mask, top_k=2, beta=2.0, specificity=True
        )

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        given = tensor(scores), tensor(labels), scores.shape[1]
        preds, classes = scores.argmax(1), scores.shape[1]
        every = len(np.union1d(labels, preds)) == classes
        found = {
            "accuracy": quietly(tm.classification.multiclass_accuracy, *given, average="micro"),
            "top_2_accuracy": quietly(
                tm.classification.multiclass_accuracy, *given, average="micro", top_k=2
            ),
            "balanced_accuracy": balanced_accuracy(preds, labels, classes),
            "cohen_kappa": np.nan_to_num(quietly(tm.classification.multiclass_cohen_kappa, *given)),
            "matthews_corrcoef": correlation(preds, labels, classes),
        }
        for name, function in {
            "precision": tm.classification.multiclass_precision,
            "recall": tm.classification.multiclass_recall,
            "f1": tm.classification.multiclass_f1_score,
            "f2": f2(tm.classification.multiclass_fbeta_score),
            "specificity": tm.classification.multiclass_specificity,
        }.items():
            each = quietly(function, *given, average="none")
            found |= {f"{name}_class_{c}": each[c] for c in range(classes)}
            found[f"{name}_weighted"] = quietly(function, *given, average="weighted")
            found[f"{name}_macro"] = (
                quietly(function, *given, average="macro") if every else each.mean()
            )
        return found


def f2(function: Callable[..., Any]) -> Callable[..., Any]:
    def of(scores: Any, labels: Any, number: int, **options: Any) -> Any:
        return function(scores, labels, 2.0, number, **options)

    return of


def balanced_accuracy(preds: Any, labels: Any, classes: int) -> Any:
    """torchmetrics' macro accuracy, where it does not count a class that is only predicted."""
    function, given = tm.classification.multiclass_accuracy, (tensor(preds), tensor(labels))
    if np.isin(preds, labels).all():
        return quietly(function, *given, classes, average="macro")
    return quietly(function, *given, classes, average="none")[np.unique(labels)].mean()


def correlation(preds: Any, labels: Any, classes: int) -> Any:
    """torchmetrics', where it is defined."""
    if len(np.unique(preds)) == 1 or len(np.unique(labels)) == 1:
        return 0
    function = tm.classification.multiclass_matthews_corrcoef
    return quietly(function, tensor(preds), tensor(labels), classes)


class Confusion(Classes):
    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.ConfusionMatrix(scores, labels, scores.shape[1], mask=mask)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        function = tm.classification.multiclass_confusion_matrix
        return {
            "confusion_matrix": quietly(function, tensor(scores), tensor(labels), scores.shape[1])
        }


class Calibration(Classes):
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        scores, labels = super().draw(rng)
        return np.asarray(jax.nn.softmax(np.clip(scores, -3, 3))), labels

    def ours(self, probabilities: Any, labels: Any, mask: Any) -> Any:
        return metrics.CalibrationError(probabilities, labels, mask=mask)

    def theirs(self, probabilities: Any, labels: Any) -> dict[str, Any]:
        assert probabilities.max() < 1
        given = tensor(probabilities), tensor(labels), probabilities.shape[1]
        function = tm.classification.multiclass_calibration_error
        return {
            f"{name}_calibration_error": quietly(function, *given, n_bins=15, norm=norm)
            for name, norm in {"expected": "l1", "maximum": "max"}.items()
        }


class Binary:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        labels = (rng.random(ROWS) < rng.choice([0, 0.1, 0.5, 1], p=[0.1, 0.4, 0.4, 0.1])) + 0
        scores = 0.98 * rng.random(ROWS) ** np.where(labels, rng.choice([0.1, 1, 2]), 1) + 0.01
        if rng.random() < 0.5:  # many are equal
            scores = np.round(scores * 7) / 8 + 1 / 32
        return scores.astype(np.float32), labels.astype(np.int32)

    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.BinaryMetrics(scores, labels, mask=mask)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        assert scores.max() < 1
        assert 0.5 not in scores
        given, preds = (tensor(scores), tensor(labels)), scores > 0.5
        steps = torch.arange(513) / 512
        place = 1 / (1 + np.sqrt(np.sqrt((1 - scores) / scores)))  # sigmoid(logit / 4), float32
        binned = tensor(place), given[1]
        return {
            "accuracy": quietly(tm.classification.binary_accuracy, *given),
            "precision": quietly(tm.classification.binary_precision, *given),
            "recall": quietly(tm.classification.binary_recall, *given),
            "specificity": quietly(tm.classification.binary_specificity, *given),
            "f1": quietly(tm.classification.binary_f1_score, *given),
            "balanced_accuracy": balanced_accuracy(preds, labels, 2),
            "matthews_corrcoef": correlation(preds, labels, 2),
            "roc_auc": quietly(tm.classification.binary_auroc, *binned, thresholds=steps),
            "average_precision": quietly(
                tm.classification.binary_average_precision, *binned, thresholds=steps
            ),
        }


class Curves(Binary):
    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.BinaryCurves(scores, labels, mask=mask)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        given = tensor(scores), tensor(labels)
        return {
            "roc_auc": quietly(tm.classification.binary_auroc, *given),
            "average_precision": quietly(tm.classification.binary_average_precision, *given),
        }


class Multilabel:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        labels = (rng.random((ROWS, 4)) < rng.choice([0, 0.1, 0.5, 0.9, 1], size=4)) + 0
        scores = 0.98 * rng.random((ROWS, 4)) ** np.where(labels, rng.choice([0.1, 1, 2]), 1) + 0.01
        return scores.astype(np.float32), labels.astype(np.int32)

    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.MultilabelMetrics(
            scores, labels, mask=mask, beta=2.0, specificity=True, samples=True
        )

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        assert 0.5 not in scores
        given = tensor(scores), tensor(labels), 4
        found = {
            "accuracy": quietly(tm.classification.multilabel_accuracy, *given, average="micro"),
            "subset_accuracy": quietly(tm.classification.multilabel_exact_match, *given),
        }
        for name, function in {
            "precision": tm.classification.multilabel_precision,
            "recall": tm.classification.multilabel_recall,
            "f1": tm.classification.multilabel_f1_score,
            "f2": f2(tm.classification.multilabel_fbeta_score),
            "specificity": tm.classification.multilabel_specificity,
        }.items():
            each = quietly(function, *given, average="none")
            found |= {f"{name}_label_{k}": each[k] for k in range(4)}
            for average in ("micro", "macro", "weighted"):
                found[f"{name}_{average}"] = quietly(function, *given, average=average)
        for name, of_rows in {
            "precision": tm.classification.binary_precision,
            "recall": tm.classification.binary_recall,
            "f1": tm.classification.binary_f1_score,
        }.items():
            each = quietly(of_rows, *given[:2], multidim_average="samplewise")
            found[f"{name}_samples"] = each.mean()
        return found


class AreasOfLabels(Multilabel):
    sets = 20  # torchmetrics takes long

    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.MultilabelAUC(scores, labels, mask=mask, num_bins=256)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        place = 1 / (1 + np.sqrt(np.sqrt((1 - scores) / scores)))  # as in BinaryMetrics, float32
        return areas_of_bins(np.floor(place * np.float32(256)), labels, "label")


def areas_of_bins(bins: Any, labels: Any, unit: str) -> dict[str, Any]:
    given = tensor(bins / 256), tensor(labels), labels.shape[1]
    held = labels.sum(0)
    both = (held > 0) & (held < len(labels))
    area = tm.classification.multilabel_auroc
    precision = tm.classification.multilabel_average_precision
    rows = quietly(area, *given, average="none")
    each = np.nan_to_num(quietly(precision, *given, average="none"))
    found = {
        **{f"roc_auc_{unit}_{k}": rows[k] if both[k] else 0 for k in range(len(held))},
        **{f"average_precision_{unit}_{k}": each[k] for k in range(len(held))},
        "roc_auc_macro": rows[both].mean() if both.any() else 0,
        "roc_auc_weighted": np.average(rows[both], weights=held[both]) if both.any() else 0,
        "average_precision_macro": each.mean(),
    }
    if 0 < labels.sum() < labels.size:
        found["roc_auc_micro"] = quietly(area, *given, average="micro")
    if labels.any():
        for average in ("micro", "weighted"):
            found[f"average_precision_{average}"] = quietly(precision, *given, average=average)
    return found


class AreasOfClasses(Classes):
    sets = 20

    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.MulticlassAUC(scores, labels, mask=mask, num_bins=256, from_logits=True)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        p = np.asarray(jax.nn.softmax(scores.astype(np.float64)))
        hot = np.eye(scores.shape[1], dtype=np.int32)[labels]
        place = 1 / (1 + ((1 - p) / p) ** 0.25)  # sigmoid(logit / 4)
        return areas_of_bins(np.floor(place * 256), hot, "class")


class Kappa(Classes):
    def ours(self, scores: Any, labels: Any, mask: Any) -> Any:
        return metrics.WeightedKappa(scores, labels, scores.shape[1], mask=mask)

    def theirs(self, scores: Any, labels: Any) -> dict[str, Any]:
        function = tm.classification.multiclass_cohen_kappa
        given = tensor(scores), tensor(labels), scores.shape[1]
        return {
            f"{kind}_kappa": np.nan_to_num(quietly(function, *given, weights=kind))
            for kind in ("linear", "quadratic")
        }


class Match:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        targets = rng.integers(0, 3, (ROWS, 4))
        return np.where(rng.random((ROWS, 4)) < 0.2, 0, targets), targets

    def ours(self, preds: Any, targets: Any, mask: Any) -> Any:
        return metrics.ExactMatch(preds, targets, mask=mask)

    def theirs(self, preds: Any, targets: Any) -> dict[str, Any]:
        function = tm.classification.multiclass_exact_match
        return {"exact_match": quietly(function, tensor(preds), tensor(targets), 3)}


class Retrieval:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        relevance = rng.integers(0, 4, (ROWS, 7)) * (rng.random((ROWS, 7)) < 0.3)
        scores = rng.permuted(np.tile(np.arange(1.0, 8), (ROWS, 1)), axis=1)
        return scores.astype(np.float32), relevance.astype(np.int32)

    def ours(self, scores: Any, relevance: Any, mask: Any) -> Any:
        return metrics.RetrievalMetrics(scores, relevance, mask=mask, top_k=3)

    def theirs(self, scores: Any, relevance: Any) -> dict[str, Any]:
        rows, graded = tensor(scores), tensor(relevance)
        binary = (graded > 0).long()

        def mean(function: Any, targets: Any, **options: Any) -> float:
            pairs = zip(rows, targets, strict=True)
            return float(np.mean([quietly(function, *pair, **options) for pair in pairs]))

        return {
            "recall_at_3": mean(tm.retrieval_recall, binary, top_k=3),
            "mrr": mean(tm.retrieval_reciprocal_rank, binary),
            "ndcg_at_3": mean(tm.retrieval_normalized_dcg, graded, top_k=3),
        }


class Regression:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        targets = rng.normal(size=ROWS) * rng.choice([1, 10]) + rng.choice([0, 5, -20])
        preds = rng.choice([1, 0.9, -1]) * targets + rng.choice([0.1, 1]) * rng.normal(size=ROWS)
        return preds.astype(np.float32), targets.astype(np.float32)

    def ours(self, preds: Any, targets: Any, mask: Any) -> Any:
        return metrics.RegressionMetrics(preds, targets, mask=mask, num_features=2)

    def theirs(self, preds: Any, targets: Any) -> dict[str, Any]:
        given = tensor(preds), tensor(targets)
        return {
            "mse": quietly(tm.mean_squared_error, *given),
            "rmse": quietly(tm.mean_squared_error, *given, squared=False),
            "mae": quietly(tm.mean_absolute_error, *given),
            "r2": quietly(tm.r2_score, *given),
            **({"adjusted_r2": quietly(tm.r2_score, *given, adjusted=2)} if len(preds) > 3 else {}),
            "explained_variance": quietly(tm.explained_variance, *given),
            "pearson": quietly(tm.pearson_corrcoef, *given),
        }


class Language(Classes):
    def ours(self, logits: Any, tokens: Any, mask: Any) -> Any:
        return metrics.LanguageModelMetrics(logits, tokens, mask=mask)

    def theirs(self, logits: Any, tokens: Any) -> dict[str, Any]:
        given = tensor(logits), tensor(tokens)
        return {
            "perplexity": quietly(tm.text.perplexity, *(x[None] for x in given)),
            "accuracy": quietly(
                tm.classification.multiclass_accuracy, *given, logits.shape[1], average="micro"
            ),
        }


class Mean:
    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        values = rng.random(ROWS) * rng.choice([1, 1e-6, 1e6]) * rng.choice([-1, 1])
        return values.astype(np.float32), rng.random(ROWS, np.float32)

    def ours(self, values: Any, weights: Any, mask: Any) -> Any:
        return metrics.Mean(values, jnp.where(mask, weights, 0))

    def theirs(self, values: Any, weights: Any) -> dict[str, Any]:
        return {"mean": quietly(torchmetrics.MeanMetric(), tensor(values), tensor(weights))}


class Sum(Mean):
    def ours(self, values: Any, weights: Any, mask: Any) -> Any:
        return metrics.Sum(values, mask)

    def theirs(self, values: Any, weights: Any) -> dict[str, Any]:
        return {"sum": quietly(torchmetrics.SumMetric(), tensor(values))}


FAMILIES = [
    Classes, Confusion, Calibration, Binary, Curves, Multilabel, Regression, Language, Mean, Sum,
    AreasOfLabels, AreasOfClasses, Kappa, Match, Retrieval,
]  # fmt: skip


def random_sets(family: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Sets of examples, each with a mask of which 2 or more are true."""
    for seed in range(getattr(family, "sets", SETS)):
        rng = np.random.default_rng(seed)
        yield family.draw(rng), rng.permutation(ROWS) < rng.integers(2, ROWS + 1)


def spoiled(array: Any, mask: Any) -> Any:
    """With NaN, or what is no class, where the mask is false."""
    bad = np.asarray(NAN if np.issubdtype(array.dtype, np.floating) else 99, array.dtype)
    return np.where(mask.reshape(mask.shape + (1,) * (array.ndim - 1)), array, bad)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_they_agree_on_random_sets(family: Any):
    family = family()
    ours = jax.jit(family.ours)
    for arrays, mask in random_sets(family):
        found = ours(*(spoiled(array, mask) for array in arrays), mask).compute()
        for name, value in family.theirs(*(array[mask] for array in arrays)).items():
            near = 1e-6 if name in DIFFERENCES else 0
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=near, err_msg=name)


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_they_disagree_as_told(name: str):
    PROOFS[name]()


def proves(name: str) -> Callable[[Callable[[], None]], None]:
    def keep(proof: Callable[[], None]) -> None:
        assert name in DISAGREEMENTS
        PROOFS[name] = proof

    return keep


def of_classes(preds: Any, labels: Any, num_classes: int) -> dict[str, Any]:
    return metrics.ClassificationMetrics(
        jnp.asarray(preds), jnp.asarray(labels), 0.0, num_classes
    ).compute()


@proves("the mean over classes")
def absent_class():
    preds, labels = [0, 1, 1], [0, 1, 0]  # and never 2
    for name, theirs, by_sklearn in (
        ("precision_macro", tm.classification.multiclass_precision, sk.precision_score),
        ("recall_macro", tm.classification.multiclass_recall, sk.recall_score),
        ("f1_macro", tm.classification.multiclass_f1_score, sk.f1_score),
    ):
        ours = of_classes(preds, labels, 3)[name]
        followed = by_sklearn(labels, preds, labels=range(3), average="macro", zero_division=0)
        assert ours == pytest.approx(followed)
        mean = quietly(theirs, tensor(preds), tensor(labels), 3, average="macro")
        assert mean == pytest.approx(ours * 3 / 2)


@proves("balanced accuracy")
def predicted_alone():
    preds, labels = [0, 1, 2], [0, 0, 2]
    assert of_classes(preds, labels, 3)["balanced_accuracy"] == pytest.approx(3 / 4)
    assert quietly(sk.balanced_accuracy_score, labels, preds) == pytest.approx(3 / 4)
    macro = quietly(
        tm.classification.multiclass_accuracy, tensor(preds), tensor(labels), 3, average="macro"
    )
    assert macro == pytest.approx(1 / 2)


@proves("Cohen's kappa of one class")
def kappa_of_one_class():
    ones = [1, 1]
    assert of_classes(ones, ones, 2)["cohen_kappa"] == 0
    assert np.isnan(quietly(sk.cohen_kappa_score, ones, ones))
    function = tm.classification.multiclass_cohen_kappa
    assert np.isnan(quietly(function, tensor(ones), tensor(ones), 2))


@proves("Matthews' correlation of one class")
def correlation_of_one_class():
    function = tm.classification.multiclass_matthews_corrcoef
    for preds, labels, theirs in (
        ([1, 1], [1, 1], 1),
        ([0, 0], [1, 1], -1),
        ([0, 1, 1], [1, 1, 1], None),
    ):
        assert of_classes(preds, labels, 2)["matthews_corrcoef"] == 0
        assert quietly(sk.matthews_corrcoef, labels, preds) == 0
        found = quietly(function, tensor(preds), tensor(labels), 2)
        assert found == theirs if theirs is not None else found != 0
    of_three = quietly(function, tensor([1, 1]), tensor([1, 1]), 3)
    assert of_three == 0  # of more than two classes they agree


@proves("top-k of ties")
def tied_scores():
    scores, hits = np.zeros((3, 3)), {}
    for label in range(3):
        labels = [label] * 3
        mine = metrics.ClassificationMetrics(scores, jnp.asarray(labels), 0.0, 3, top_k=2)
        assert mine.compute()["top_2_accuracy"] == 0
        hits[label] = (
            sk.top_k_accuracy_score(labels, scores, k=2, labels=range(3)),
            quietly(
                tm.classification.multiclass_accuracy,
                tensor(scores), tensor(labels), 3, average="micro", top_k=2,
            ).item(),
        )  # fmt: skip
    assert [by_sklearn for by_sklearn, _ in hits.values()] == [0, 1, 1]
    assert sum(theirs for _, theirs in hits.values()) == 2  # two of three, whichever they are


@proves("labels out of range")
def no_class():
    preds, labels = [0, 1, 1], [0, 1, 2]
    found = of_classes(preds, labels, 2)
    assert (found["accuracy"], found["num_out_of_range"]) == (pytest.approx(2 / 3), 1)
    assert sk.accuracy_score(labels, preds) == pytest.approx(2 / 3)
    assert sk.confusion_matrix(labels, preds).shape == (3, 3)
    with pytest.raises(RuntimeError, match="more unique values"):
        tm.classification.multiclass_accuracy(tensor(preds), tensor(labels), 2)


@proves("the last bin of calibration")
def entirely_sure():
    from sklearn.calibration import calibration_curve

    probabilities, labels = np.float32([[0.05, 0.95], [0, 1]]), np.int32([0, 1])
    ours = metrics.CalibrationError(probabilities, labels, num_bins=10).compute()
    assert ours["expected_calibration_error"] == pytest.approx(0.975 - 0.5)
    right, confidence = calibration_curve(labels, probabilities[:, 1], n_bins=10)
    assert abs(right - confidence) == pytest.approx([0.975 - 0.5])
    theirs = quietly(
        tm.classification.multiclass_calibration_error,
        tensor(probabilities), tensor(labels), 2, n_bins=10,
    )  # fmt: skip
    assert theirs == pytest.approx(0.95 / 2)


@proves("scores that are no probabilities")
def logits():
    scores, labels = np.float32([0.4, 3]), np.int32([0, 1])
    assert metrics.BinaryMetrics(scores, labels).compute()["accuracy"] == 1
    assert sk.accuracy_score(labels, scores >= 0.5) == 1
    assert quietly(tm.classification.binary_accuracy, tensor(scores), tensor(labels)) == 0.5
    far = np.float32([50, 60])
    assert metrics.BinaryCurves(far, labels).compute()["roc_auc"] == 1
    assert sk.roc_auc_score(labels, far) == 1
    assert quietly(tm.classification.binary_auroc, tensor(far), tensor(labels)) == 0.5


@proves("a score at the threshold")
def at_the_threshold():
    scores, labels = np.float32([0.5, 0.25]), np.int32([1, 0])
    assert metrics.BinaryMetrics(scores, labels).compute()["recall"] == 1
    assert (
        metrics.MultilabelMetrics(scores[:, None], labels[:, None]).compute()["recall_micro"] == 1
    )
    _, tpr, thresholds = sk.roc_curve(labels, scores)
    assert tpr[thresholds == 0.5] == 1
    assert quietly(tm.classification.binary_recall, tensor(scores), tensor(labels)) == 0


@proves("the ROC-AUC of one class")
def auc_of_one_class():
    scores = np.float32([0.25, 0.75])
    for label in (0, 1):
        labels = np.full(2, label, np.int32)
        for kind in (metrics.BinaryMetrics, metrics.BinaryCurves):
            assert kind(scores, labels).compute()["roc_auc"] == 0
        assert quietly(tm.classification.binary_auroc, tensor(scores), tensor(labels)) == 0
        assert np.isnan(quietly(sk.roc_auc_score, labels, scores))


@proves("the binned ROC-AUC of a score of 1")
def binned_auc():
    scores, labels = np.float32([1, 1, 0.25]), np.int32([1, 0, 0])
    assert metrics.BinaryMetrics(scores, labels).compute()["roc_auc"] == 0.75
    assert sk.roc_auc_score(labels, scores) == 0.75
    function, given = tm.classification.binary_auroc, (tensor(scores), tensor(labels))
    assert quietly(function, *given) == 0.75  # without thresholds they agree
    assert quietly(function, *given, thresholds=torch.arange(513) / 512) == 0.5


@proves("the mean ROC-AUC where a class is absent")
def area_of_absent_class():
    scores = np.float32([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0]])
    labels = np.int32([0, 1, 0])  # and never 2
    assert metrics.MulticlassAUC(scores, labels).compute()["roc_auc_macro"] == 1
    hot = np.eye(3)[labels]
    assert np.isnan(quietly(sk.roc_auc_score, hot, scores, average="macro"))
    function, given = tm.classification.multiclass_auroc, (tensor(scores), tensor(labels), 3)
    assert quietly(function, *given, average="macro") == pytest.approx(2 / 3)


@proves("the mean average precision where a class is absent")
def precision_of_absent_class():
    scores = np.float32([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0]])
    labels = np.int32([0, 1, 0])  # and never 2
    found = metrics.MulticlassAUC(scores, labels).compute()["average_precision_macro"]
    by_sklearn = quietly(sk.average_precision_score, np.eye(3)[labels], scores, average="macro")
    assert found == by_sklearn == pytest.approx(2 / 3)
    function = tm.classification.multiclass_average_precision
    assert quietly(function, tensor(scores), tensor(labels), 3, average="macro") == 1


@proves("ranks of equal scores")
def equal_scores():
    scores, relevance = np.ones((1, 2), np.float32), np.int32([[1, 0]])
    found = metrics.RetrievalMetrics(scores, relevance, top_k=1).compute()
    assert (found["recall_at_1"], found["mrr"], found["ndcg_at_1"]) == (0, 0.5, 0)
    assert sk.ndcg_score(relevance, scores, k=1) == 0.5
    orders = [
        quietly(tm.retrieval_reciprocal_rank, tensor(scores[0]), tensor(row))
        for row in (relevance[0], relevance[0, ::-1].copy())
    ]
    assert sorted(map(float, orders)) == [0.5, 1]


@proves("the rank of a score below 0")
def below_zero():
    scores, relevance = np.float32([[-2, -1, -3]]), np.int32([[1, 0, 0]])
    assert metrics.RetrievalMetrics(scores, relevance).compute()["mrr"] == 0.5
    assert sk.label_ranking_average_precision_score(relevance, scores) == 0.5
    assert quietly(tm.retrieval_reciprocal_rank, tensor(scores[0]), tensor(relevance[0])) == 0


def of_numbers(preds: Any, targets: Any) -> dict[str, Any]:
    return metrics.RegressionMetrics(jnp.asarray(preds), jnp.asarray(targets)).compute()


@proves("R2 of targets that hardly vary")
def small_targets():
    targets = np.float32([1e-3, 2e-3, 3e-3])
    preds = 2 * targets
    ours = of_numbers(preds, targets)["r2"]
    assert ours == pytest.approx(sk.r2_score(targets.astype(float), preds.astype(float)))
    assert ours == pytest.approx(-6)
    assert quietly(tm.r2_score, tensor(preds), tensor(targets)) == 1


@proves("R2 of one number")
def one_number():
    one, two = np.float32([1]), np.float32([2])
    assert (of_numbers(one, one)["r2"], of_numbers(two, one)["r2"]) == (1, 0)
    assert np.isnan(quietly(sk.r2_score, one, one))
    assert sk.r2_score([1, 1], [1, 1]) == 1
    assert sk.r2_score([1, 1], [2, 2]) == 0
    with pytest.raises(ValueError, match="at least two samples"):
        tm.r2_score(tensor(one), tensor(one))


@proves("explained variance far from zero")
def far_from_zero():
    targets = np.float32(1e8 + 8 * np.arange(6))
    preds = targets + np.float32([0, 8, 0, -8, 0, 0])
    ours = of_numbers(preds, targets)["explained_variance"]
    followed = sk.explained_variance_score(targets.astype(float), preds.astype(float))
    assert ours == pytest.approx(followed, rel=1e-6)
    theirs = quietly(tm.explained_variance, tensor(preds), tensor(targets))
    assert theirs != pytest.approx(followed, rel=1e-4)


@proves("Pearson's correlation of a constant")
def constant():
    from sklearn.feature_selection import r_regression

    ones, others = np.float32([1, 1, 1]), np.float32([1, 2, 3])
    assert of_numbers(ones, others)["pearson"] == 0
    assert quietly(r_regression, ones[:, None], others) == 0
    assert np.isnan(quietly(tm.pearson_corrcoef, tensor(ones), tensor(others)))
    assert np.isnan(quietly(np.corrcoef, ones, others)[0, 1])


@proves("the perplexity of an impossible token")
def impossible_token():
    logits = np.zeros((10, 2), np.float32)
    logits[0, 0] = 1000
    tokens = np.ones(10, np.int32)
    ours = metrics.LanguageModelMetrics(logits, tokens).compute()
    expected = (1000 + 9 * np.log(2)) / 10
    assert ours["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert quietly(tm.text.perplexity, tensor(logits)[None], tensor(tokens)[None]) == np.inf
    p = np.asarray(jax.nn.softmax(logits.astype(np.float64)))
    assert sk.log_loss(tokens, p, labels=[0, 1]) < expected / 2


@proves("NaN")
def nan():
    values = np.float32([1, NAN, 3])
    assert np.isnan(metrics.Mean(values).compute()["mean"])
    assert np.isnan(metrics.Sum(values).compute()["sum"])
    assert np.isnan(values.mean())
    with pytest.raises(ValueError, match="NaN"):
        sk.mean_squared_error(values, values)
    assert quietly(torchmetrics.MeanMetric(), tensor(values)) == 2
    assert quietly(torchmetrics.SumMetric(), tensor(values)) == 4
