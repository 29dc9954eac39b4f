"""EagerStepper: runs steps that cannot be compiled, one at a time."""

import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jax import ShapeDtypeStruct
from jax.typing import ArrayLike

from solstice import _tree
from solstice._batch import arrays_of
from solstice._compiles import Kind, kinds_of
from solstice._console import warn
from solstice._digests import Digests
from solstice._engine._block import Block
from solstice._engine._block_size import Arrangement
from solstice._engine._digest import StepDigest, digest_of_code
from solstice._engine._hash import arrays_to_hash, hashed
from solstice._engine._outputs import Hashes, StateArrays, is_due
from solstice._engine._ownership import Ownership
from solstice._engine._program import check_pair
from solstice._engine._trace import undecorated
from solstice._experiment import Experiment
from solstice._metrics import Metrics, as_metrics
from solstice._types import Batch, Outputs


class EagerStepper:
    """A `Stepper` for a step that reads values on the host, or branches on them.

    Args:
        experiment: the initial Experiment.
        method: "train_step", "eval_step" or "predict_step".
        error: the error of tracing; a warning names its line.
        readers: the number of accumulators of metrics.
        look: called with the name of the step and its outputs.
        given: the caller's Experiment, if the run gives it up.
        hashes_every: as in `Steps`.

    Attributes:
        kind, name, sizes, ownership: as in `Stepper`.
    """

    def __init__(
        self,
        experiment: Experiment,
        method: str,
        error: Exception,
        readers: int,
        look: Callable[[str, Outputs], None],
        given: Experiment | None = None,
        hashes_every: int | None = None,
    ) -> None:
        warn(
            f"{type(experiment).__name__}.{method} cannot be compiled, and runs uncompiled, which "
            f"is slow: {line_of(error)}. Write it with jax.numpy, jnp.where and jax.lax.cond",
            stacklevel=2,
        )
        self.kind = type(experiment)
        self.name = f"{self.kind.__name__}.{method}"
        self.sizes = Arrangement(1, 1, 1, "the step cannot be compiled, and runs uncompiled", False)
        # Other containers than the caller's, because references of callbacks to them are counted.
        self._experiment = experiment if given is None else _tree.map(_same, experiment)
        self.ownership = Ownership(self._experiment, given)
        self._method = method
        self._look = look
        self._totals: list[Metrics | None] = [None] * readers
        self._hashes_every = hashes_every

    @property
    def notes(self) -> list[str]:
        """None."""
        return []

    @property
    def advice(self) -> str:
        """None."""
        return ""

    @property
    def works_in_place(self) -> bool:
        """False: a step makes new arrays."""
        return False

    @property
    def needs_batches(self) -> bool:
        """True: the step may keep its batch, and staging buffers are reused."""
        return True

    @property
    def is_lost(self) -> bool:
        """False: a step that raises leaves the Experiment as it was."""
        return False

    def share_experiment(self) -> Experiment:
        """The Experiment after the last step."""
        return self._experiment

    def take_state(self, experiment: Experiment) -> bool:
        """Continues with another Experiment."""
        self._experiment = experiment
        return True

    def continue_from(self, other: object) -> None:
        """Nothing: the class of the metrics is unknown before a step has run."""
        del other

    def borrow_state(self, owner: object, batch: Batch) -> bool:
        """False: the step of every Experiment is another one."""
        del owner, batch
        return False

    def return_state(self) -> None:
        """Does nothing, because it has borrowed nothing."""

    @property
    def state_bytes(self) -> int:
        """The size of the Experiment's arrays in bytes."""
        leaves = _tree.leaves(arrays_of(self._experiment))
        return sum(getattr(leaf, "nbytes", 0) for leaf in leaves)

    def signature(self, block: Block) -> tuple[str, dict[str, Kind]]:
        """A name, and the inputs on which the compiled operations of the step depend."""
        batch = arrays_of(block.batches[0])
        name = f"{self.kind.__module__}.{self.kind.__qualname__}.{self.name} uncompiled"
        return name, {**kinds_of(self._experiment), **kinds_of(batch, "batch")}

    @property
    def traced(self) -> "Code":
        """The code of the step, since it cannot be traced."""
        # Without arrays, because training changes them.
        constants = [x for x in _tree.leaves(self._experiment) if not eqx.is_array_like(x)]
        return Code(digest_of_code(undecorated(getattr(self.kind, self._method)), constants))

    def run(self, block: Block, done: int = 0) -> "OneOutput":
        """Runs the one step of a block."""
        self.settle()
        batch = arrays_of(block.batches[0])
        result: object = getattr(self._experiment, self._method)(batch)
        if self._method == "predict_step":
            return OneOutput(result)
        self._experiment, outputs = check_pair(
            result, type(self._experiment).__name__, self._method
        )
        self._look(self.name, outputs)
        metrics = as_metrics(outputs, batch)
        if metrics is not None:
            self._totals = [metrics if t is None else t.merge(metrics) for t in self._totals]
        return OneOutput(outputs, self._hashes(batch, outputs, done))

    def _hashes(self, batch: Batch, outputs: Outputs, done: int) -> Hashes | None:
        if self._hashes_every is None:
            return None
        names, others = arrays_to_hash({"batch": batch, "outputs": outputs})
        paths, arrays = arrays_to_hash(self._experiment)
        state = StateArrays.of(paths, arrays)
        last = hashed(arrays) if is_due(done + 1, self._hashes_every) else None
        before = np.zeros((1, len(arrays)), np.uint32)
        calls = [(before, hashed(others)[None])]
        return Hashes(calls, last, done, 1, self._hashes_every, names, state)

    def digests(self, step: int) -> Digests:
        """The digests of the state, which is that after `step` steps."""
        names, arrays = arrays_to_hash(self._experiment)
        return StateArrays.of(names, arrays).digests(step, hashed(arrays))

    def warm_up(self, block: Block) -> None:
        """Nothing: such a step is not compiled."""

    def settle(self) -> None:
        """Gives up the caller's arrays, after the first step."""
        self.ownership.settle(self._experiment)

    def rewind(self, block: Block, count: int) -> None:
        """Does nothing, because a call is one step."""

    def take_metrics(self, reader: int = 0) -> Metrics | None:
        """The merged metrics since this reader last took them; None if there are none."""
        total, self._totals[reader] = self._totals[reader], None
        return total

    def read_metrics(self, reader: int = 0) -> None:
        """None: the class of the metrics is unknown before a step has run."""
        del reader

    def totals(self) -> list[Metrics | None]:
        """The merged metrics of each reader since it last took them, without taking them."""
        return list(self._totals)

    def restore(
        self, experiment: Experiment, totals: Sequence[Mapping[str, ArrayLike] | None]
    ) -> None:
        """Restores a saved Experiment.

        Raises:
            KeyError: there are saved metrics. Their class is unknown before a step has run.
        """
        if any(saved is not None for saved in totals):
            raise KeyError("metrics of steps that cannot be compiled")
        self._experiment = experiment


def _same(leaf: object) -> object:
    return leaf


@dataclass(frozen=True)
class Code:
    """A step that cannot be traced, by its code."""

    computed: StepDigest
    shapes: tuple[ShapeDtypeStruct, ...] = ()
    batch: Batch = None

    def digest(self) -> StepDigest:
        """The digest of the step's code and closures."""
        return self.computed

    def with_batches(self, shapes: tuple[ShapeDtypeStruct, ...]) -> "Code":
        """Returns itself, because the code does not depend on shapes."""
        del shapes
        return self


class OneOutput(list[Outputs]):
    """The outputs of one step."""

    def __init__(self, outputs: Outputs, hashes: Hashes | None = None) -> None:
        super().__init__([outputs])
        self.hashes = hashes

    def first(self, count: int) -> "OneOutput":
        """Returns itself, because there is one step."""
        del count
        return self


def line_of(error: Exception) -> str:
    """The user's line at which tracing failed: the last one outside of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    # The last frame of all comes first, as the fallback if all are in libraries.
    frame = [*frames[-1:], *(f for f in frames if "site-packages" not in f.filename)][-1]
    source = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}, `{source}`"
