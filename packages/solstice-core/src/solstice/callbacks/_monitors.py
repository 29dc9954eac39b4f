"""Callbacks that measure: what they find is among the training metrics of all others."""

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax

from solstice._arguments import function_or_none, number, whole
from solstice._callback import Callback
from solstice._engine._times import Times
from solstice._experiment import params_of
from solstice._rates import injected_rates, rates_by_name, updates_by_name
from solstice._record import Record
from solstice.compat import Norms, norms_of


class LearningRate(Callback):
    """`LearningRate()` or `LearningRate(schedule)`: the metric "lr", that of the newest step.

    Without arguments it is read from the state of `optax.inject_hyperparams`. With several such
    states there is one metric for each, named by its path. A schedule is called with the number of
    updates that the optimiser has counted: that of its schedule in Optax, else the largest `count`
    in a field named `opt_state`; or the training steps where nothing counts. Where several
    optimisers count, as those of a GAN, there is one metric for each, named by its path.

    Args:
        schedule: what the optimiser was made with: a function from the update to the rate, such as
            `optax.cosine_decay_schedule(1e-3, 1000)`, or a number.

    Raises:
        ValueError: `schedule` is neither a function nor a number; or, at the start of a run, the
            rate is neither given nor to be found.
    """

    every = None

    def __init__(self, schedule: Callable[[int], Any] | float | None = None) -> None:
        self._schedule = schedule if callable(schedule) else _rate(schedule)

    def on_fit_start(self, record: Record) -> None:
        """Looks whether there is a rate."""
        if (
            record.mode == "train"
            and self._schedule is None
            and not injected_rates(record.experiment)
        ):
            raise ValueError(
                "LearningRate() finds no learning rate in the Experiment: give it the schedule, "
                "`LearningRate(schedule)`, or make the optimiser with "
                "`optax.inject_hyperparams(optax.adam)(learning_rate=schedule)`"
            )

    def measure(self, record: Record) -> Mapping[str, Any]:
        """Reads the rate."""
        if self._schedule is None:
            return {name: float(rate) for name, rate in rates_by_name(record.experiment).items()}
        if not callable(self._schedule):
            return {"lr": float(self._schedule)}
        updates = updates_by_name(record.experiment, record.step)
        return {name: float(self._schedule(max(n - 1, 0))) for name, n in updates.items()}


class NormMonitor(Callback):
    """`NormMonitor()`: the metric "param_norm"; by `track_norms`, "grad_norm" and "update_norm".

    Euclidean norms of all params, and of each subtree, as in "param_norm/encoder". Gradients and
    updates are seen by the optimiser alone: wrap it, `solstice.compat.track_norms(optimizer)`, and
    they are those of the newest step.

    Args:
        params: what to take the params from; left out, `exp.params` or `exp.learner.params`, and
            else all floating-point arrays.
        depth: how deep subtrees are told apart; 0 for the whole alone.

    Raises:
        ValueError: `depth` is not a whole number from 0 on.
        TypeError: `params` is not a function.
    """

    every = None

    def __init__(self, params: Callable[[Any], Any] | None = None, *, depth: int = 1) -> None:
        self._depth = whole("depth", depth, 0, "levels")
        given = function_or_none("params", params, "params=lambda exp: exp.params")
        self._params = given or params_of

    def measure(self, record: Record) -> Mapping[str, Any]:
        """Computes the norms, and reads them back."""
        norms = {"param_norm": norms_of(self._params(record.experiment), self._depth)}
        for found in _find(record.experiment, Norms):
            norms |= {"grad_norm": found.gradient, "update_norm": found.update}
        read: Any = jax.device_get(norms)
        return {
            f"{name}/{part}" if part else name: float(value)
            for name, parts in read.items()
            for part, value in parts.items()
        }


class Throughput(Callback):
    """`Throughput()`: the metrics "steps_per_second", "examples_per_second" and shares of time.

    They cover the training since they were last measured, without validations. "time_data",
    "time_copy", "time_dispatch" and "time_device" are the shares, from 0 to 1, that went into what
    `record.times` describes; the rest is Python and callbacks. If "time_data" is large, the data
    set is what is slow: see `prefetch=` of the Trainer.
    """

    every = None

    def on_epoch_start(self, record: Record) -> None:
        """Begins to count, and stops counting while something is evaluated."""
        now = time.perf_counter()
        if record.mode != "train":
            self._paused_at = now
        elif record.epoch_step == 0 or not hasattr(self, "_since"):
            self._begin(record, now)

    def on_epoch_end(self, record: Record) -> None:
        """Counts on after an evaluation."""
        if record.mode != "train" and hasattr(self, "_since"):
            self._since += time.perf_counter() - self._paused_at

    def measure(self, record: Record) -> Mapping[str, Any]:
        """Divides, and begins anew."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        spent, before = vars(record.times), vars(self._times)
        shares = {f"time_{name}": (spent[name] - before[name]) / seconds for name in spent}
        measured = {
            "steps_per_second": (record.step - self._step) / seconds,
            "examples_per_second": (record.num_examples - self._examples) / seconds,
            **shares,
        }
        self._begin(record, now)
        return measured

    def _begin(self, record: Record, now: float) -> None:
        self._since, self._step, self._examples = now, record.step, record.num_examples
        self._times = Times(**vars(record.times))


class DeviceMemory(Callback):
    """`DeviceMemory()`: the metric "memory_bytes", of the fullest device.

    It is what the device says that its programs have taken at the most. Where it does not say, as
    on the CPU, it is the size of all JAX arrays at the moment, which leaves out what a program
    takes while it runs.
    """

    every = None

    def measure(self, record: Record) -> Mapping[str, Any]:
        """Asks the devices."""
        del record
        devices = cast("list[Any]", jax.local_devices())
        stats = [device.memory_stats() for device in devices]
        if all(s and "peak_bytes_in_use" in s for s in stats):
            return {"memory_bytes": max(s["peak_bytes_in_use"] for s in stats)}
        arrays = cast("list[Any]", jax.live_arrays())
        return {"memory_bytes": sum(array.nbytes for array in arrays)}


def _rate(schedule: Any) -> float | None:
    return None if schedule is None else number("schedule", schedule, "a function or a number")


def _find(tree: Any, kind: type) -> list[Any]:
    def is_one(node: Any) -> bool:
        return isinstance(node, kind)

    leaves: list[Any] = jax.tree.leaves(tree, is_leaf=is_one)
    return [leaf for leaf in leaves if is_one(leaf)]
