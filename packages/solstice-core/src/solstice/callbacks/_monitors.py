"""Callbacks that add metrics: learning rate, norms, throughput and device memory."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import jax

from solstice._arguments import function_or_none, number, whole
from solstice._callback import Callback
from solstice._experiment import Experiment, params_of
from solstice._rates import injected_rates, rates_by_name, updates_by_name
from solstice._record import Record, Times
from solstice.callbacks._members import as_metric, population_of
from solstice.compat import Norms, norms_of


class LearningRate(Callback):
    """`LearningRate()` or `LearningRate(schedule)`: add the metric "lr" of the newest step.

    Without arguments, the rate is read from the state of `optax.inject_hyperparams`. A schedule is
    called with the optimiser's number of updates: the count of Optax's schedule state, else the
    largest `count` in a field `opt_state`, else the number of training steps. With several such
    states, as in a GAN, there is one metric for each, named by its path.

    Args:
        schedule: the learning rate of the optimiser: a function from the number of updates to the
            rate, such as `optax.cosine_decay_schedule(1e-3, 1000)`, or a number.

    Raises:
        ValueError: `schedule` is neither a function nor a number; or, at the start of a run, there
            is no schedule and the Experiment has no rate.
    """

    every = None
    modes = ("train",)

    def __init__(self, schedule: Callable[[int], Any] | float | None = None) -> None:
        self._schedule = schedule if callable(schedule) else _rate(schedule)

    def on_fit_start(self, record: Record) -> None:
        """Raises a ValueError if there is no learning rate to read."""
        if self._schedule is None and not injected_rates(record.experiment):
            raise ValueError(
                "LearningRate() finds no learning rate in the Experiment: give it the schedule, "
                "`LearningRate(schedule)`, or create the optimiser with "
                "`optax.inject_hyperparams(optax.adam)(learning_rate=schedule)`"
            )

    def measure(self, record: Record) -> Mapping[str, Any]:
        """The metric "lr", or one metric for each optimiser."""
        if self._schedule is None:
            rates: Any = jax.device_get(rates_by_name(record.experiment))
            return {name: as_metric(rate, record.experiment) for name, rate in rates.items()}
        if not callable(self._schedule):
            return {"lr": float(self._schedule)}
        updates = updates_by_name(record.experiment, record.step)
        # The newest update was made with the count before it.
        with _numbers_allowed():
            found: Any = {name: self._schedule(max(n - 1, 0)) for name, n in updates.items()}
        return {name: float(rate) for name, rate in jax.device_get(found).items()}


class NormMonitor(Callback):
    """`NormMonitor()`: add the metrics "param_norm", and maybe "grad_norm" and "update_norm".

    Those of a population have a value for each member.

    They are Euclidean norms of all params, and of each subtree, as in "param_norm/encoder". Only
    the optimiser sees gradients and updates: wrap it in `solstice.compat.track_norms(optimizer)`
    to add their norms at the newest step.

    Args:
        params: function from the Experiment, or a member, to its params. By default `exp.params` or
            `exp.learner.params`, else all floating-point arrays.
        depth: number of levels of subtrees with their own norm; 0 for the total only.

    Raises:
        ValueError: `depth` is not a whole number of 0 or more.
        TypeError: `params` is not a function.
    """

    every = None

    def __init__(self, params: Callable[[Any], Any] | None = None, *, depth: int = 1) -> None:
        self._depth = whole("depth", depth, 0, "levels")
        given = function_or_none("params", params, "params=lambda exp: exp.params")
        self._params = given or params_of

    def measure(self, record: Record) -> Mapping[str, Any]:
        """The norms by name and subtree."""
        with _numbers_allowed():
            norms = {"param_norm": self._norms(record.experiment)}
        for found in _find(record.experiment, Norms):
            norms |= {"grad_norm": found.gradient, "update_norm": found.update}
        read: Any = jax.device_get(norms)
        return {
            f"{name}/{part}" if part else name: as_metric(value, record.experiment)
            for name, parts in read.items()
            for part, value in parts.items()
        }

    def _norms(self, experiment: Experiment) -> dict[str, Any]:
        population = population_of(experiment)
        if population is None:
            return norms_of(self._params(experiment), self._depth)
        return jax.vmap(partial(norms_of, depth=self._depth))(self._params(population.members))


class Throughput(Callback):
    """`Throughput()`: add "steps_per_second", "examples_per_second" and shares of time.

    They cover the training since the last measurement, without validations. Two measurements at one
    step, as of the last step and of its epoch, are the same. "time_data",
    "time_copy", "time_dispatch" and "time_device" are the fractions of time, from 0 to 1, of the
    parts in `record.times`; the rest is Python and callbacks. If "time_data" is large, the data set
    is the bottleneck: see `prefetch=` of the Trainer.
    """

    every = None
    modes = ("train", "val")

    def on_epoch_start(self, record: Record) -> None:
        """Starts the clock at the first epoch, and stops it during evaluations."""
        now = time.perf_counter()
        if record.mode != "train":
            self._paused_at = now
        elif record.epoch_step == 0 or not hasattr(self, "_since"):
            self._measured: dict[str, float] = {}
            self._begin(record, now)

    def on_epoch_end(self, record: Record) -> None:
        """Restarts the clock after an evaluation."""
        if record.mode != "train" and hasattr(self, "_since"):
            self._since += time.perf_counter() - self._paused_at

    def measure(self, record: Record) -> Mapping[str, Any]:
        """The rates and shares since the last measurement."""
        if record.step == self._step and self._measured:
            return self._measured
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        spent, before = vars(record.times), vars(self._times)
        shares = {f"time_{name}": (spent[name] - before[name]) / seconds for name in spent}
        self._measured = {
            "steps_per_second": (record.step - self._step) / seconds,
            "examples_per_second": (record.num_examples - self._examples) / seconds,
            **shares,
        }
        self._begin(record, now)
        return self._measured

    def _begin(self, record: Record, now: float) -> None:
        self._since, self._step, self._examples = now, record.step, record.num_examples
        # A copy, because the run goes on adding to its times.
        self._times = Times(**vars(record.times))


class DeviceMemory(Callback):
    """`DeviceMemory()`: add the metric "memory_bytes", of the device with the most memory in use.

    It is the peak of the device's own statistics, in bytes. Without statistics, as on the CPU, it
    is the current size of all JAX arrays, which excludes the temporary memory of running programs.
    """

    every = None

    def measure(self, record: Record) -> Mapping[str, Any]:
        """The metric "memory_bytes", an integer."""
        del record
        devices = cast("list[Any]", jax.local_devices())
        stats = [device.memory_stats() for device in devices]
        if all(s and "peak_bytes_in_use" in s for s in stats):
            return {"memory_bytes": max(s["peak_bytes_in_use"] for s in stats)}
        arrays = cast("list[Any]", jax.live_arrays())
        return {"memory_bytes": sum(array.nbytes for array in arrays)}


def _numbers_allowed() -> AbstractContextManager[None]:
    """Allows calculations with Python numbers, which JAX counts as implicit transfers."""
    return cast("Any", jax.transfer_guard_host_to_device("allow"))


def _rate(schedule: object) -> float | None:
    return None if schedule is None else number("schedule", schedule, "a function or a number")


def _find(tree: object, kind: type) -> list[Any]:
    def is_one(node: object) -> bool:
        return isinstance(node, kind)

    leaves: list[Any] = jax.tree.leaves(tree, is_leaf=is_one)
    return [leaf for leaf in leaves if is_one(leaf)]
