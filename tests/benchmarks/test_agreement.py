"""`agreement.py` runs, with few processes and rounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "agreement.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_prints_a_row_for_each_number_of_processes():
    options = ["--processes", "2", "3", "--rounds", "3", "--words", "64"]
    command = [sys.executable, str(SCRIPT), *options]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("Agreement")] == [
        ["Agreement", "2"],
        ["Agreement", "3"],
    ]
    assert sum(line.startswith("reads all") for line in lines) == 2
    assert sum("model of" in line for line in lines) == 2
    assert sum("the lead alone, with the words of 64" in line for line in lines) == 1
