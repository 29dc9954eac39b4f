"""The results of the steps of one block, read from the device at the first access."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import Array

from solstice import _tree
from solstice._digests import Digests, Table
from solstice._engine._pack import unpack
from solstice._engine._program import PROGRAMS
from solstice._types import Outputs, PyTree, Structure


class StackedOutputs:
    """The outputs of the steps of one block, copied to the host at the first access.

    Args:
        outputs: the stacked outputs of each call.
        count: the number of steps.
        hashes: the hashes of these steps, or None.
    """

    def __init__(self, outputs: list[PyTree], count: int, hashes: "Hashes | None" = None) -> None:
        self.hashes = hashes
        self._outputs = outputs
        self._count = count
        self._host: list[tuple[list[Any], Hashable]] | None = None

    def first(self, count: int) -> "StackedOutputs":
        """The outputs of the first `count` steps."""
        return StackedOutputs(self._outputs, count, self.hashes)

    def __iter__(self) -> Iterator[Outputs]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int, /) -> Outputs:
        host = self._host = self._host or self._on_host()
        # `calls` makes one call of all steps, or one call for each step.
        call, row = (0, index) if len(host) == 1 else (index, 0)
        leaves, structure = host[call]
        is_array = np.ndarray, Array  # and else a constant
        return _tree.unflatten(
            structure, [x[row] if isinstance(x, is_array) else x for x in leaves]
        )

    def _on_host(self) -> list[tuple[list[Any], Hashable]]:
        """The outputs of each call, flattened once for all its steps."""
        host = jax.device_get(self._outputs)  # one transfer
        return [_tree.flatten(unpack(one)) for one in host]


class Hashes:
    """The hashes of the steps of one block.

    Args:
        calls: those of each call: of the state before each step, and of batches and outputs.
        last: that of the state after the last step, if it is due.
        done: the number of training steps before the block.
        count: the number of steps.
        every: the number of steps after which the state was hashed; 0 for never.
        names: the names of the arrays of batch and outputs.
        state: the arrays of the state.
    """

    def __init__(
        self,
        calls: Sequence[tuple[Array | np.ndarray[Any, Any], Array]],
        last: Array | None,
        done: int,
        count: int,
        every: int,
        names: tuple[str, ...],
        state: "StateArrays",
    ) -> None:
        self._calls, self._last = calls, last
        self._done, self._count = done, count
        self._every = every
        self._names = names
        self._state = state
        self._host: tuple[Table, Table] | None = None

    def first(self, count: int) -> Digests:
        """The digests of the first `count` steps."""
        steps = range(self._done + 1, self._done + count + 1)
        due = [step for step in steps if is_due(step, self._every)]
        read = partial(self._read, count, [step - self._done for step in due])
        return Digests(steps, self._names, due, self._state.names, self._state.types, read)

    def _read(self, count: int, due: list[int]) -> tuple[Table, Table]:
        if self._host is None:
            host, last = jax.device_get((self._calls, self._last))  # one transfer
            state, others = (np.concatenate(tables) for tables in zip(*host, strict=True))
            if last is not None:  # in place of the next row, which may be of an unused step
                state = np.concatenate([state[: self._count], last[None]])
            self._host, self._calls, self._last = (others, state), (), None
        others, state = self._host
        return others[:count], state[due]


def is_due(step: int, every: int | None) -> bool:
    """Whether the state after a step has digests."""
    return bool(every) and step % every == 0


@dataclass(frozen=True)
class StateArrays:
    """The arrays of a state.

    Attributes:
        names: their names, such as "state/params/w".
        types: their types, such as "float32[784,64]".
    """

    names: tuple[str, ...]
    types: tuple[str, ...]

    @staticmethod
    def of(names: Sequence[str], arrays: Sequence[Any]) -> "StateArrays":
        """Those of arrays, or of their shapes, at these paths."""
        types = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays]
        return StateArrays(tuple(f"state/{name}".rstrip("/") for name in names), tuple(types))

    def digests(self, step: int, hashed: Array) -> Digests:
        """The digests of the state after `step` steps, without those of a step."""

        def read() -> tuple[Table, Table]:
            return np.zeros((0, 0), np.uint32), _tree.to_numpy(hashed)[None]

        return Digests((), (), (step,), self.names, self.types, read)


@lru_cache(maxsize=PROGRAMS)
def names_of(batch: Structure, outputs: Structure, count: int) -> tuple[str, ...]:
    """`batch/0` and `outputs/loss`: the names of the `count` arrays of a batch and of outputs.

    Another kind of batch than the first may have other outputs, whose names are not known.
    """
    named = [("batch", batch), ("outputs", outputs)]
    trees = [(of, _tree.unflatten(tree, range(_num_leaves(tree)))) for of, tree in named]
    paths = [f"{of}/{path}" for of, tree in trees for path in _tree.leaves_by_slashes(tree)]
    known = [path.rstrip("/") for path in paths]
    is_known = len(known) == count
    return tuple(known if is_known else [f"batch or outputs/{index}" for index in range(count)])


def _num_leaves(structure: Any) -> int:
    return structure.num_leaves
