"""Watcher of compilations in a hand-written loop."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from solstice._arguments import function, function_or_none, whole_or_none
from solstice._compiles import Reasons, check_budget, compiled_so_far, kinds_of
from solstice._console import say
from solstice._record import Compilation

_P = ParamSpec("_P")
_T = TypeVar("_T")


def watch_compiles(
    step: Callable[_P, _T],
    *,
    max_compiles: int | None = None,
    report: Callable[[Compilation], Any] | None = None,
) -> Callable[_P, _T]:
    """`step = solstice.watch_compiles(eqx.filter_jit(step), max_compiles=2)`: report compilations.

    It is for your own loop; for a `Trainer`, use `solstice.callbacks.CompileMonitor`. Each call
    with a compilation is reported with the leaf that differs from earlier calls (in an array's
    shape, dtype or weak type, or in a Python number or a function), by its path among the
    arguments, as in `[0].count`.

    Args:
        step: a function that is compiled by `jax.jit` or `equinox.filter_jit`, or calls one.
        max_compiles: the most calls that may compile, 0 or more; None for no limit.
        report: called with each `Compilation`; by default, the standard logger "solstice" gets a
            line.

    Returns:
        A function with the same arguments and results as `step`.

    Raises:
        TypeError: `step` or `report` is not a function.
        CompileBudgetError: after a call, if more than `max_compiles` calls have compiled.
    """
    function("step", step, "step=eqx.filter_jit(step)")
    most = whole_or_none("max_compiles", max_compiles, 0, "calls")
    reported = function_or_none("report", report, "report=print") or _log
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
            reported(compilations[-1])
            check_budget(compilations, most)
        return result

    return watched


def _log(compilation: Compilation) -> None:
    say(str(compilation))
