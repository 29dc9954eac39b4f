"""Peers: the other processes of a run."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from solstice._agreement import Agreed, Agreement, Word, agreement
from solstice._errors import DataError

COMPILES = 3600.0
"""Seconds to wait for the others after a compilation, which takes each process another time."""
# A choice: longer than a compilation, and not for ever.


class Peers:
    """The other processes of a run. Each method is a round, in which all take part.

    Args:
        agreement: the agreement with them.
    """

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement

    @property
    def is_lead(self) -> bool:
        """Whether this process is the one that shows and logs."""
        return self._agreement.is_lead

    def agree(self, word: Word) -> Agreed:
        """What follows from the words of all."""
        return self._agreement.agree(word)

    def wait_for_compilation(self, what: str) -> None:
        """Waits until all have compiled, because some collectives of XLA have short timeouts."""
        self._agreement.barrier(f"the compilation of {what}", COMPILES)

    def check_same(self, name: str, text: str, wrong: Callable[[int], str]) -> None:
        """Raises a DataError in all processes if a text is another one in any of them.

        Args:
            name: what the text is about.
            text: the text of this process.
            wrong: the message, from the index of the first other process.
        """
        texts = self._agreement.share(name, text)
        other = next((index for index, one in enumerate(texts) if one != texts[0]), None)
        if other is not None:
            raise DataError(wrong(other))

    def check_different(self, name: str, text: str, wrong: Callable[[int, int], str]) -> None:
        """Raises a DataError in all processes if two of them have the same text."""
        first: dict[str, int] = {}
        for index, one in enumerate(self._agreement.share(name, text)):
            if first.setdefault(one, index) != index:
                raise DataError(wrong(first[one], index))

    @contextmanager
    def notified(self) -> Generator[None, None, None]:
        """Within, an error makes the others raise a `PeerFailed` with its text."""
        try:
            yield
        except GeneratorExit:  # all have stopped reading `predict`
            raise
        except BaseException as error:
            self._agreement.fail(error)
            raise


def peers_of_this_process() -> Peers | None:
    """The other processes; None if there are none."""
    found = agreement()
    return None if found is None else Peers(found)
