"""Loss functions: one number for each example or element, not averaged."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import share
from solstice._metrics import at_least_float32


def cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """-log softmax(logits)[label] of each example, in float32 or wider.

    With label smoothing of Szegedy et al. (2016): `smoothing` is taken from the label's
    probability and spread evenly over all classes.

    Args:
        logits: shape [..., classes].
        labels: integers of shape [...].
        smoothing: in [0, 1).
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    losses = -jnp.take_along_axis(log_p, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    if smoothing == 0:
        return losses
    return (1 - smoothing) * losses - smoothing * jnp.mean(log_p, axis=-1)


def binary_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """-log p(label) of each element, where p(1) = sigmoid(logit), in float32 or wider.

    Args:
        logits: of any shape.
        labels: 0, 1, or probabilities between, of the same shape.
        smoothing: in [0, 1): labels become 1 - smoothing / 2 and smoothing / 2.
    """
    logits, labels = at_least_float32(logits), at_least_float32(labels)
    labels = labels * (1 - smoothing) + smoothing / 2
    # exp of -|logit| cannot overflow, unlike exp of a large logit.
    return jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def squared_error(predictions: Array, targets: Array) -> Array:
    """(prediction - target)^2 of each element, in float32 or wider."""
    return jnp.square(at_least_float32(predictions) - at_least_float32(targets))


def check_smoothing(smoothing: float, loss: object) -> float:
    """The argument `label_smoothing` of an Experiment as a float.

    Raises:
        ValueError: it is outside [0, 1), or given together with `loss`.
    """
    smoothing = share("label_smoothing", smoothing, such_as="0.1")
    if smoothing and loss is not None:
        raise ValueError(
            "label_smoothing applies to the default loss only: smooth the labels in your `loss`"
        )
    return smoothing


def check_weights(weights: object, size: int) -> Array | None:
    """The argument `class_weights` of an Experiment as a float32 array, or None.

    Raises:
        ValueError: it is not `size` finite numbers of 0 or more, or all are 0.
    """
    if weights is None:
        return None
    message = (
        f"class_weights must be {size} numbers, one for each class in its place, as in "
        f"`class_weights=[1.0, 2.5, ...]`, none negative or infinite and not all 0; they are "
        f"{weights!r:.80}. Balanced ones are `len(y) / (num_classes * np.bincount(y))`"
    )
    try:
        given = np.asarray(weights, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(message) from error
    fits = given.shape == (size,) and np.isfinite(given).all() and (given >= 0).all()
    if not fits or not given.any():
        raise ValueError(message)
    return jnp.asarray(given)
