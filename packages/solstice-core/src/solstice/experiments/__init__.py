"""Ready-made Experiments, written against the protocols of `solstice.compat` alone."""

from solstice.experiments._autoencoder import AutoencoderExperiment, VAEExperiment
from solstice.experiments._base import Options
from solstice.experiments._classification import (
    BinaryClassificationExperiment,
    ClassificationExperiment,
    MultilabelClassificationExperiment,
)
from solstice.experiments._gan import GANExperiment
from solstice.experiments._language import LanguageModelExperiment
from solstice.experiments._learner import Forward, Learner, Objective
from solstice.experiments._regression import RegressionExperiment

__all__ = [
    "AutoencoderExperiment",
    "BinaryClassificationExperiment",
    "ClassificationExperiment",
    "Forward",
    "GANExperiment",
    "LanguageModelExperiment",
    "Learner",
    "MultilabelClassificationExperiment",
    "Objective",
    "Options",
    "RegressionExperiment",
    "VAEExperiment",
]
