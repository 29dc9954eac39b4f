"""Block: the batches of one call, with an implementation that is fed and one on the device."""

from collections.abc import Sequence
from typing import Protocol

from solstice._engine._buffer import InUse
from solstice._types import Batch


class Block(Protocol):
    """Batches of one kind, for one call."""

    @property
    def placed(self) -> Batch:
        """The `batches` of `run_block`."""
        ...

    @property
    def slot(self) -> InUse:
        """The calls of this block."""
        ...

    @property
    def num_examples(self) -> int:
        """The examples in each batch."""
        ...

    @property
    def batches(self) -> Sequence[Batch]:
        """The batches with text and objects, if callbacks or the stepper read them."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether `arrays` has all of a batch, not only the share of this process."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether the batches are rows of arrays on the device."""
        ...

    def __len__(self) -> int: ...

    def arrays(self, index: int) -> Batch:
        """The arrays of a batch as the step sees them, on the host.

        The next block but one may overwrite them.
        """
        ...
