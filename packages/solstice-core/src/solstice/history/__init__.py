"""`trainer.history`: the metrics of a run as a table and a plot, and comparison of runs."""

from solstice.history._compare import compare
from solstice.history._history import History
from solstice.history._read import read_history

__all__ = ["History", "compare", "read_history"]
