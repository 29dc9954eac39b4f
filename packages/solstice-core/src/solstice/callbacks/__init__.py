"""Ready-made callbacks, written against the public `solstice.Callback`."""

from solstice._monitor import Monitor
from solstice._saver import Saver
from solstice.callbacks._checkpoint import Checkpoint
from solstice.callbacks._compile_monitor import CompileMonitor
from solstice.callbacks._early_stopping import EarlyStopping
from solstice.callbacks._flight_recorder import FlightRecorder
from solstice.callbacks._lock import is_locked as is_locked
from solstice.callbacks._logging import Logging
from solstice.callbacks._monitors import DeviceMemory, LearningRate, NormMonitor, Throughput
from solstice.callbacks._nan_guard import NaNGuard
from solstice.callbacks._profiler import Profiler
from solstice.callbacks._progress import ProgressBar
from solstice.callbacks._prune import Prune
from solstice.callbacks._trace import Trace
from solstice.history import History

__all__ = [
    "Checkpoint",
    "CompileMonitor",
    "DeviceMemory",
    "EarlyStopping",
    "FlightRecorder",
    "History",
    "LearningRate",
    "Logging",
    "Monitor",
    "NaNGuard",
    "NormMonitor",
    "Profiler",
    "ProgressBar",
    "Prune",
    "Saver",
    "Throughput",
    "Trace",
]
