"""Tests that need more devices than the process of pytest has."""

import os
import subprocess
import sys
from pathlib import Path


def run_on_eight(path: Path) -> None:
    """Runs the tests of a file in a process with eight devices."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
