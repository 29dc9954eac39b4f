"""Checks of monitored metrics: a missing one is an error before the first step."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import numpy as np

from solstice._callback import Callback
from solstice._console import warn
from solstice._engine import PROGRAMS, Traced, metrics_like, unpack
from solstice._experiment import Experiment, steps_epochs
from solstice._loop._due import overrides_hook
from solstice._mapped import alone
from solstice._metrics import Metrics, by_name
from solstice._monitor import no_metric, no_scalar, no_validation
from solstice._per_member import is_vector
from solstice._types import MODES

_STEPS = {"train": "train_step", "val": "eval_step"}


@dataclass(frozen=True)
class _Expected:
    """The metrics of a step.

    Attributes:
        axes: the number of axes of each, by name.
        is_certain: whether the names cannot depend on the values.
    """

    axes: dict[str, int]
    is_certain: bool


def check_monitors(callbacks: Sequence[Callback], steps: Mapping[str, object]) -> None:
    """Refuses a callback's `monitor`, such as "val/los", that is not a metric of the steps.

    A missing metric in `only=` is a warning.

    Args:
        callbacks: all callbacks of the run. Names from `measure` are unknown before it runs.
        steps: the steps by name, as in `Computation.steps`.

    Raises:
        KeyError: there is no such metric; the message lists the metrics.
        ValueError: the metric is an array, or a callback does not see it.
    """
    for callback in callbacks:
        _check_modes(callback)
    watched = [c for c in callbacks if isinstance(_asked(c, "monitor"), str) or _asked(c, "_only")]
    if not watched:
        return
    measured = any(overrides_hook(callback, "measure") for callback in callbacks)
    modes = {mode: step for mode, step in _STEPS.items() if step in steps}
    there = {mode: _expected(steps[step]) for mode, step in modes.items()}
    for callback in watched:
        mode, _, name = str(_asked(callback, "monitor")).partition("/")
        expected = there.get(mode)
        if expected and name and (name in expected.axes or not (measured and mode == "train")):
            _check(callback, mode, name, expected)
        if not measured:
            _check_only(callback, there)


def check_own_monitor(experiment: Experiment, steps: Mapping[str, object]) -> None:
    """Refuses the `monitor` of an Experiment if its `epoch_step` cannot have the metric.

    Args:
        experiment: the Experiment of the run.
        steps: the steps by name, as in `Computation.steps`.

    Raises:
        KeyError: there is no such metric; the message lists the metrics.
        ValueError: it is a metric of the validation, and there is none.
    """
    monitor, who = getattr(experiment, "monitor", None), type(experiment).__name__
    if not steps_epochs(experiment) or not isinstance(monitor, str):
        return
    mode, _, name = monitor.partition("/")
    if mode in _STEPS and _STEPS[mode] not in steps:
        raise ValueError(no_validation(who, monitor))
    expected = _expected(steps[_STEPS[mode]]) if mode in _STEPS else None
    if expected is not None and name not in expected.axes:
        _refuse(who, monitor, expected)


def _check_modes(callback: Callback) -> None:
    """Refuses `modes` without one that a callback needs, because its hooks would not be called."""
    needed = dict[str, str]()
    mode = str(_asked(callback, "monitor")).partition("/")[0]
    if mode in _STEPS:
        needed[mode] = f"monitors {_asked(callback, 'monitor')!r}"
        if overrides_hook(callback, "on_fit_start"):
            needed.setdefault("train", "starts with `fit`")
    if callback.saves:
        needed.setdefault("train", "saves the training")
    missing = next((mode for mode in needed if mode not in callback.modes), None)
    if missing is not None:
        modes = tuple(mode for mode in MODES if mode in {*callback.modes, *needed})
        line = f"modes = {modes}".replace("'", '"')
        raise ValueError(
            f"{type(callback).__name__}.modes is {tuple(callback.modes)}, without {missing!r}, and "
            f"it {needed[missing]}: write `{line}`"
        )


def _asked(callback: Callback, name: str) -> Any:
    return getattr(callback, name, None)


def _check_only(callback: Callback, there: Mapping[str, _Expected | None]) -> None:
    """Warns of names in `only=` that no step gives, because they would silently show nothing."""
    names = {name for expected in there.values() if expected for name in expected.axes}
    missing = [name for name in _asked(callback, "_only") or () if name not in names]
    # A step whose metrics are unknown may give the missing one.
    if missing and all(there.values()):
        close = difflib.get_close_matches(str(missing[0]), names, 1)
        warn(
            f"{type(callback).__name__}(only=...) asks for {missing[0]!r}, and no step of this run "
            f"gives such a metric; there are: {', '.join(sorted(names)) or 'none'}"
            + (f"; did you mean {close[0]!r}?" if close else ""),
            stacklevel=7,
        )


def _check(callback: Callback, mode: str, name: str, expected: _Expected) -> None:
    who, monitor = type(callback).__name__, f"{mode}/{name}"
    if expected.axes.get(name, 0) > 0:
        raise ValueError(no_scalar(who, monitor, expected.axes[name]))
    if name not in expected.axes:
        _refuse(who, monitor, expected)


def _refuse(who: str, monitor: str, expected: _Expected) -> None:
    """Raises a KeyError for a metric that does not exist; warns if it may."""
    message = no_metric(who, monitor, expected.axes)
    if expected.is_certain:
        raise KeyError(message)
    warn(f"{message}. `compute` may give other names for other values", stacklevel=7)


def _expected(step: object) -> _Expected | None:
    """The metrics of a step; None if they are unknown before it runs."""
    return _names(step) if isinstance(step, Traced) else None


@lru_cache(maxsize=PROGRAMS)
def _names(step: Traced) -> _Expected | None:
    like: Any = unpack(metrics_like(step))
    if like is None:
        return _Expected({}, is_certain=True)
    # Names from shapes alone are certain; names from ones may differ for other values.
    for compute, is_certain in [(_of_shapes, True), (_of_ones, False)]:
        try:
            return _Expected(compute(like), is_certain)
        except Exception:  # of the user's `compute`, which may need real values
            continue
    return None


def _of_shapes(like: Metrics) -> dict[str, int]:
    """The metrics computed from shapes alone, so their names cannot depend on values."""
    found: dict[str, int] = {}

    def compute(metrics: Metrics) -> None:
        found.update(_axes(metrics))

    eqx.filter_eval_shape(compute, alone(like))
    return found


def _of_ones(like: Metrics) -> dict[str, int]:
    """The metrics computed from ones, for a `compute` that needs NumPy or Python values."""
    # Warnings about ones say nothing about the user's run.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _axes(jax.tree.map(_ones, like))


def _ones(leaf: Any) -> Any:
    return np.ones(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _axes(metrics: Metrics) -> dict[str, int]:
    values = by_name(metrics.compute())
    return {name: 0 if is_vector(value) else np.ndim(value) for name, value in values.items()}
