"""What a step costs, from shapes alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import choice, positive
from solstice._engine._cost import cost_of
from solstice._engine._program import prepare, type_of
from solstice._experiment import Experiment
from solstice._types import Batch
from solstice.data._arrays import arrays_of
from solstice.inspect._memory import footprint, nbytes
from solstice.inspect._summary import size_text


@dataclass(frozen=True)
class StepPlan:
    """`print(solstice.plan(exp, batch))`: what one step costs.

    Attributes:
        name: what is planned, such as "Classifier.train_step".
        flops: floating-point operations, about.
        state_bytes: the arrays of the Experiment: params, optimiser state and all else.
        batch_bytes: the arrays of the batch.
        output_bytes: what the step makes and returns: metrics, and the Experiment where it is not
            written over the one before.
        temporary_bytes: the most that is needed at one time beside these: activations, gradients.
        peak_bytes: the sum of the four.
        moved_bytes: what is read from memory and written to it, about.
        seconds: the longer of the times that the operations and the memory traffic take at the
            rates given. A step that is made of many small operations takes longer.
    """

    name: str
    flops: int
    state_bytes: int
    batch_bytes: int
    output_bytes: int
    temporary_bytes: int
    peak_bytes: int
    moved_bytes: int
    seconds: float

    def __str__(self) -> str:
        sizes = {
            "state": self.state_bytes,
            "batch": self.batch_bytes,
            "outputs": self.output_bytes,
            "temporary": self.temporary_bytes,
            "peak": self.peak_bytes,
        }
        rows = [("operations", _flops_text(self.flops))]
        rows += [(name, size_text(size)) for name, size in sizes.items()]
        rows += [("memory traffic", size_text(self.moved_bytes))]
        rows += [("time, about", _time(self.seconds))]
        width = max(len(value) for _, value in rows)
        lines = [f"  {name:<14}  {value:>{width}}" for name, value in rows]
        return "\n".join([f"{self.name}, one step", *lines])

    __repr__ = __str__


def plan(
    experiment: Experiment | Callable[[], Experiment],
    batch: Batch,
    *,
    method: str = "train_step",
    flops_per_second: float | None = None,
    bytes_per_second: float | None = None,
) -> StepPlan:
    """`print(solstice.plan(exp, batch))`: operations, memory and time of a step, before it runs.

    ```python
    x = jax.ShapeDtypeStruct((32, 2048), "int32")
    print(solstice.plan(lambda: MyExperiment(layers=32, width=4096), (x, x)))
    ```

    The step is traced, not compiled, and no array of the Experiment is made. The peak is by a
    model of how XLA fuses and reuses memory. Of training steps on the CPU it is mostly within 15 %
    of what XLA says when it has compiled them; take it for a rough guide of evaluation, where it
    may be out by a factor of two and more, and on other devices. It is of one step on one device:
    sharding is not considered, nor that a `Trainer` keeps batches for several steps at hand. To
    learn how XLA fuses and how fast the device is, small functions are compiled, once.

    Args:
        experiment: an Experiment, whose leaves may be `jax.ShapeDtypeStruct`s; or a function that
            makes one, which is traced too.
        batch: arrays, or `jax.ShapeDtypeStruct`s in their place. `setup` sees it as it is traced:
            one that reads the numbers of a batch cannot be planned before it has run.
        method: "train_step", whose results are written over the Experiment; "eval_step" or
            "predict_step".
        flops_per_second: the rate of this device; that of a product of matrices if None, which is
            measured once.
        bytes_per_second: the rate of its memory; that of a copy if None, which is measured once.

    Raises:
        DataError: the step cannot unpack the batch.
        ExperimentError: the step returns no pair, or an Experiment of another structure.
        TypeError: `experiment` is neither an Experiment nor a function that makes one.
    """
    choice("method", method, ("train_step", "eval_step", "predict_step"))
    flops_per_second = _rate("flops_per_second", flops_per_second)
    bytes_per_second = _rate("bytes_per_second", bytes_per_second)
    step, types, inputs = _traced(experiment, method, batch)
    closed = cast("Any", jax.make_jaxpr(step.program.packed_call)(types, inputs))
    jaxpr = closed.jaxpr
    donated = len(types) if method == "train_step" else 0
    found = footprint(jaxpr, donated)
    made = {id(v): nbytes(v.aval) for v in jaxpr.outvars[donated:] if v not in jaxpr.invars}
    state = sum(nbytes(v.aval) for v in jaxpr.invars[: len(types)])
    given = sum(nbytes(v.aval) for v in jaxpr.invars[len(types) :])
    output = sum(made.values())
    flops = cost_of(jaxpr).flops
    seconds = max(
        flops / (flops_per_second or _flops_per_second(jax.default_backend())),
        found.moved / (bytes_per_second or _bytes_per_second(jax.default_backend())),
    )
    return StepPlan(
        step.name,
        flops,
        state,
        given,
        output,
        found.temporary,
        state + given + output + found.temporary,
        found.moved,
        seconds,
    )


@dataclass(frozen=True)
class _Step:
    name: str
    program: Any


def _traced(experiment: Any, method: str, batch: Batch) -> tuple[_Step, list[Any], Batch]:
    """The program of a step, and the types of its arrays and of what it sees of the batch."""
    if not isinstance(experiment, Experiment) and not callable(experiment):
        raise TypeError(
            f"experiment must be an Experiment, or a function that makes one; it is "
            f"{experiment!r:.60}"
        )
    leaves, rebuild = _arrays_and_rest((experiment, batch))
    found: list[tuple[_Step, list[Any], Batch]] = []

    def look(leaves: list[Any]) -> None:
        given, batch = rebuild(leaves)
        made = given if isinstance(given, Experiment) else given()
        if not isinstance(made, Experiment):
            raise TypeError(f"the function given to `plan` made {made!r:.60}, no Experiment")
        seen = arrays_of(batch)
        step, _ = prepare(made.setup(batch), method, seen)
        name = f"{type(made).__name__}.{method}"
        types = _tree.map(type_of, seen)
        found.append((_Step(name, step.program), list(step.types), types))

    _tree.eval_shape(look, leaves)  # of an Experiment, JAX would keep the structure
    return found[0]


def _arrays_and_rest(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, abstract ones too, and what puts others in their place."""
    given, structure = _tree.flatten(tree)
    indices = [i for i, leaf in enumerate(given) if _is_abstract_or_array(leaf)]

    def rebuild(arrays: list[Any]) -> Any:
        replaced = dict(zip(indices, arrays, strict=True))
        return _tree.unflatten(structure, [replaced.get(i, leaf) for i, leaf in enumerate(given)])

    return [given[i] for i in indices], rebuild


