"""DeferredError: an error of a batch, which is raised after the batches before it have trained."""

from collections.abc import Callable

from solstice._types import Batch


class DeferredError:
    """`deferred.keep(error)`, then `deferred.raise_kept()` when the earlier batches have trained.

    No local name holds the error: its frames refer to those names, and would keep a run in memory.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __bool__(self) -> bool:
        return self._error is not None

    def keep(self, error: Exception) -> None:
        """Keeps an error, in place of an earlier one."""
        self._error = error

    def accepts(self, check: Callable[[Batch], None], batch: Batch) -> bool:
        """Whether a check accepts a batch. If not, its error is kept."""
        try:
            check(batch)
        except Exception as error:
            self._error = error
            return False
        return True

    def raise_kept(self) -> None:
        """Raises the error, if there is one, and forgets it."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
