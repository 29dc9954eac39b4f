"""A hint in an error is code: run on the input, it makes what is accepted and right."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import solstice
from solstice import DataError, metrics
from solstice.data import Masked
from solstice.testing import Sgd

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = np.append([0, 1, 2], RNG.integers(0, 3, N - 3)).astype(np.int64)
B = (Y > 0).astype(np.int64)
ROWS = np.stack([B, Y == 2, Y == 1], 1).astype(np.int64)
SKIP = np.arange(N) % 4 == 3
"""Examples without a label, in some of the cases."""
NUMBERS = X[:, 0] * 2


@jax.tree_util.register_static
class First:
    """The first of the features as outputs: [n], or [n, size]."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def init(self, key: Any, x: Any, /) -> Any:
        return {"bias": jnp.zeros(())}, ()

    def forward(self, params: Any, state: Any, x: Any, /, *, train: bool, key: Any = None) -> Any:
        outputs = x[:, 0] if self.size is None else x[:, : self.size]
        return outputs + params["bias"], state


MODELS = First(), First(1), First(2), First(3)
SGD = Sgd(0.1)


def classes(num_classes: int = 3) -> Any:
    model = MODELS[num_classes]
    return solstice.ClassificationExperiment(model, SGD, num_classes, sample_input=X)


def binary() -> Any:
    return solstice.BinaryClassificationExperiment(MODELS[0], SGD, sample_input=X)


def several(num_labels: int = 3) -> Any:
    model = MODELS[num_labels]
    return solstice.MultilabelClassificationExperiment(model, SGD, num_labels, sample_input=X)


def one_label() -> Any:
    return several(1)


def two_classes() -> Any:
    return classes(2)


def regression() -> Any:
    return solstice.RegressionExperiment(MODELS[0], SGD, sample_input=X)


def codes(error: Any) -> list[str]:
    """What stands between backticks in the hint, the last sentences of the message."""
    return re.findall(r"`([^`]+)`", str(error.value))


def run(code: str, **names: Any) -> Any:
    """The value of a hint, with the names that a reader has."""
    return eval(code, {"np": np, "solstice": solstice, **names})


def with_none(labels: Any, value: Any) -> Any:
    return np.where(SKIP if labels.ndim == 1 else SKIP[:, None], value, labels)


def soft(labels: Any) -> Any:
    sure = np.linspace(0.6, 0.9, labels.size).reshape(labels.shape)
    return np.where(labels == 1, sure, 1 - sure).astype(np.float32)


NAMES = np.array(["ant", "bee", "cow"])[Y]
YES = np.array(["no", "yes"])[B]
FLOATS = Y.astype(np.float32)
HOT, HOT_2 = np.eye(3, dtype=np.float32)[Y], np.eye(2, dtype=np.float32)[B]

