"""Ready-made experiments, each on the protocols of `solstice.compat` alone."""

from solstice.experiments._classification import ClassificationExperiment

__all__ = ["ClassificationExperiment"]