def _rate(name: str, given: float | None) -> float | None:
    return None if given is None else positive(name, given)


def _is_abstract_or_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


@lru_cache
def _flops_per_second(backend: str) -> float:
    """Measured with one product of matrices."""
    size = 1024
    x = jax.device_put(np.ones((size, size), np.float32), cast("Any", jax.devices(backend))[0])
    return 2 * size**3 / _seconds(jax.jit(jnp.dot), x, x)


@lru_cache
def _bytes_per_second(backend: str) -> float:
    """Measured with one copy: what is read, and what is written."""
    x = jax.device_put(np.ones(2**23, np.float32), cast("Any", jax.devices(backend))[0])
    return 2 * x.nbytes / _seconds(jax.jit(jnp.negative), x)


def _seconds(function: Callable[..., Array], *arguments: Array) -> float:
    """The shortest of some times that a call took, after the first."""
    times: list[float] = []
    for _ in range(6):
        start = time.perf_counter()
        function(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _flops_text(flops: float) -> str:
    units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]
    while flops >= 999.5 and len(units) > 1:
        flops /= 1000
        units.pop(0)
    return f"{flops:,.3g} {units[0]}"


def _time(seconds: float) -> str:
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds:,.0f} s" if seconds >= 1000 else f"{seconds * scale:.3g} {unit}"