# The experiment, the labels given, and those that are right; SKIP is masked where `none` is given.
LABELS: dict[str, tuple[Any, Any, Any]] = {
    "classes: a column": (classes, Y[:, None], Y),
    "classes: a column of JAX": (classes, jnp.asarray(Y[:, None]), Y),
    "classes: a column of floats": (classes, FLOATS[:, None], Y),
    "classes: a column of booleans": (two_classes, B[:, None] == 1, B),
    "classes: two axes of 1": (classes, Y[:, None, None], Y),
    "classes: one-hot": (classes, HOT, Y),
    "classes: one-hot integers": (classes, HOT.astype(np.int8), Y),
    "classes: one-hot booleans": (classes, HOT == 1, Y),
    "classes: one-hot of two": (two_classes, HOT_2, B),
    "classes: probabilities": (classes, 0.7 * HOT + 0.1, Y),
    "classes: a list": (classes, Y.tolist(), Y),
    "classes: a list of columns": (classes, Y[:, None].tolist(), Y),
    "classes: floats": (classes, FLOATS, Y),
    "classes: bfloat16": (classes, FLOATS.astype(ml_dtypes.bfloat16), Y),
    "classes: booleans": (two_classes, B == 1, B),
    "classes: soft": (two_classes, soft(B), B),
    "classes: objects": (classes, Y.astype(object), Y),
    "classes: a column of objects": (classes, Y[:, None].astype(object), Y),
    "classes: text": (classes, NAMES, Y),
    "classes: a column of text": (classes, NAMES[:, None], Y),
    "classes: text in objects": (classes, NAMES.astype(object), Y),
    "classes: bytes": (classes, NAMES.astype("S"), Y),
    "classes: from 1": (classes, Y + 1, Y),
    "classes: from 1 in uint8": (classes, (Y + 1).astype(np.uint8), Y),
    "classes: -1 and 1": (two_classes, 2 * B - 1, B),
    "classes: NaN": (classes, with_none(FLOATS, np.nan), Y),
    "classes: a column with NaN": (classes, with_none(FLOATS, np.nan)[:, None], Y),
    "classes: -1 for none": (classes, with_none(Y, -1), Y),
    "classes: -100 for none": (classes, with_none(Y, -100).astype(np.int32), Y),
    "classes: 255 for none": (classes, with_none(Y, 255).astype(np.uint8), Y),
    "binary: a column": (binary, B[:, None], B),
    "binary: a column of uint8": (binary, B[:, None].astype(np.uint8), B),
    "binary: a column of booleans": (binary, B[:, None] == 1, B),
    "binary: a column of floats": (binary, B[:, None].astype(np.float32), B),
    "binary: a column of -1 and 1": (binary, 2 * B[:, None] - 1, B),
    "binary: a column of text": (binary, YES[:, None], B),
    "binary: one-hot": (binary, HOT_2, B),
    "binary: one-hot integers": (binary, HOT_2.astype(int), B),
    "binary: probabilities of both": (binary, 0.8 * HOT_2 + 0.1, B),
    "binary: floats": (binary, B.astype(np.float64), B),
    "binary: soft": (binary, soft(B), B),
    "binary: soft in a column": (binary, soft(B)[:, None], B),
    "binary: -1 and 1": (binary, 2 * B - 1, B),
    "binary: -1.0 and 1.0": (binary, 2.0 * B - 1, B),
    "binary: 1 and 2": (binary, B + 1, B),
    "binary: 0 and 255": (binary, (255 * B).astype(np.uint8), B),
    "binary: text": (binary, YES, B),
    "binary: text in objects": (binary, YES.astype(object), B),
    "binary: bytes": (binary, YES.astype("S"), B),
    "binary: objects": (binary, B.astype(object), B),
    "binary: a list": (binary, B.tolist(), B),
    "binary: NaN": (binary, with_none(B.astype(np.float32), np.nan), B),
    "binary: -1 for none": (binary, with_none(B, -1), B),
    "binary: -100 for none": (binary, with_none(B, -100), B),
    "binary: -100.0 for none": (binary, with_none(B, -100.0), B),
    "binary: a column, -100 for none": (binary, with_none(B, -100.0)[:, None], B),
    "binary: 255 for none": (binary, with_none(B, 255).astype(np.uint8), B),
    "several: floats": (several, ROWS.astype(np.float32), ROWS),
    "several: soft": (several, soft(ROWS), ROWS),
    "several: -1 and 1": (several, 2 * ROWS - 1, ROWS),
    "several: another axis": (several, ROWS[..., None], ROWS),
    "several: -100 for none": (several, with_none(ROWS, -100), ROWS),
    "several: NaN": (several, with_none(ROWS.astype(np.float32), np.nan), ROWS),
    "several: classes": (several, Y, np.eye(3)[Y]),
    "several: one label": (one_label, B, B[:, None]),
    "several: one label of floats": (one_label, B.astype(np.float32), B[:, None]),
    "several: text": (several, np.where(ROWS == 1, "yes", "no"), ROWS),
    "regression: a column": (regression, NUMBERS[:, None], NUMBERS),
    "regression: objects": (regression, NUMBERS.astype(object), NUMBERS),
    "regression: text": (regression, NUMBERS.astype(str), NUMBERS),
    "regression: NaN": (regression, with_none(NUMBERS, np.nan), NUMBERS),
}


