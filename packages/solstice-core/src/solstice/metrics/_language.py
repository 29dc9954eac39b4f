"""Metrics of language models: loss, perplexity and accuracy per token."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import classes, real
from solstice._sums import Counts, Totals, Words, as_given, at_least_float32, exact_sum
from solstice._types import AnyArray
from solstice.metrics._bases import Additive, as_classes, divide, for_compute, highest
from solstice.metrics._counting import as_weights, count, count_examples, times
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class LanguageModelMetrics(Additive):
    """`LanguageModelMetrics(logits, targets, mask=mask)`: perplexity, loss and accuracy per token.

    `compute()` returns the values below. Each token has the same weight, whatever the lengths of
    texts and batches.

    - "loss": the mean of -log p(target), in nats per token; "bits_per_token": the same in bits;
    - "perplexity": exp(loss), infinite if a float cannot hold it;
    - "accuracy": the fraction of tokens with the highest logit at the target; NaN logits are wrong;
    - "bits_per_byte": bits divided by bytes of text, if `num_bytes` is given;
    - "num_tokens": number of tokens that count, whatever their weights;
    - "num_out_of_range": number of targets outside [0, vocabulary), which are excluded.

    Args:
        logits: shape [..., vocabulary]. NaN makes "loss" and the values derived from it NaN.
        targets: integers of shape [...].
        mask: true for tokens that count, boolean of shape [...]; all by default. Exclude padding.
        weights: the weight of each token, of shape [...]; else as in `ClassificationMetrics`.
        num_bytes: number of bytes of text of the tokens that count, an integer or an array, which
            is summed; with weights, of each token, an array of shape [...].

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics with and without `num_bytes` or `weights` are
            merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """With weights, "weight" is that of all tokens that count."""
    loss: Totals
    has_bytes: bool = eqx.field(static=True)

    def __init__(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        num_bytes: ArrayLike | None = None,
    ) -> None:
        logits = jnp.asarray(real("logits", logits))
        targets = jnp.asarray(classes("targets", targets))
        if logits.ndim < 1 or logits.shape[:-1] != targets.shape or logits.shape[-1] == 0:
            raise ValueError(
                f"expected logits of shape [..., vocabulary] and targets of shape [...]; they are "
                f"{list(logits.shape)} and {list(targets.shape)}"
            )
        counts, shares = as_weights(mask, weights, targets.shape)
        targets = as_classes(targets, logits.shape[-1])
        inside = targets < logits.shape[-1]
        out_of_range = count_examples(counts & ~inside, shares)
        counts &= inside
        tokens = jnp.where(counts, targets, 0)
        log_p = jax.nn.log_softmax(at_least_float32(logits), axis=-1)
        losses = -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        self.loss = Totals({"loss_sum": jnp.sum(jnp.where(counts, times(losses, shares), 0))})
        numbers: dict[str, Any] = {
            "correct": count(counts & (highest(logits) == targets), weights=shares),
            "num_tokens": count_examples(counts, shares),
            "num_out_of_range": out_of_range,
        }
        if shares is not None:
            numbers["weight"] = count(counts, weights=shares)
        self.has_bytes = num_bytes is not None
        if num_bytes is not None:
            numbers["num_bytes"] = _sum_of_bytes(num_bytes, shares)
        self.counts = sums_of(numbers)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["perplexity"]`: floats by name and two integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        weight = m.weight if isinstance(self.counts, WeightedCounts) else m.num_tokens
        loss = divide(xp, m.loss_sum, weight)
        with np.errstate(over="ignore"):  # the loss of a diverged model overflows to infinity
            perplexity = xp.exp(loss)
        by_bytes = {}
        if self.has_bytes:
            by_bytes["bits_per_byte"] = divide(xp, m.loss_sum / math.log(2), m.num_bytes)
        return {
            "loss": loss,
            "bits_per_token": loss / math.log(2),
            "perplexity": perplexity,
            "accuracy": divide(xp, m.correct, weight),
            **by_bytes,
            "num_tokens": exact["num_tokens"],
            "num_out_of_range": exact["num_out_of_range"],
        }


def _sum_of_bytes(num_bytes: ArrayLike, weights: Array | None) -> Array | Words:
    given = classes("num_bytes", num_bytes)
    if weights is None:
        return exact_sum(_whole(given))
    if jnp.shape(given) != weights.shape:
        raise ValueError(
            f"with weights, num_bytes must be the bytes of each token, of shape "
            f"{list(weights.shape)}; they are of shape {list(jnp.shape(given))}"
        )
    return jnp.sum(times(at_least_float32(given), weights))


def _whole(numbers: ArrayLike) -> AnyArray:
    given = as_given(numbers)
    return given.astype(np.int32) if jnp.issubdtype(given.dtype, jnp.inexact) else given
