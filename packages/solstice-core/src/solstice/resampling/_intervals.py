"""Bootstrap intervals, and p-values that agree with them."""

import math
from statistics import NormalDist
from typing import Any, TypeAlias, cast

import numpy as np

_Numpy: TypeAlias = np.ndarray[Any, Any]

_NORMAL = NormalDist()

FEWEST = 10
"""The fewest examples with an interval. Of n examples, a share exp(-n) of the replicates has none,
and such a replicate has the value 0."""


def interval(
    value: Any, replicates: _Numpy, confidence: float, num_examples: int
) -> tuple[_Numpy, _Numpy]:
    """`low, high = resampling.interval(value, each, 0.95, n)`: bias-corrected percentiles.

    These are percentiles of the replicates, moved by the share of replicates below the value
    (Efron 1981). They are wider by Student's t and by sqrt(n / (n - 1)), since replicates of n
    examples vary too little (Hesterberg 2015).

    Args:
        value: the value of the data set, of any shape.
        replicates: the values of its replicates, on axis 0. NaN is left out.
        confidence: the share of data sets whose interval contains the true value.
        num_examples: n, the number of examples in the data set. Below 10, the bounds are NaN.
    """
    ordered = np.sort(replicates, axis=0)  # NaN comes last
    bias = _normal_quantile(_share_below(value, ordered))
    reach = quantile_of_t((1 + confidence) / 2, num_examples - 1) * _widening(num_examples)
    low, high = (_at(ordered, _normal_cdf(2 * bias + sign * reach)) for sign in (-1, 1))
    return low, high


def p_value(value: Any, replicates: _Numpy, num_examples: int) -> _Numpy:
    """`p_value(difference, replicates, n)`: below 0.05 where the 95 % interval excludes 0.

    Two-sided, of the hypothesis that the true value is 0.
    """
    ordered = np.sort(replicates, axis=0)
    bias = _normal_quantile(_share_below(value, ordered))
    reach = _normal_quantile(_share_below(np.zeros(np.shape(value)), ordered)) - 2 * bias
    scaled = np.ravel(np.abs(reach) / _widening(num_examples)).tolist()
    return np.reshape([tails_of_t(t, num_examples - 1) for t in scaled], np.shape(value))


def quantile_of_t(share: float, degrees: float) -> float:
    """The quantile of Student's t above 1/2, by Hill's algorithm 396 (1970), to 6 digits."""
    tails, n = 2 * (1 - share), degrees
    if n < 1:
        return math.nan
    if n == 1:
        return 1 / math.tan(tails * math.pi / 2)
    if n == 2:
        return math.sqrt(2 / (tails * (2 - tails)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tails) ** (2 / n)
    if y <= 0.05 + a:
        inner = ((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3
        y = ((1 / inner + 0.5 / (n + 4)) * y - 1) * (n + 1) / (n + 2) + 1 / y
        return math.sqrt(n * y)
    x = _NORMAL.inv_cdf(tails / 2)
    y = x * x
    c += 0.3 * (n - 4.5) * (x + 0.6) if n < 5 else 0
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return math.sqrt(n * math.expm1(a * y * y))


def tails_of_t(t: float, degrees: float) -> float:
    """The probability that Student's t is beyond `t` on either side, by bisection."""
    if not math.isfinite(t) or degrees < 1:
        return math.nan
    low, high = 1e-12, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_beyond = quantile_of_t(1 - middle / 2, degrees) > t
        low, high = (middle, high) if is_beyond else (low, middle)
    return high


def _widening(num_examples: int) -> float:
    n = num_examples
    return math.sqrt(n / (n - 1)) if n >= FEWEST else math.nan


def _share_below(value: Any, ordered: Any) -> _Numpy:
    """The share of replicates below a value; equal ones count half. Never 0 or 1."""
    known = (ordered == ordered).sum(axis=0)
    below = ((ordered < value).sum(axis=0) + (ordered <= value).sum(axis=0)) / 2
    return (below + 0.5) / (known + 1)


def _at(ordered: _Numpy, share: _Numpy) -> _Numpy:
    """The quantile of sorted replicates, between two of them in proportion."""
    last = np.maximum((ordered == ordered).sum(axis=0) - 1, 0)
    place = np.nan_to_num(share) * last
    below = np.floor(place).astype(int)
    one, other = (
        np.take_along_axis(ordered, np.minimum(row, last)[None], axis=0)[0]
        for row in (below, below + 1)
    )
    part: Any = place - below
    with np.errstate(invalid="ignore"):  # between infinite values
        between: Any = cast("Any", np.where)(one == other, one, one + (other - one) * part)
    return np.where(np.isnan(share), np.nan, between)


def _normal_cdf(x: _Numpy) -> _Numpy:
    return np.reshape([_NORMAL.cdf(z) for z in np.ravel(x).tolist()], np.shape(x))


def _normal_quantile(share: _Numpy) -> _Numpy:
    return np.reshape([_NORMAL.inv_cdf(p) for p in np.ravel(share).tolist()], np.shape(share))