@pytest.mark.parametrize(("make", "labels", "right"), LABELS.values(), ids=LABELS)
def test_a_hint_on_labels_is_accepted_and_right(make, labels, right):
    exp = make()
    with pytest.raises(DataError) as error:
        exp.eval_step((X, labels))
    code = codes(error)[-1]
    result = run(code, x=X, y=labels, labels=labels, targets=labels)
    batch = result if isinstance(result, Masked) else (X, result)
    loss = exp.eval_step(batch)[1].compute()["loss"]
    kept = np.ones(N, bool)
    if isinstance(result, Masked):
        kept, result = result.mask, result.batch[1]
        np.testing.assert_array_equal(kept.reshape(N, -1)[:, 0], ~SKIP)
    found, expected = np.asarray(result)[kept], right[kept]
    np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=code)
    whole = Masked((X, right if make is regression else right.astype(int)), kept)
    assert loss == pytest.approx(exp.eval_step(whole)[1].compute()["loss"])


TRACED = [
    "classes: a column", "classes: a column of floats", "classes: one-hot", "classes: floats",
    "classes: booleans", "classes: a list", "binary: a column", "binary: a column of floats",
    "binary: one-hot", "binary: floats", "several: floats", "several: another axis",
    "several: one label", "several: classes", "regression: a column",
]  # fmt: skip


@pytest.mark.parametrize("case", TRACED)
def test_a_hint_is_right_where_values_cannot_be_seen(case):
    make, labels, right = LABELS[case]
    exp = make()
    with pytest.raises(DataError) as error:
        jax.eval_shape(exp.eval_step, (X, labels))
    result = run(codes(error)[-1], x=X, labels=labels, targets=labels)
    np.testing.assert_allclose(np.asarray(result), right, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "labels", "words"),
    [
        (classes, ROWS, "MultilabelClassificationExperiment"),
        (classes, NUMBERS, "RegressionExperiment"),
        (binary, ROWS, "MultilabelClassificationExperiment"),
        (binary, HOT, "ClassificationExperiment"),
        (binary, Y, "ClassificationExperiment"),
        (binary, NAMES, "ClassificationExperiment"),
        (regression, B == 1, "BinaryClassificationExperiment"),
    ],
)
def test_labels_of_another_experiment_name_it_and_no_code(make, labels, words):
    with pytest.raises(DataError, match=f"are for {words}|there is {words}") as error:
        make().eval_step((X, labels))
    assert not codes(error)


