"""CompileMonitor: logs and limits the compilations of a run."""

from solstice._arguments import whole_or_none
from solstice._callback import Callback
from solstice._compiles import check_budget
from solstice._console import say
from solstice._record import Compilation, Record


class CompileMonitor(Callback):
    """`CompileMonitor(max_compiles=2)`: log each compilation with its reason, and limit them.

    Each compilation is one line in the standard logger "solstice", with the path of the leaf whose
    shape, dtype, weak type or value has changed. A run needs one program for training, one for
    evaluation, and one more of each if the last batch is smaller. `solstice.watch_compiles` does
    the same for your own loop.

    Args:
        max_compiles: the most compilations allowed in a run, 0 or more; None for no limit.

    Attributes:
        compilations: the compilations of the newest run.

    Raises:
        ValueError: `max_compiles` is not a whole number of 0 or more.
        CompileBudgetError: in a run, there were more compilations.
    """

    every = None

    def __init__(self, *, max_compiles: int | None = None) -> None:
        self.max_compiles = whole_or_none("max_compiles", max_compiles, 0, "programs")
        self.compilations: list[Compilation] = []

    def on_fit_start(self, record: Record) -> None:
        """Clears `compilations`, because a run has its own limit."""
        self.compilations = []

    def on_compile(self, record: Record) -> None:
        """Logs the compilation, and raises a CompileBudgetError above the limit."""
        self.compilations.append(record.compilation)
        say(f"{record.compilation}, by step {record.step}")
        check_budget(self.compilations, self.max_compiles)
