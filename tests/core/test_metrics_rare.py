"""What the rarer metrics do with parts of examples, saturated logits and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from solstice import metrics

NAN = np.float32("nan")


@jax.jit  # its operations one by one take longer to compile
def retrieved(scores, relevance, mask=None, weights=None):
    return metrics.RetrievalMetrics(scores, relevance, mask=mask, weights=weights, top_k=2)


@jax.jit
def areas(logits, labels):
    return metrics.MulticlassAUC(logits, labels, from_logits=True)


def test_a_masked_entry_is_neither_right_nor_wrong():
    preds = np.int32([[1, 2, 9], [1, 9, 9], [9, 9, 9]])
    targets = np.int32([[1, 2, 0], [2, 0, 0], [0, 0, 0]])
    mask = preds != 9
    assert metrics.ExactMatch(preds, targets, mask=mask).compute()["exact_match"] == 0.5
    scores = np.eye(10, dtype=np.float32)[preds]
    scores[1, 0, 3] = NAN
    found = metrics.ExactMatch(scores, targets, mask=mask).compute()
    assert found == {"exact_match": 0.5, "num_nan": 1}
    tokens = jnp.asarray([[257]], jnp.bfloat16), jnp.asarray([[256]], jnp.int32)
    assert metrics.ExactMatch(*tokens).compute()["exact_match"] == 1  # bfloat16 has no 257
    with pytest.raises(ValueError, match=r"one more axis; they are \[3\] and \[3, 3\]"):
        metrics.ExactMatch(preds[0], targets)


def test_a_masked_item_is_as_one_that_is_not_there():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 5)).astype(np.float32)
    relevance = rng.integers(0, 3, (6, 5)).astype(np.float32)
    relevance[0] = 0
    wide = np.concatenate([scores, np.full((6, 2), 9, np.float32)], 1)
    more = np.concatenate([relevance, np.full((6, 2), 5, np.float32)], 1)
    mask = np.arange(7)[None].repeat(6, 0) < 5
    expected = retrieved(scores, relevance).compute()
    assert retrieved(wide, more, mask).compute() == expected
    assert expected["num_without_relevant"] == 1
    more[:, 5:] = [-1, np.inf]  # items without a relevance
    bad = retrieved(wide, more).compute()
    assert bad == {**expected, "num_out_of_range": 12}
    weights = np.arange(6.0)
    more[1] = NAN
    bad = retrieved(wide, more, None, weights).compute()
    kept = retrieved(scores, relevance, (np.arange(6) > 1)[:, None].repeat(5, 1), weights)
    assert bad == {**kept.compute(), "num_out_of_range": 15}


def test_the_only_relevant_item_has_the_rank_of_scikit_learn():
    scores = np.random.default_rng(1).normal(size=(50, 9)).astype(np.float32)
    targets = np.eye(9, dtype=np.float32)[np.arange(50) % 9]
    found = retrieved(scores, targets).compute()
    assert found["mrr"] == pytest.approx(sk.label_ranking_average_precision_score(targets, scores))
    top_2 = sk.top_k_accuracy_score(np.arange(50) % 9, scores, k=2)
    assert found["recall_at_2"] == pytest.approx(top_2)


def test_saturated_logits_keep_their_order():
    """Their probabilities are all 1 in float32."""
    logits = np.float32([[18, 0], [21, 0], [20, 0], [19, 0]])
    labels = np.int32([1, 0, 0, 1])
    found = areas(logits, labels).compute()
    assert found["roc_auc_class_0"] == found["average_precision_class_0"] == 1
    assert len(set(np.asarray(jax.nn.softmax(logits))[:, 0])) == 1
    broken = np.float32([[np.inf, np.inf], [0, NAN], [1, 0], [0, 1]])
    found = areas(broken, np.int32([0, 0, 7, 1])).compute()
    assert (found["num_nan"], found["num_out_of_range"]) == (2, 1)


def test_without_other_classes_there_is_no_specificity():
    """Also of weights, whose sums are not exact."""
    rng = np.random.default_rng(2)
    weights, ones = rng.random(997, np.float32), np.ones(997, np.int32)
    preds = rng.integers(0, 3, 997)
    found = metrics.ClassificationMetrics(
        preds, ones, 0.0, 3, weights=weights, specificity=True
    ).compute()
    assert found["specificity_class_1"] == 0
    right = np.average(preds != 0, weights=weights)
    assert found["specificity_class_0"] == pytest.approx(right, rel=1e-5)
    outside = metrics.ClassificationMetrics(preds, -ones, 0.0, 3, specificity=True).compute()
    expected = [np.mean(preds != k) for k in range(3)]
    assert [outside[f"specificity_class_{k}"] for k in range(3)] == pytest.approx(expected)


def test_options_add_their_values_and_nothing_else():
    scores, labels = np.float32([[0.9, 0.2], [0.4, 0.6]]), np.int32([[1, 0], [0, 0]])
    plain = metrics.MultilabelMetrics(scores, labels).compute()
    every = metrics.MultilabelMetrics(
        scores, labels, beta=0.5, specificity=True, samples=True
    ).compute()
    assert plain.items() <= every.items()
    units = {"micro", "macro", "weighted", "label_0", "label_1"}
    added = {f"{name}_{unit}" for name in ("f0.5", "specificity") for unit in units}
    added |= {f"{name}_samples" for name in ("precision", "recall", "f1", "f0.5")}
    assert every.keys() - plain.keys() == added
    of_two = metrics.BinaryMetrics(scores[0], labels[0], beta=2).compute()
    assert of_two.keys() - metrics.BinaryMetrics(scores[0], labels[0]).compute().keys() == {"f2"}
    assert metrics.MultilabelMetrics(scores, labels, beta=1).compute() == plain
    with pytest.raises(ValueError, match=r"beta=0\.5 and of beta=None: make both alike"):
        metrics.MultilabelMetrics(scores, labels, beta=0.5).merge(
            metrics.MultilabelMetrics(scores, labels)
        )


def test_f_beta_of_two_classes_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    scores, labels = rng.random(40, np.float32), rng.integers(0, 2, 40)
    found = metrics.BinaryMetrics(scores, labels, beta=3).compute()["f3"]
    assert found == pytest.approx(sk.fbeta_score(labels, scores >= 0.5, beta=3))


def test_ranks_are_of_float64_and_infinite_numbers():
    preds = np.array([1, 1 + 1e-12, -np.inf, np.inf, np.nan])
    targets = np.array([2.0, 3, 1, 4, 0])
    found = metrics.RankCorrelation(preds, targets).compute()
    assert found == {"spearman": pytest.approx(1), "num_nan": 1}
