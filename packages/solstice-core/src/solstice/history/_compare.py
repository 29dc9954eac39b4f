"""Plots that compare several runs."""

from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

from solstice._paths import local_path
from solstice.history._history import History
from solstice.history._read import read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare(
    runs: Mapping[str, Any] | Iterable[Any],
    path: str | PathLike[str] | None = None,
    *,
    only: Collection[str] | None = None,
    smooth: float = 0.6,
) -> "Figure":
    """`solstice.compare({"adam": one, "sgd": other}, "compared.png")`: plot runs together.

    Args:
        runs: a mapping from name to run, or several runs; these are numbered, and files are named
            by their stem. A run is a `History`, a Trainer after `fit`, or the path of a CSV or JSON
            lines file.
        path: the picture file to write; None to write none.
        only: names of the metrics to draw, without the mode; all by default.
        smooth: as in `History.plot`.

    Returns:
        The matplotlib figure, with a panel for each metric and a colour for each run.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `runs` is a single run, or an entry is not a run.
        ValueError: no run has a metric to draw.
    """
    # Here, because matplotlib is optional, and slow to import.
    from solstice._picture import save
    from solstice.history._plot import draw

    if isinstance(runs, str | PathLike) or hasattr(runs, "history"):
        raise TypeError(
            f"runs: compare takes several runs: write `solstice.compare([{runs!r}, ...])`"
        )
    several: Any = runs
    if isinstance(runs, Mapping):
        named: dict[str, Any] = dict(several)
    elif not isinstance(several, Iterable):
        raise TypeError(f"runs must be several runs, such as [one, other]; it is {runs!r:.60}")
    else:
        each = enumerate(cast("Iterable[Any]", several), 1)
        named = {_name(run, index): run for index, run in each}
    histories = {name: _history(run) for name, run in named.items()}
    return save(draw(histories, only=only, smooth=smooth), path)


def _name(run: object, index: int) -> str:
    is_path = isinstance(run, str | PathLike)
    return local_path(cast("str", run), "a run").stem if is_path else f"run {index}"


def _history(run: object) -> History:
    if isinstance(run, str | PathLike):
        return read_history(cast("str", run))
    history = getattr(run, "history", run)
    if not isinstance(history, History):
        raise TypeError(
            f"runs: a run is a History, a Trainer or the path of a CSV or JSON lines file; it is "
            f"{run!r:.60}"
        )
    return history
