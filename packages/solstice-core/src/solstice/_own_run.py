"""The file `run.json` of a run, whose package only runs with a folder load."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from solstice._callback import Callback
from solstice._own_history import histories_in

if TYPE_CHECKING:
    from solstice._loop import Branch
    from solstice.runs import RunKeeper


def keepers(callbacks: Sequence[Callback], branch: "Branch | None") -> "list[RunKeeper]":
    """The callback that keeps `run.json`, if one of the callbacks writes into the run's folder.

    A branch has a folder in any case.
    """
    if branch is None and all(callback.run_folder is None for callback in callbacks):
        return []
    from solstice.runs import RunKeeper

    folder = None if branch is None else branch.folder
    return [RunKeeper(callbacks, histories_in(callbacks)[0], folder)]
