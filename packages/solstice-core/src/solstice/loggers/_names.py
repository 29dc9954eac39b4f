"""Renaming of metrics for tools that do not accept every name."""

import hashlib
from collections.abc import Callable, Iterable

from solstice._console import warn


class Names:
    """`Names("MLflow", name_of).of(metrics)`: names of metrics in a tool, the same in any process.

    Args:
        tool: the class of the logger, for the warning about renamed metrics.
        name_of: function from a metric's name to the name in the tool.
    """

    def __init__(self, tool: str, name_of: Callable[[str], str]) -> None:
        self._tool = tool
        self._name_of = name_of
        self._said: set[str] = set()

    def of(self, metrics: Iterable[str]) -> dict[str, str]:
        """The name in the tool for each metric; all are different.

        If two metrics get the same name, the renamed ones are followed by a checksum.
        """
        named = {metric: self._name_of(metric) for metric in metrics}
        counts = [*named.values()]
        for metric, name in named.items():
            if name != metric and counts.count(name) > 1:
                named[metric] = f"{name}_{hashlib.sha256(metric.encode()).hexdigest()[:6]}"
        self._say({m: name for m, name in named.items() if m != name and m not in self._said})
        return named

    def _say(self, new: dict[str, str]) -> None:
        if new:
            self._said |= {*new}
            listed = ", ".join(f"`{metric}` as `{name}`" for metric, name in new.items())
            warn(
                f"{self._tool} does not accept all names of metrics, and shows {listed}",
                stacklevel=4,
            )
