"""The names of metrics, where a tool does not take every name."""

import hashlib
import warnings
from collections.abc import Callable, Iterable


class Names:
    """Renames metrics for a tool, alike in every process, and says so once for each.

    Args:
        tool: the class of the logger, for the warning.
        name_of: what the tool calls a metric; the metric's own name where the tool takes that.
    """

    def __init__(self, tool: str, name_of: Callable[[str], str]) -> None:
        self._tool = tool
        self._name_of = name_of
        self._said: set[str] = set()

    def of(self, metrics: Iterable[str]) -> dict[str, str]:
        """By the name of each metric of a row, the name in the tool; no two are the same."""
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
            warnings.warn(
                f"{self._tool} does not take every name of a metric, and has {listed}", stacklevel=4
            )
