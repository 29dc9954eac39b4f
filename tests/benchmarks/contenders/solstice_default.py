"""Solstice with its default callbacks, as in a terminal: a progress bar, logging and history."""

import io
from typing import Any

from models import solstice as models
from workloads import Workload

import solstice


class Terminal(io.StringIO):
    """Takes what is written and drops it, as a terminal that nobody looks at."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True


def make(workload: Workload) -> Any:
    lines: list[Any] = []
    progress = solstice.callbacks.ProgressBar(file=Terminal())
    logging = solstice.callbacks.Logging(lambda metrics, step: lines.append((metrics, step)))
    return models.make(workload, [progress, logging, solstice.callbacks.History()])
