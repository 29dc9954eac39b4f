"""The example of several processes, started by a launcher, beside itself in one process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs/examples/many_processes.py"
PYTHON = [sys.executable, str(EXAMPLE)]


def run(*command: str, code: int = 0) -> str:
    """What a command prints. It must end with this code."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_FLAGS": ""},  # one device each
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@lru_cache
def alone() -> dict[str, Any]:
    """The summary of the example in one process, without a launcher."""
    return summary(run(*PYTHON))


def summary(printed: str) -> dict[str, Any]:
    """The summary that the first process has printed, and no other."""
    [line] = [line for line in printed.splitlines() if line.startswith("{")]
    assert printed.count("validation accuracy:") == 1
    return json.loads(line)


def assert_same_history(summary: Mapping[str, Any], processes: int) -> None:
    """The history is that of one process."""
    assert summary["processes"] == processes
    assert losses(summary) == pytest.approx(losses(alone()), rel=1e-6)


def losses(summary: Mapping[str, Any]) -> list[float]:
    found = [*summary["train/loss"], *summary["val/loss"]]
    assert len(found) == 10
    return found
