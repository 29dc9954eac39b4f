"""Tell what is compiled, and why."""

import logging

from solstice._arguments import whole_or_none
from solstice._callback import Callback
from solstice._engine._compiles import Compilation
from solstice._errors import CompileBudgetError
from solstice._record import Record

logger = logging.getLogger("solstice")


class CompileMonitor(Callback):
    """`CompileMonitor(max_compiles=2)`: tell of each program that is compiled, and why.

    A line to the standard logger "solstice" for each, with the leaf whose shape, dtype, weak type
    or value is another than before, by its path. A run needs one program for training, one for
    evaluating, and one more of each where the last batch is smaller. `solstice.watch_compiles` does
    the same for a loop of your own.

    Args:
        max_compiles: how many there may be in a run; None for any number.

    Attributes:
        compilations: those of the newest run.

    Raises:
        ValueError: `max_compiles` is not a whole number from 0 on.
        CompileBudgetError: there were more.
    """

    every = None

    def __init__(self, *, max_compiles: int | None = None) -> None:
        self.max_compiles = whole_or_none("max_compiles", max_compiles, 0, "programs")
        self.compilations: list[Compilation] = []

    def on_fit_start(self, record: Record) -> None:
        """Begins anew."""
        self.compilations = []

    def on_compile(self, record: Record) -> None:
        """Tells, and counts."""
        self.compilations.append(record.compilation)
        logger.info("%s, by step %d", record.compilation, record.step)
        check_budget(self.compilations, self.max_compiles)


def check_budget(compilations: list[Compilation], most: int | None) -> None:
    """Raises a CompileBudgetError where there are too many."""
    if most is not None and len(compilations) > most:
        listed = "".join(f"\n  {compilation}" for compilation in compilations)
        raise CompileBudgetError(
            f"{len(compilations)} programs were compiled, and max_compiles={most}:{listed}"
        )
