"""Metrics of language models."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from solstice._arguments import classes, real
from solstice._sums import Counts, Totals, as_given, at_least_float32, exact_sum
from solstice.metrics._bases import (
    Additive,
    as_classes,
    as_mask,
    count,
    divide,
    for_compute,
    highest,
)


class LanguageModelMetrics(Additive):
    """`LanguageModelMetrics(logits, targets, mask=mask)`: the next token, over all tokens.

    `compute()` gives, each token counting alike whatever the lengths of texts and batches:

    - "loss": the mean of -log p(target), in nats a token; "bits_per_token": the same in bits;
    - "perplexity": exp(loss), infinite where that is beyond a float;
    - "accuracy": the fraction of tokens whose highest logit is the target's; not if any is NaN;
    - "bits_per_byte": bits over bytes of text, where `num_bytes` was given;
    - "num_tokens": how many tokens counted;
    - "num_out_of_range": how many targets were no token. They are left out.

    Args:
        logits: shape [..., vocabulary]. NaN spoils "loss" and what follows from it.
        targets: integers of shape [...].
        mask: which tokens count, boolean of shape [...]; all if left out. Padding must not.
        num_bytes: how many bytes of text the tokens that count stand for, an integer or an array
            that is summed.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or what has `num_bytes` is merged with what has not.
    """

    counts: Counts
    loss: Totals
    has_bytes: bool = eqx.field(static=True)

    def __init__(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        num_bytes: ArrayLike | None = None,
    ) -> None:
        logits = jnp.asarray(real("logits", logits))
        targets = jnp.asarray(classes("targets", targets))
        if logits.ndim < 1 or logits.shape[:-1] != targets.shape or logits.shape[-1] == 0:
            raise ValueError(
                f"expected logits of shape [..., vocabulary] and targets of shape [...]; they are "
                f"{list(logits.shape)} and {list(targets.shape)}"
            )
        counts = as_mask(mask, targets.shape)
        targets = as_classes(targets, logits.shape[-1])
        inside = targets < logits.shape[-1]
        out_of_range = count(counts & ~inside)
        counts &= inside
        tokens = jnp.where(counts, targets, 0)
        log_p = jax.nn.log_softmax(at_least_float32(logits), axis=-1)
        losses = -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        self.loss = Totals({"loss_sum": jnp.sum(jnp.where(counts, losses, 0))})
        numbers: dict[str, Any] = {
            "correct": count(counts & (highest(logits) == targets)),
            "num_tokens": count(counts),
            "num_out_of_range": out_of_range,
        }
        self.has_bytes = num_bytes is not None
        if num_bytes is not None:
            numbers["num_bytes"] = exact_sum(_whole(classes("num_bytes", num_bytes)))
        self.counts = Counts(numbers)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["perplexity"]`: floats by name, and two integer counts."""
        m, xp = for_compute(self)
        exact = self.counts.values()
        loss = divide(xp, m.loss_sum, m.num_tokens)
        by_bytes = {}
        if self.has_bytes:
            by_bytes["bits_per_byte"] = divide(xp, m.loss_sum / math.log(2), m.num_bytes)
        return {
            "loss": loss,
            "bits_per_token": loss / math.log(2),
            "perplexity": _exp(xp, loss),
            "accuracy": divide(xp, m.correct, m.num_tokens),
            **by_bytes,
            "num_tokens": exact["num_tokens"],
            "num_out_of_range": exact["num_out_of_range"],
        }


def _whole(numbers: ArrayLike) -> Any:
    given = as_given(numbers)
    return given.astype(np.int32) if jnp.issubdtype(given.dtype, jnp.inexact) else given


def _exp(xp: Any, loss: Any) -> Any:
    with np.errstate(over="ignore"):  # a model that has diverged
        return xp.exp(loss)
