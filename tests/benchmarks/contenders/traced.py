"""Solstice with `callbacks.Trace`, which hashes the state after each step, within one `fit`."""

import tempfile
from typing import Any

from contenders import solstice_within
from workloads import Workload

from solstice.callbacks import Trace


def make(workload: Workload, every: int = 1) -> Any:
    folder = tempfile.TemporaryDirectory()
    run_epoch = solstice_within.make(workload, [Trace(folder.name, every=every)])
    run_epoch.folder = folder  # which is removed with the function
    return run_epoch
