"""Watch what a loop of one's own compiles."""

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from solstice._arguments import function, function_or_none, whole_or_none
from solstice._engine._compiles import Compilation, Reasons, compiled_so_far, kinds_of
from solstice.callbacks._compile_monitor import check_budget

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger = logging.getLogger("solstice")


def watch_compiles(
    step: Callable[_P, _T],
    *,
    max_compiles: int | None = None,
    report: Callable[[Compilation], Any] | None = None,
) -> Callable[_P, _T]:
    """`step = solstice.watch_compiles(eqx.filter_jit(step), max_compiles=2)`: say why it compiles.

    For a loop of your own; in a `Trainer`, `solstice.callbacks.CompileMonitor` does it. Each call
    in which something was compiled is reported with the leaf that is unlike the calls before: an
    array's shape, dtype or weak type; a Python number or a function, by its path among the
    arguments, as in `[0].count`.

    Args:
        step: any function, compiled by `jax.jit` or `equinox.filter_jit`, or one that calls such.
        max_compiles: calls that may compile; None for any number.
        report: called with each `Compilation`; left out, a line to the standard logger "solstice".

    Returns:
        A function that does the same as `step`.

    Raises:
        CompileBudgetError: after a call, if more have compiled.
    """
    function("step", step, "step=eqx.filter_jit(step)")
    most = whole_or_none("max_compiles", max_compiles, 0, "calls")
    say = function_or_none("report", report, "report=print") or _log
    name = str(getattr(step, "__name__", type(step).__name__))
    compilations: list[Compilation] = []
    reasons = Reasons()

    @functools.wraps(step)
    def watched(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        count, seconds = compiled_so_far()
        result = step(*args, **kwargs)
        now = compiled_so_far()
        if now[0] > count:
            why = reasons.of(name, {**kinds_of(args), **kinds_of(kwargs)})
            compilations.append(Compilation(name, now[1] - seconds, why))
            say(compilations[-1])
            check_budget(compilations, most)
        return result

    return watched


def _log(compilation: Compilation) -> None:
    logger.info("%s", compilation)
