"""Metrics over windows: since the epoch began, and since each callback last looked."""

from collections.abc import Hashable, Iterable

from solstice._metrics import Metrics


class Windows:
    """Sums metrics for several readers, each of which starts anew when it has read.

    Args:
        readers: who will read, by any name.
    """

    def __init__(self, readers: Iterable[Hashable]) -> None:
        self._totals: dict[Hashable, Metrics | None] = dict.fromkeys(readers)

    def add(self, metrics: Metrics | None) -> None:
        """Adds the metrics of some steps for every reader."""
        if metrics is None:
            return
        for reader, total in self._totals.items():
            self._totals[reader] = metrics if total is None else total.merge(metrics)

    def take(self, reader: Hashable) -> Metrics | None:
        """What has come since this reader last took, or None."""
        total = self._totals[reader]
        self._totals[reader] = None
        return total
