"""Ready-made Experiments, written against the protocols of `solstice.compat` alone."""

from solstice.experiments._autoencoder import AutoencoderExperiment, VAEExperiment
from solstice.experiments._checks import counted
from solstice.experiments._classification import (
    BinaryClassificationExperiment,
    ClassificationExperiment,
    MultilabelClassificationExperiment,
)
from solstice.experiments._gan import GANExperiment
from solstice.experiments._gradients import Forward, Objective
from solstice.experiments._language import LanguageModelExperiment
from solstice.experiments._learner import Learner
from solstice.experiments._per_example import PerExample
from solstice.experiments._per_example import contributions_of as contributions_of
from solstice.experiments._ready_made import ReadyMadeExperiment
from solstice.experiments._regression import RegressionExperiment
from solstice.experiments._supervised import Options, SupervisedExperiment
from solstice.experiments._task import Task, elementwise
from solstice.experiments._task_batch import check_losses as check_losses

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
    "PerExample",
    "ReadyMadeExperiment",
    "RegressionExperiment",
    "SupervisedExperiment",
    "Task",
    "VAEExperiment",
    "counted",
    "elementwise",
]
