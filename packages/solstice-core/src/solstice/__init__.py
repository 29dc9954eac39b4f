"""Solstice organises JAX deep-learning code: Experiment, Metrics, Trainer, for any framework."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from solstice._callback import Callback, Phase
from solstice._digests import Digests
from solstice._engine import run_steps
from solstice._errors import (
    CompileBudgetError,
    DataError,
    ExperimentError,
    ExportError,
    PeerError,
    PeerFailed,
    PeerMismatch,
    PeerMissing,
    ShardingError,
)
from solstice._experiment import Experiment
from solstice._metrics import Metrics
from solstice._record import Compilation, Record, Snapshot, Stop, Times
from solstice._replace import replace
from solstice._train import test, train
from solstice._trainer import Trainer

if TYPE_CHECKING:
    from solstice import (
        callbacks,
        checkpoint,
        compat,
        data,
        distributed,
        experiments,
        history,
        inspect,
        layouts,
        loggers,
        metrics,
        population,
        resampling,
        runs,
    )
    from solstice._comparison import Comparison, Difference, compare_models
    from solstice._exporting import (
        ExportedMetrics,
        ExportedRun,
        export,
        export_predict,
        exported,
    )
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
    from solstice.layouts import convert
    from solstice.metrics import ClassificationMetrics
    from solstice.population import Evolve, Population, grid
    from solstice.resampling import Resampled
    from solstice.runs import RunDiff, at, blame, diff

try:
    __version__ = _version("solstice-core")
except _PackageNotFoundError:  # the sources are on the path of Python, and are not installed
    __version__ = "0+source"

_LAZY = {
    "_comparison": "Comparison Difference compare_models",
    "_exporting": "ExportedMetrics ExportedRun export export_predict exported",
    "callbacks": "",
    "checkpoint": "",
    "compat": "",
    "data": "",
    "distributed": "",
    "experiments": "AutoencoderExperiment BinaryClassificationExperiment ClassificationExperiment "
    "GANExperiment LanguageModelExperiment MultilabelClassificationExperiment "
    "RegressionExperiment VAEExperiment",
    "history": "History compare read_history",
    "inspect": "Replay find_learning_rate plan replay summary watch_compiles",
    "layouts": "convert",
    "loggers": "",
    "metrics": "ClassificationMetrics",
    "population": "Evolve Population grid",
    "resampling": "Resampled",
    "runs": "RunDiff at blame diff",
}
"""The ready-made parts, which load on first use, and their names here."""

_HOMES = {name: module for module, names in _LAZY.items() for name in names.split()}

__all__ = [
    "AutoencoderExperiment",
    "BinaryClassificationExperiment",
    "Callback",
    "ClassificationExperiment",
    "ClassificationMetrics",
    "Comparison",
    "Compilation",
    "CompileBudgetError",
    "DataError",
    "Difference",
    "Digests",
    "Evolve",
    "Experiment",
    "ExperimentError",
    "ExportError",
    "ExportedMetrics",
    "ExportedRun",
    "GANExperiment",
    "History",
    "LanguageModelExperiment",
    "Metrics",
    "MultilabelClassificationExperiment",
    "PeerError",
    "PeerFailed",
    "PeerMismatch",
    "PeerMissing",
    "Phase",
    "Population",
    "Record",
    "RegressionExperiment",
    "Replay",
    "Resampled",
    "RunDiff",
    "ShardingError",
    "Snapshot",
    "Stop",
    "Times",
    "Trainer",
    "VAEExperiment",
    "at",
    "blame",
    "callbacks",
    "checkpoint",
    "compare",
    "compare_models",
    "compat",
    "convert",
    "data",
    "diff",
    "distributed",
    "experiments",
    "export",
    "export_predict",
    "exported",
    "find_learning_rate",
    "grid",
    "history",
    "inspect",
    "layouts",
    "loggers",
    "metrics",
    "plan",
    "population",
    "read_history",
    "replace",
    "replay",
    "resampling",
    "run_steps",
    "runs",
    "summary",
    "test",
    "train",
    "watch_compiles",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return _import_module(f"solstice.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'solstice' has no attribute {name!r}")
    # Kept here, so that the next use is a plain lookup.
    globals()[name] = found = getattr(_import_module(f"solstice.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
