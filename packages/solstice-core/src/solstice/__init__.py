"""Solstice organises JAX deep-learning code: Experiment, Metrics, Trainer, for any framework."""

from importlib.metadata import version as _version

from solstice import (
    callbacks,
    checkpoint,
    compat,
    data,
    experiments,
    history,
    inspect,
    loggers,
    metrics,
)
from solstice._callback import Callback, Phase
from solstice._engine import run_steps
from solstice._errors import CompileBudgetError, DataError, ExperimentError
from solstice._experiment import Experiment
from solstice._metrics import Metrics
from solstice._record import Compilation, Record, Snapshot, Stop, Times
from solstice._replace import replace
from solstice._train import test, train
from solstice._trainer import Trainer
from solstice.experiments import (
    AutoencoderExperiment,
    BinaryClassificationExperiment,
    ClassificationExperiment,
    GANExperiment,
    LanguageModelExperiment,
    MultilabelClassificationExperiment,
    RegressionExperiment,
    VAEExperiment,
)
from solstice.history import History, compare, read_history
from solstice.inspect import (
    Replay,
    find_learning_rate,
    plan,
    replay,
    summary,
    watch_compiles,
)
from solstice.metrics import ClassificationMetrics

__version__ = _version("solstice-core")

__all__ = [
    "AutoencoderExperiment",
    "BinaryClassificationExperiment",
    "Callback",
    "ClassificationExperiment",
    "ClassificationMetrics",
    "Compilation",
    "CompileBudgetError",
    "DataError",
    "Experiment",
    "ExperimentError",
    "GANExperiment",
    "History",
    "LanguageModelExperiment",
    "Metrics",
    "MultilabelClassificationExperiment",
    "Phase",
    "Record",
    "RegressionExperiment",
    "Replay",
    "Snapshot",
    "Stop",
    "Times",
    "Trainer",
    "VAEExperiment",
    "callbacks",
    "checkpoint",
    "compare",
    "compat",
    "data",
    "experiments",
    "find_learning_rate",
    "history",
    "inspect",
    "loggers",
    "metrics",
    "plan",
    "read_history",
    "replace",
    "replay",
    "run_steps",
    "summary",
    "test",
    "train",
    "watch_compiles",
]
