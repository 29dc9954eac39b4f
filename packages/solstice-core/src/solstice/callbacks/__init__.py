"""Ready-made callbacks, each on the public `solstice.Callback`."""

from solstice.callbacks._checkpoint import Checkpoint
from solstice.callbacks._early_stopping import EarlyStopping
from solstice.callbacks._flight_recorder import FlightRecorder
from solstice.callbacks._history import History
from solstice.callbacks._logging import Logging
from solstice.callbacks._nan_guard import NaNGuard
from solstice.callbacks._progress import ProgressBar

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "FlightRecorder",
    "History",
    "Logging",
    "NaNGuard",
    "ProgressBar",
]