def test_nothing_is_said_where_nothing_is_known():
    for make, labels in (
        (classes, X.astype(complex)), (classes, np.zeros((N, 2, 2))), (classes, 1),
        (classes, np.array([{}] * N)), (binary, np.zeros(N, complex)), (binary, X[:, :2] * 9),
        (several, np.zeros((N, 2))), (regression, np.float32(1)), (regression, X.astype(complex)),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            make().eval_step((X, labels))
        assert not codes(error), labels


def test_more_classes_are_offered_where_labels_need_them():
    with pytest.raises(DataError, match="Give num_classes=3, or") as error:
        two_classes().eval_step((X, Y))
    assert not codes(error)
    classes().eval_step((X, Y))


# Text in a step is None


@pytest.mark.parametrize(("make", "labels", "right"), [(classes, NAMES, Y), (binary, YES, B)])
def test_a_hint_on_text_that_was_taken_out_of_the_batch(make, labels, right):
    with pytest.raises(DataError) as error:
        make().train((X, labels), batch_size=N, callbacks=[])
    result = run(codes(error)[-1], labels=labels)
    np.testing.assert_array_equal(result, right)
    make().eval_step((X, result))


# Masks

KEPT = ~SKIP
MASKS: dict[str, Any] = {
    "a column": KEPT[:, None],
    "zeros and ones": KEPT.astype(np.float32),
    "zeros and ones of integers": KEPT.astype(np.uint8),
    "a column of them": KEPT[:, None].astype(int),
    "of JAX": jnp.asarray(KEPT, jnp.int32),
    "a list": KEPT.tolist(),
    "a list of numbers": KEPT.astype(int).tolist(),
    "objects": KEPT.astype(object),
}
REFUSED = {name: mask for name, mask in MASKS.items() if name != "zeros and ones"}  # weights


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("make", [classes, several, regression])
def test_a_hint_on_a_mask_is_accepted_and_right(given, make):
    exp, y = make(), {classes: Y, several: ROWS, regression: NUMBERS}[make]
    for check in (exp.eval_step, exp.check_batch):
        with pytest.raises(DataError) as error:
            check(Masked((X, y), given))
        mask = run(codes(error)[-1], mask=given)
        np.testing.assert_array_equal(mask, KEPT)
        exp.eval_step(Masked((X, y), mask))


WEIGHTS = [np.linspace(0, 2, N), KEPT * np.nan, -1.0 * KEPT, np.where(KEPT, 2, 0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_are_not_the_mask_of_a_metric(weights):
    kinds = metrics.BinaryMetrics, metrics.BinaryCurves, metrics.RegressionMetrics
    cases = [(kind, (NUMBERS, B)) for kind in kinds]
    for kind, data in [*cases, (metrics.MultilabelMetrics, (X, ROWS))]:
        with pytest.raises(ValueError, match="which examples count, not how much") as error:
            kind(*data, mask=weights)
        assert codes(error)[-1] == "weights=mask"
        kind(*data, weights=weights)


COUNTS = np.arange(N)
FLOATS = COUNTS.astype(np.float32)
SHARES: dict[str, Any] = {
    "integers": COUNTS,
    "a column of integers": COUNTS[:, None],
    "a column": FLOATS[:, None],
    "a list": FLOATS.tolist(),
    "a list of integers": COUNTS.tolist(),
    "objects": COUNTS.astype(object),
    "of JAX": jnp.asarray(COUNTS),
}


@pytest.mark.parametrize("given", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("place", ["around", "third"])
def test_a_hint_on_weights_is_accepted_and_right(given, place):
    def batch_of(weights: Any) -> Any:
        return Masked((X, Y), weights) if place == "around" else (X, Y, weights)

    exp = classes()
    for check in (exp.eval_step, exp.check_batch):
        with pytest.raises(DataError) as error:
            check(batch_of(given))
        weights = run(codes(error)[-1], mask=given, batch=batch_of(given))
        np.testing.assert_array_equal(weights, FLOATS)
        exp.eval_step(batch_of(weights))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_impossible_weights_become_0_by_the_hint(bad):
    weights = np.where(COUNTS == 3, bad, FLOATS)
    for batch in (Masked((X, Y), weights), (X, Y, weights)):
        with pytest.raises(DataError, match="1 of 12 weights are not finite numbers of") as error:
            classes().eval_step(batch)
    fixed = run(codes(error)[-1], weights=weights)
    np.testing.assert_array_equal(fixed, np.where(COUNTS == 3, 0, FLOATS))


@pytest.mark.parametrize("given", MASKS.values(), ids=MASKS)
def test_a_mask_of_a_metric_is_right_or_its_hint_is(given):
    def build(mask: Any) -> Any:
        return metrics.BinaryMetrics(NUMBERS, B, mask=mask)

    if given is MASKS["objects"]:
        given = given.astype(float)  # JAX has no objects
    expected = build(KEPT).compute()
    for make in (build, jax.jit(build)):
        try:
            found = make(given)
        except ValueError as error:
            code = re.findall(r"`([^`]+)`", str(error))[-1]
            found = make(run(code, mask=given))
        assert found.compute() == expected


# Lengths


@pytest.mark.parametrize("make", [classes, binary, several, regression])
def test_features_and_labels_of_different_lengths(make):
    y = {classes: Y, binary: B, several: ROWS, regression: NUMBERS}[make]
    message = r"same number of examples on axis 0; there are 12 in the features.*and 5 in the targ"
    exp = make()
    short = X, y[:5]
    for attempt in (
        lambda: exp.train_step(short),
        lambda: jax.eval_shape(exp.eval_step, short),
        lambda: exp.check_batch(short),
        lambda: exp.eval_step(Masked(short, np.ones(N, bool))),
        lambda: exp.train([short], callbacks=[]),
        lambda: exp.test([(X, y), short], callbacks=[]),
    ):
        with pytest.raises(DataError, match=message):
            attempt()


# Metrics

SCORES = RNG.random(N).astype(np.float32)
LOGITS = RNG.normal(size=(N, 2)).astype(np.float32)
TABLE = RNG.normal(size=(N, 3)).astype(np.float32)


def of_classes(preds: Any, labels: Any) -> Any:
    return metrics.ClassificationMetrics(preds, labels, 0.0, 3)


def of_top(preds: Any, labels: Any) -> Any:
    return metrics.ClassificationMetrics(preds, labels, 0.0, 3, top_k=2)


def confused(preds: Any, labels: Any) -> Any:
    return metrics.ConfusionMatrix(preds, labels, 3)


def from_logits(scores: Any, labels: Any) -> Any:
    return metrics.BinaryMetrics(scores, labels, from_logits=True)


two, curves = metrics.BinaryMetrics, metrics.BinaryCurves
PAIRS: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "classes: a column": (of_classes, TABLE, Y[:, None], TABLE, Y),
    "classes: a column, of top k": (of_top, TABLE, Y[:, None], TABLE, Y),
    "classes: both a column": (of_classes, Y[:, None], Y[:, None], Y, Y),
    "classes: predictions a column": (of_classes, Y[:, None], Y, Y, Y),
    "classes: one-hot": (of_classes, TABLE, HOT, TABLE, Y),
    "classes: one-hot in a list": (of_classes, TABLE, HOT.tolist(), TABLE, Y),
    "confusion: a column": (confused, TABLE, Y[:, None], TABLE, Y),
    "confusion: one-hot": (confused, Y, HOT, Y, Y),
    "confusion: predictions a column in a list": (confused, Y[:, None].tolist(), Y, Y, Y),
    "calibration: a column": (metrics.CalibrationError, HOT, Y[:, None], HOT, Y),
    "calibration: one-hot": (metrics.CalibrationError, HOT, HOT, HOT, Y),
    "binary: a column": (two, SCORES, B[:, None], SCORES, B),
    "binary: both a column": (two, SCORES[:, None], B[:, None], SCORES, B),
    "binary: scores a column": (two, SCORES[:, None], B, SCORES, B),
    "binary: scores a column in a list": (two, SCORES[:, None].tolist(), B, SCORES, B),
    "binary: both one-hot": (two, HOT_2 * 0.5, HOT_2, HOT_2[:, 1] * 0.5, B),
    "binary: scores of both": (two, HOT_2 * 0.5, B, HOT_2[:, 1] * 0.5, B),
    "binary: a column of -1 and 1": (two, SCORES, 2 * B[:, None] - 1, SCORES, B),
    "binary: logits of both": (from_logits, LOGITS, B, LOGITS[:, 1] - LOGITS[:, 0], B),
    "curves: both a column": (curves, SCORES[:, None], B[:, None], SCORES, B),
    "regression: preds": (metrics.RegressionMetrics, SCORES[:, None], SCORES, SCORES, SCORES),
    "regression: targets": (metrics.RegressionMetrics, SCORES, SCORES[:, None], SCORES, SCORES),
}


@pytest.mark.parametrize(("kind", "preds", "labels", "right", "truth"), PAIRS.values(), ids=PAIRS)
def test_hints_of_metrics_are_accepted_and_right(kind, preds, labels, right, truth):
    with pytest.raises(ValueError, match=r"they are|must be") as error:
        kind(preds, labels)
    names = {"preds": preds, "scores": preds, "labels": labels, "targets": labels}
    for code in codes(error):
        value = run(code, **names)
        used = re.search(r"preds|scores|labels|targets", code)
        preds, labels = (preds, value) if used[0] in ("labels", "targets") else (value, labels)
    found, expected = kind(preds, labels).compute(), kind(right, truth).compute()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", [of_classes, of_top, confused, two, curves])
def test_labels_of_another_length_get_no_hint(kind):
    with pytest.raises(ValueError, match=r"of shape \[n\]") as error:
        kind(SCORES, B[:5, None])
    assert not codes(error)
