"""Ready-made metrics, each on the public `solstice.Metrics`."""

from solstice.metrics._classification import ClassificationMetrics

__all__ = ["ClassificationMetrics"]
