"""What a run needs of a stepper, with a compiled and an eager implementation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from jax import ShapeDtypeStruct
from jax.typing import ArrayLike

from solstice._compiles import Kind
from solstice._digests import Digests
from solstice._engine._block import Block
from solstice._engine._block_size import Arrangement
from solstice._engine._digest import StepDigest
from solstice._engine._ownership import Ownership
from solstice._engine._totals import Reading
from solstice._experiment import Experiment
from solstice._metrics import Metrics
from solstice._types import Batch, Outputs


class BlockHashes(Protocol):
    """The hashes of the steps of one block."""

    def first(self, count: int) -> Digests:
        """The digests of the first `count` steps."""
        ...


class BlockOutputs(Protocol):
    """The outputs of the steps of one block, in their order."""

    @property
    def hashes(self) -> BlockHashes | None:
        """The hashes of these steps; None if no callback reads them."""
        ...

    def first(self, count: int) -> "BlockOutputs":
        """The outputs of the first `count` steps."""
        ...

    def __iter__(self) -> Iterator[Outputs]: ...

    def __getitem__(self, index: int, /) -> Outputs: ...


class StepCode(Protocol):
    """The code of a step, for comparison with another process."""

    @property
    def shapes(self) -> tuple[ShapeDtypeStruct, ...]:
        """The shape and dtype of each array of a batch; none if the code does not depend on it."""
        ...

    @property
    def batch(self) -> Batch:
        """The same as a batch."""
        ...

    def digest(self) -> StepDigest:
        """The digest of the step, the same in every process."""
        ...

    def with_batches(self, shapes: tuple[ShapeDtypeStruct, ...]) -> "StepCode":
        """The same step for batches of other shapes."""
        ...


class Stepper(Protocol):
    """Runs blocks of steps of one kind, and holds the newest state. Reading it changes nothing."""

    @property
    def kind(self) -> type[Experiment]:
        """The class of the Experiment."""
        ...

    @property
    def name(self) -> str:
        """The name of the step, such as "Classifier.train_step"."""
        ...

    @property
    def sizes(self) -> Arrangement:
        """The most steps in a call and in a block."""
        ...

    @property
    def state_bytes(self) -> int:
        """The size of the Experiment's arrays in bytes."""
        ...

    @property
    def traced(self) -> StepCode:
        """The code of the step, without the Experiment's arrays."""
        ...

    @property
    def notes(self) -> list[str]:
        """Lines on the devices, for `Trainer.explain`."""
        ...

    @property
    def advice(self) -> str:
        """A sentence on a sharding that does not do what it is for; else ""."""
        ...

    @property
    def works_in_place(self) -> bool:
        """Whether a call reuses the memory of its input arrays."""
        ...

    @property
    def needs_batches(self) -> bool:
        """Whether `run` reads `block.batches`, in place of the stacked arrays."""
        ...

    @property
    def ownership(self) -> Ownership:
        """The owners of the state's arrays."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed and the arrays cannot be read. Waits for the device."""
        ...

    def share_experiment(self) -> Experiment:
        """The Experiment after the last step. It stays valid: the next call copies its arrays."""
        ...

    def take_state(self, experiment: Experiment) -> bool:
        """Continues with another Experiment; the metrics so far stay.

        False, and nothing has changed, if its step is another program.
        """
        ...

    def continue_from(self, other: "Stepper") -> None:
        """Takes the metrics so far of the stepper before it, if they have the same shapes."""
        ...

    def borrow_state(self, owner: "Stepper", batch: Batch) -> bool:
        """Starts again with the newest state of its owner, without a copy; `return_state` ends it.

        False, and nothing has changed, if this step does not take that state or that batch.
        """
        ...

    def return_state(self) -> None:
        """Drops the state that was borrowed, and what steps have made of it."""
        ...

    def signature(self, block: Block) -> tuple[str, dict[str, Kind]]:
        """A name, and by path the inputs on which the compiled program of a block depends."""
        ...

    def warm_up(self, block: Block) -> None:
        """Compiles the program of a block without running a step, if that is possible."""
        ...

    def run(self, block: Block, done: int = 0) -> BlockOutputs:
        """Runs a block of steps; `done` is the number of training steps before it."""
        ...

    def digests(self, step: int) -> Digests:
        """The digests of the state, which is that after `step` steps."""
        ...

    def settle(self) -> None:
        """Ends the time in which `rewind` is possible, and frees what only that needed."""
        ...

    def rewind(self, block: Block, count: int) -> None:
        """Restores the state after the `count`-th step of the last block."""
        ...

    def take_metrics(self, reader: int = 0) -> Metrics | None:
        """The merged metrics since this reader last took them; None if there are none."""
        ...

    def read_metrics(self, reader: int = 0) -> Reading | None:
        """Like `take_metrics`, for later; None if these metrics do not wait to be computed."""
        ...

    def totals(self) -> list[Metrics | None]:
        """The merged metrics of each reader since it last took them, without taking them."""
        ...

    def restore(
        self, experiment: Experiment, totals: Sequence[Mapping[str, ArrayLike] | None]
    ) -> None:
        """Restores a saved Experiment, and the metrics of each reader from arrays by path.

        Raises:
            KeyError: the metrics of the step have other paths, shapes or dtypes. The stepper is
                unchanged.
        """
        ...
