"""Metrics with error bars: bootstrap replicates of a data set by Poisson weights."""

from solstice.resampling._bootstrap import Bootstrap
from solstice.resampling._bootstrap import check_settings as check_settings
from solstice.resampling._distribution import Distribution
from solstice.resampling._intervals import interval, p_value
from solstice.resampling._intervals import quantile_of_t as quantile_of_t
from solstice.resampling._intervals import tails_of_t as tails_of_t
from solstice.resampling._resampled import Resampled
from solstice.resampling._weights import poisson_weights

__all__ = ["Bootstrap", "Distribution", "Resampled", "interval", "p_value", "poisson_weights"]
