"""Totals: the merged metrics of steps, computed within the compiled call."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.typing import ArrayLike

from solstice import _tree
from solstice._engine._pack import as_jax, pack, unpack
from solstice._engine._program import PROGRAMS, Program
from solstice._engine._trace import Traced
from solstice._metrics import Metrics, as_metrics, may_raise
from solstice._record import Times
from solstice._sums import ADDITIONS
from solstice._types import Batch, PyTree, Structure

_SMALL = 4096
"""The most bytes of a total that waits in host memory, in each row of a history, to be computed."""


@dataclass(frozen=True, eq=False)
class Merging:
    """The way in which the metrics of a step are merged into a total.

    Attributes:
        empty: the total of no steps; None if there are no metrics, or metrics that grow.
        sums: whether `merge` only adds, for each array; None if metrics grow.
        can_wait: whether `compute` is called only if somebody reads the metrics.
    """

    empty: PyTree
    sums: tuple[bool, ...] | None
    can_wait: bool = False


@lru_cache(maxsize=PROGRAMS)
def merging_of(traced: Traced) -> Merging:
    """The `Merging` of a step, found in the jaxpr of its metrics' `merge`."""
    metrics = metrics_like(traced)
    if metrics is None:
        return Merging(None, ())
    merge = partial(_packed_merge)  # a new function, because JAX caches a trace as long as it
    try:
        jaxpr, merged = cast("Any", jax.make_jaxpr(merge, return_shape=True)(metrics, metrics))
    except Exception:  # a merge that needs the host runs there, and raises there
        return Merging(None, None)
    if _types(merged) != _types(metrics):  # a collection of outputs grows
        return Merging(None, None)
    with jax.ensure_compile_time_eval():  # because a cached tracer would outlive its trace
        empty = jax.device_put(_tree.map(_zeros, metrics))
    size = sum(array.nbytes for array in _tree.leaves(empty))
    can_wait = size <= _SMALL and not may_raise(unpack(metrics))
    return Merging(empty, _sums(jaxpr.jaxpr), can_wait)


class Reading:
    """`reading = Reading(total)`: a packed total on its way to the memory of the host.

    The program that computes it may still run, so nothing waits for it before `fetch`, whose time
    is added to `times`.
    """

    def __init__(self, total: PyTree) -> None:
        self._leaves, self._structure = _tree.flatten(total)
        with _reads():
            for leaf in self._leaves:
                leaf.copy_to_host_async()  # so that all of them take the time of one

    def fetch(self, times: Times) -> None:
        """Waits for the program, and drops the memory of the device."""
        began = time.perf_counter()
        # Copies, because NumPy may read the memory of the device in place, which holds it.
        with _reads():
            self._leaves = [np.array(leaf) for leaf in self._leaves]
        times.device += time.perf_counter() - began

    def metrics(self, times: Times) -> Metrics:
        """The metrics, of NumPy arrays."""
        self.fetch(times)
        return unpack(_tree.unflatten(self._structure, self._leaves))


def _reads() -> AbstractContextManager[None]:
    """Makes transfers to the host explicit for `jax.transfer_guard`.

    `jax.device_get` is too, but it starts no copy without waiting, and takes ten times as long.
    """
    return cast("Any", jax.transfer_guard_device_to_host("allow"))


def packed_metrics(program: Program, outputs: PyTree, batch: Batch) -> PyTree:
    """The metrics of one step, packed; None if there are none."""
    if not program.returns_state:  # predictions are never metrics
        return None
    return pack(as_metrics(unpack(outputs), batch))


def merged_with(sums: tuple[bool, ...], total: PyTree, one: PyTree, begins: Array | bool) -> PyTree:
    """The total after one more step.

    If `begins`, the total starts as the metrics of that step. A sum starts at zero instead, because
    XLA fuses its computation with an addition, but not with a selection.
    """
    if total is None:
        return None
    merged, structure = _tree.flatten(_packed_merge(total, one))
    pairs = zip(sums, _tree.leaves(one), merged, strict=True)
    leaves = [new if is_sum else jnp.where(begins, first, new) for is_sum, first, new in pairs]
    return _tree.unflatten(structure, leaves)


def _packed_merge(total: PyTree, metrics: PyTree) -> PyTree:
    return pack(unpack(total).merge(unpack(metrics)))


def _sums(merge: Any) -> tuple[bool, ...]:
    """Whether each result of a merge is the sum of the two inputs in its place, and nothing else.

    `Counts` and `Totals` add two words to two words in one operation.
    """
    half = len(merge.invars) // 2
    places = zip(merge.outvars, merge.invars[:half], merge.invars[half:], strict=True)
    # By identity, because a literal among the variables has no hash.
    added = {id(out): pair for e in merge.eqns for out, *pair in _additions(e)}
    return tuple(added.get(id(out)) in ([one, other], [other, one]) for out, one, other in places)


def adds_only(metrics: Metrics) -> bool:
    """Whether `merge` of metrics like these adds all their arrays, and does nothing else."""
    types = tuple(ShapeDtypeStruct(np.shape(x), x.dtype) for x in _tree.leaves(metrics))
    return _adds_only(_tree.structure(metrics), types)


@lru_cache(maxsize=PROGRAMS)
def _adds_only(structure: Structure, types: tuple[ShapeDtypeStruct, ...]) -> bool:
    def merge(one: Metrics, other: Metrics) -> list[Array]:
        return _tree.leaves(one.merge(other))

    metrics = _tree.unflatten(structure, types)
    try:
        found = cast("Any", jax.make_jaxpr(merge))(metrics, metrics).jaxpr
    except Exception:  # a merge that needs the host
        return False
    return len(found.outvars) == len(found.invars) // 2 and all(_sums(found))


def _additions(equation: Any) -> Iterator[tuple[object, ...]]:
    """The sums of an equation: triples of a result and the two addends."""
    if equation.primitive.name == "add" or equation.params.get("name") in ADDITIONS:
        half = len(equation.invars) // 2
        halves = equation.invars[:half], equation.invars[half:]
        yield from zip(equation.outvars, *halves, strict=True)


def metrics_like(traced: Traced) -> PyTree:
    """The shapes of the metrics of one step, packed; None if there are none."""
    batch = _tree.unflatten(traced.structure, traced.shapes)
    return _tree.eval_shape(
        partial(packed_metrics, traced.plan.program), traced.plan.outputs, batch
    )


def total_from(saved: Mapping[str, ArrayLike], traced: Traced, grows: bool) -> PyTree:
    """A saved total, from its arrays by path.

    Raises:
        KeyError: the metrics of the step have other paths, shapes or dtypes.
    """
    like = unpack(metrics_like(traced))
    paths = [path for path, _ in _tree.leaves_by_path(like)]
    missing = {*paths} ^ {*saved}
    if missing:
        raise KeyError(min(missing))
    arrays = [as_jax(saved[path]) for path in paths]
    for path, array, wanted in zip(paths, arrays, _tree.leaves(like), strict=True):
        start = 1 if grows else 0  # because axis 0, the examples, may have any length
        if (array.dtype, array.shape[start:]) != (wanted.dtype, wanted.shape[start:]):
            raise KeyError(f"{path} of {array.dtype}{list(array.shape)}")
    total = _tree.unflatten(_tree.structure(like), arrays)
    return total if grows else pack(total)


def _zeros(like: ShapeDtypeStruct) -> np.ndarray[Any, Any]:
    dtype: Any = like.dtype
    return np.zeros(like.shape, dtype)


def _types(tree: PyTree) -> tuple[Structure, list[object]]:
    return _tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in _tree.leaves(tree)]
