"""Peers: the other processes of a run."""

import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from solstice import _tree
from solstice._agreement import Agreed, Agreement, Word, agreement
from solstice._batch import describe_batch
from solstice._engine import Stepper
from solstice._errors import DataError, PeerMismatch
from solstice._experiment import Experiment
from solstice._sources import Source, fingerprint

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

    def share(self, name: str, text: str) -> tuple[str, ...]:
        """The texts of all processes, in order."""
        return self._agreement.share(name, text)

    def check_same(self, name: str, text: str, wrong: Callable[[int], str]) -> None:
        """Raises a DataError in all processes if a text is another one in any of them.

        Args:
            name: what the text is about.
            text: the text of this process.
            wrong: the message, from the index of the first other process.
        """
        texts = self.share(name, text)
        other = next((index for index, one in enumerate(texts) if one != texts[0]), None)
        if other is not None:
            raise DataError(wrong(other))

    def check_different(self, name: str, text: str, wrong: Callable[[int, int], str]) -> None:
        """Raises a DataError in all processes if two of them have the same text."""
        first: dict[str, int] = {}
        for index, one in enumerate(self.share(name, text)):
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


def check_data(peers: Peers, source: Source, epoch: int) -> None:
    """Compares the first batches of the processes.

    Raises:
        DataError: they differ, or they are equal where each process has a share of its own.
    """
    name, text = source.name, fingerprint(source.first(epoch))
    if source.is_share:
        kinds = peers.share(f"the shapes of {name}", describe_batch(source.first(epoch)))
        check_kinds({kind: kinds.index(kind) for kind in kinds})
        peers.check_different(
            f"the first batch of {name}",
            text,
            lambda one, other: (
                f"processes {one} and {other} have the same first batch of {name}, and "
                f"`per_process` says that each has a share of its own. Give each its share, "
                f"such as by ShardByJaxProcess of grain or by `ds.shard(jax.process_count(), "
                f"jax.process_index())` of tf.data; or leave `per_process` out"
            ),
        )
        return
    peers.check_same(
        f"the first batch of {name}",
        text,
        lambda other: (
            f"process {other} has another first batch of {name} than process 0. All processes "
            f"iterate the same data set, and each uses its rows of every batch: give it the same "
            f"seed in all, and do not shard it. If each process is to read a share of its own, "
            f"write `{name}=solstice.data.per_process({name})`"
        ),
    )


def check_kinds(kinds: Mapping[str, int]) -> None:
    """Raises a DataError for batches of several kinds, each with a process that has it."""
    if len(kinds) > 1:
        given = "; ".join(f"process {process} has {kind}" for kind, process in kinds.items())
        raise DataError(
            f"the processes have batches of other shapes: {given}. The shares of a batch must be "
            f"of one size: write `drop_last=True`, or `drop_remainder=True`, in the data set of "
            f"each process"
        )


def check_run(peers: Peers, run: str) -> None:
    """Raises a PeerMismatch if a process starts another run, such as one with other callbacks."""
    runs = peers.share("the start of a run", run)
    if len({*runs}) > 1:
        raise PeerMismatch(tuple({one: (runs.index(one), one) for one in runs}.values()))


def check_saved(peers: Peers, path: Path | None) -> None:
    """Raises a DataError if the processes resume other checkpoints."""
    name = "nothing" if path is None else str(path)
    found = peers.share("the checkpoint to resume", name)
    other = next((index for index, one in enumerate(found) if one != found[0]), None)
    if other is not None:
        raise DataError(
            f"process {other} resumes {found[other]}, and process 0 {found[0]}. All processes need "
            f"the same checkpoint: use a folder that all hosts share"
        )


def check_step(peers: Peers, experiment: Experiment, stepper: Stepper) -> None:
    """Compares the Experiments of the processes, and their steps.

    Raises:
        DataError: they differ.
    """
    peers.check_same(
        f"{stepper.name}, the step",
        stepper.traced.digest().digest,
        lambda other: (
            f"process {other} computes something else in {stepper.name} than process 0. Make the "
            f"Experiment in the same way in all processes. If a layer or a loss loops over a "
            f"`set`, sort it: its order differs between processes"
        ),
    )
    peers.check_same(
        f"{stepper.name}, the numbers",
        f"{_checksum(experiment)}",
        lambda other: (
            f"process {other} has another {stepper.kind.__name__} than process 0: the same step "
            f"with other numbers. Make it from the same seed in all processes, such as "
            f"`jax.random.key(0)`, and not from the process or the time"
        ),
    )


def _checksum(experiment: Experiment) -> int:
    """A checksum of the arrays that this process has whole."""
    leaves = [x for x in _tree.leaves(experiment) if _tree.is_array(x)]
    here = [x for x in leaves if getattr(x, "is_fully_addressable", True)]
    plain = [jax.random.key_data(x) if _tree.is_key(x) else x for x in here]
    found = 0
    for array in cast("list[Any]", jax.device_get(plain)):
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found


def peers_of_this_process() -> Peers | None:
    """The other processes; None if there are none."""
    found = agreement()
    return None if found is None else Peers(found)
