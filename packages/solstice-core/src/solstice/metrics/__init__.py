"""Ready-made metrics that are exact for any split into batches."""

from solstice._mapped import Mapped
from solstice._per_member import PerMember
from solstice._sums import Counts, Totals
from solstice.metrics._areas import MulticlassAUC, MultilabelAUC
from solstice.metrics._bases import Additive, Growing
from solstice.metrics._basic import Collect, Mean, MetricsCollection, Sum, WithLoss, WithSkipped
from solstice.metrics._binary import BinaryCurves, BinaryMetrics
from solstice.metrics._classification import ClassificationMetrics
from solstice.metrics._confusion import CalibrationError, ConfusionMatrix, WeightedKappa
from solstice.metrics._exact_match import ExactMatch
from solstice.metrics._language import LanguageModelMetrics
from solstice.metrics._metrax import from_metrax
from solstice.metrics._multilabel import MultilabelMetrics
from solstice.metrics._rank import RankCorrelation
from solstice.metrics._regression import RegressionMetrics
from solstice.metrics._retrieval import RetrievalMetrics

__all__ = [
    "Additive",
    "BinaryCurves",
    "BinaryMetrics",
    "CalibrationError",
    "ClassificationMetrics",
    "Collect",
    "ConfusionMatrix",
    "Counts",
    "ExactMatch",
    "Growing",
    "LanguageModelMetrics",
    "Mapped",
    "Mean",
    "MetricsCollection",
    "MulticlassAUC",
    "MultilabelAUC",
    "MultilabelMetrics",
    "PerMember",
    "RankCorrelation",
    "RegressionMetrics",
    "RetrievalMetrics",
    "Sum",
    "Totals",
    "WeightedKappa",
    "WithLoss",
    "WithSkipped",
    "from_metrax",
]
