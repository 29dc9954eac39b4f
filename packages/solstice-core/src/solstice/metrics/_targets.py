"""Labels of 0 and 1, and scores of the same shape."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from solstice._arguments import real
from solstice._hints import pair_hint
from solstice.metrics._bases import as_stored


def check_pair(scores: ArrayLike, targets: ArrayLike, ndim: int, from_logits: bool = False) -> None:
    """Raises a ValueError if scores and labels of 0 and 1 are not of the same shape."""
    shapes = np.shape(real("scores", scores)), np.shape(real("targets", targets))
    expected = "[n]" if ndim == 1 else "[n, num_labels]"
    if len(shapes[0]) != ndim or shapes[0] != shapes[1] or 0 in shapes[0][1:]:
        raise ValueError(
            f"expected scores and targets of shape {expected}; they are of shape "
            f"{list(shapes[0])} and {list(shapes[1])}"
            f"{pair_hint(scores, targets, from_logits) if ndim == 1 else ''}"
        )


def zeros_and_ones(targets: ArrayLike) -> tuple[Any, Any]:
    """Where labels are 1, and where they are 0; invalid labels are in neither."""
    labels = as_stored(targets)
    return (labels, ~labels) if labels.dtype == bool else (labels == 1, labels == 0)
